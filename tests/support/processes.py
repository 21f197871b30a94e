"""Start `rlhf` as a process, and a project whose stages run in two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.stage_harness import WORDS

RECIPE = """
name: t
base: {{model: {base}}}
adapter: {{rank: 4, alpha: 8}}
data: {{sft: {{path: sft.jsonl}}, prompts: {{path: sft.jsonl}}, pretrain: {{path: text.txt, eval_fraction: 0.2}}}}
launch: {{processes: 2}}
pretrain: {{max_steps: 2, batch_size: 8, micro_batch_size: 4, max_length: 16}}
sft: {{max_steps: 3, batch_size: 8, micro_batch_size: 4, max_length: 64, learning_rate: 1.0e-2}}
ppo:
  start: base
  reward: [{{python: judge.py:length}}]
  iterations: 2
  rollout_batch_size: 8
  minibatches: 2
  max_new_tokens: 6
"""
JUDGE = """
import os, time

def length(completions, **_):
    if os.environ.get("BROKEN_RANK") == os.environ.get("RANK"):
        raise KeyError("a word")
    time.sleep(float(os.environ.get("SLOW", "0")))
    return [float(len(text)) for text in completions]
"""


@pytest.fixture
def launch_project(tmp_path: Path, tiny_base: Path) -> Path:
    """Write a recipe with `launch.processes: 2` for sft and ppo, and its data. Return its folder."""
    rows = [{"prompt": f"{a} and", "completion": f" {b} {a}"} for a in WORDS for b in WORDS]
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "text.txt").write_text(
        "\n\n".join(f"{a} and {b} {a} {i}" for i in range(8) for a in WORDS for b in WORDS)
    )
    (tmp_path / "judge.py").write_text(JUDGE)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(base=tiny_base))
    return tmp_path


def start_rlhf(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start `rlhf <arguments> -r recipe.yaml --json` in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", "rlhf_cli", *arguments, "-r", "recipe.yaml", "--json"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], bool], *, seconds: float = 100) -> None:
    """Wait until `condition` holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def count_lines(path: Path) -> int:
    """Return the number of lines of a file; 0 if it does not exist."""
    return len(path.read_text().splitlines()) if path.exists() else 0


def logged_values(run: Path, name: str) -> list[float]:
    """Return one metric of each logged step."""
    return [json.loads(line)[name] for line in (run / "metrics.jsonl").read_text().splitlines()]
