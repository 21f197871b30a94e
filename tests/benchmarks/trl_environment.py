"""A second virtual environment with TRL 1.12.0, the last release with a PPO trainer, and otherwise our versions.

It is created once, beside our own, and again if constraints.txt has changed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.benchmarks.ppo_job import ROOT

FOLDER = ROOT / ".venv-trl-1.12.0"
PACKAGES = ("trl==1.12.0", "torch", "transformers", "peft", "datasets", "accelerate", "bitsandbytes")


def python() -> Path:
    """Return the environment's interpreter. Create the environment if it is missing, which takes minutes."""
    interpreter = FOLDER / "bin" / "python"
    installed = FOLDER / "constraints.txt"
    versions = (ROOT / "constraints.txt").read_text().splitlines()
    pins = "".join(f"{line}\n" for line in versions if not line.startswith("trl=="))
    if installed.is_file() and installed.read_text() == pins:
        return interpreter
    print(f"creating {FOLDER.name} …", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
    requested = FOLDER / "requested.txt"
    requested.write_text(pins)
    install = ["-m", "pip", "install", "-qq", "--disable-pip-version-check", "--constraint", str(requested), *PACKAGES]
    subprocess.run([str(interpreter), *install], check=True)
    requested.rename(installed)  # last, so that an incomplete environment is created again
    return interpreter
