"""The demo passes its gates whatever the seed of its reward models and its policy, from the same sft run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]

RECIPE = Path(__file__).parents[2] / "recipes" / "demo" / "recipe.yaml"


def run_demo(runs_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run stages of the demo."""
    command = [sys.executable, "-m", "rlhf_cli", "run", *words, "-r", str(RECIPE), "--runs-dir", str(runs_dir)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the demo's base model and its sft run once, with the recipe's own seed."""
    folder = tmp_path_factory.mktemp("runs")
    result = run_demo(folder, "pretrain", "sft")
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize(
    "seed", [1, 2, 3, 4, 9]
)  # 4 and 9: runs of all stages with one reward model learned to refuse every question
def test_demo_with_other_seeds_passes_its_gates(runs_dir: Path, seed: int) -> None:
    result = run_demo(runs_dir, "reward", "ppo", "eval", "--set", f"seed={seed}")
    assert result.returncode == 0, result.stdout + result.stderr
