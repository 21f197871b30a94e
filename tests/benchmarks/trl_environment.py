"""A second virtual environment with TRL 1.12.0, the last release that had a PPO trainer, and else the versions of ours.

It is made once, beside our own, and again where constraints.txt has changed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.benchmarks.ppo_job import ROOT

FOLDER = ROOT / ".venv-trl-1.12.0"
PACKAGES = ("trl==1.12.0", "torch", "transformers", "peft", "datasets", "accelerate", "bitsandbytes")


def python() -> Path:
    """Its interpreter. Makes the environment where it is not there, which takes minutes."""
    interpreter, made_from = FOLDER / "bin" / "python", FOLDER / "constraints.txt"
    versions = (ROOT / "constraints.txt").read_text().splitlines()
    pins = "".join(f"{line}\n" for line in versions if not line.startswith("trl=="))
    if made_from.is_file() and made_from.read_text() == pins:
        return interpreter
    print(f"making {FOLDER.name} …", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
    asked = FOLDER / "asked.txt"
    asked.write_text(pins)
    install = ["-m", "pip", "install", "-qq", "--disable-pip-version-check", "--constraint", str(asked), *PACKAGES]
    subprocess.run([str(interpreter), *install], check=True)
    asked.rename(made_from)  # last: what is half made is made again
    return interpreter
