"""The demo's first round passes its gates whatever the seed of its reward models and its policy.

All seeds start from the same sft run and the same judgments: pretraining takes most of the time and decides least.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]

DEMO = Path(__file__).parents[2] / "recipes" / "demo"
RECIPE = DEMO / "recipe.yaml"
STAGES = ("pretrain", "sft", "feedback")  # of the first round, before the seed that varies
FINISHED_DEMO = "RLHF_DEMO_RUNS"  # the runs of `make demo`, whose models are used instead of training them again


def run_command(folder: Path, *command: str) -> None:
    """Run a command of the demo with a store in `folder`."""
    environment = {**os.environ, "RLHF_FEEDBACK_STORE": str(folder / "feedback.db")}
    result = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def run_rlhf(folder: Path, *words: str) -> None:
    """Run a command of rlhf on the recipe of the first round."""
    run_command(folder, "-m", "rlhf_cli", *words, "-r", str(RECIPE), "--runs-dir", str(folder))


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the runs of the first round up to its feedback, by the recipe's own seed."""
    folder = tmp_path_factory.mktemp("runs")
    if finished := os.environ.get(FINISHED_DEMO):
        for stage in STAGES:
            shutil.copytree(Path(finished) / "demo" / stage, folder / "demo" / stage, symlinks=True)
        return folder
    run_rlhf(folder, "run", "pretrain", "sft", "sample")
    run_rlhf(folder, "annotate", "import")
    run_command(folder, str(DEMO / "annotators.py"), "-r", str(RECIPE))
    run_rlhf(folder, "annotate", "export")
    return folder


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_first_round_with_other_seeds_passes_its_gates(runs_dir: Path, seed: int) -> None:
    run_rlhf(runs_dir, "run", "reward", "ppo", "eval", "--set", f"seed={seed}")
