"""`launch.processes`: one command, several processes, one run; gloo on a CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

WORDS = ["red", "blue", "cat", "dog", "sun", "tree"]
RECIPE = """
name: t
base: {{model: {base}}}
adapter: {{rank: 4, alpha: 8}}
data: {{sft: {{path: sft.jsonl}}, prompts: {{path: sft.jsonl}}}}
launch: {{processes: 2}}
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
def folder(tmp_path: Path, tiny_base: Path) -> Path:
    rows = [{"prompt": f"{a} and", "completion": f" {b} {a}"} for a in WORDS for b in WORDS]
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "judge.py").write_text(JUDGE)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(base=tiny_base))
    return tmp_path


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rlhf_cli", *arguments, "-r", "recipe.yaml", "--json"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def losses(run: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_train_on_the_batch_of_one(folder: Path) -> None:
    """Each takes half of it; one run is made, and one object told."""
    for arguments in (["sft", "--set", "launch.processes=1"], ["sft"]):
        out, told = (process := start(folder, *arguments)).communicate(timeout=200)
        assert process.returncode == 0, told
        assert json.loads(out)["status"] == "ok"
    runs = folder / "runs/t/sft"
    assert sorted(path.name for path in runs.iterdir()) == ["latest", "v0001", "v0002"]
    assert losses(runs / "v0002", "loss") == pytest.approx(losses(runs / "v0001", "loss"), rel=1e-4)
    assert losses(runs / "v0001", "num_tokens") == losses(runs / "v0002", "num_tokens")


def test_a_base_that_is_split_trains_as_a_whole_one(folder: Path) -> None:
    """The same command with `strategy: fsdp`: PPO's answers end where they end, and no process waits for ever."""
    answers = ["ppo.stop=[e]", "ppo.max_new_tokens=24", "ppo.micro_batch_tokens=64", "ppo.learning_rate=1.0e-3"]
    sets = [word for setting in answers for word in ("--set", setting)]
    for stage, *words in (["sft"], ["ppo", *sets]):
        for strategy in ("ddp", "fsdp"):
            process = start(folder, stage, *words, "--set", f"launch.strategy={strategy}")
            out, told = process.communicate(timeout=200)
            assert process.returncode == 0, told
            if stage == "sft":
                assert json.loads(out)["metrics"]["sft.nll"] > 0  # by all processes, after training
    for stage, names in (("sft", ("loss", "grad_norm")), ("ppo", ("reward", "policy_loss", "value_loss", "kl"))):
        whole, split = (folder / "runs/t" / stage / version for version in ("v0001", "v0002"))
        for name in names:
            assert losses(split, name) == pytest.approx(losses(whole, name), rel=1e-4, abs=1e-6), name
    assert losses(split, "truncation_rate")[0] < 1  # some end early
    assert len(set(losses(split, "response_length"))) > 1


def test_a_failure_in_one_process_ends_all_with_its_message_and_code(folder: Path) -> None:
    process = start(folder, "ppo", BROKEN_RANK="1")
    _, told = process.communicate(timeout=200)
    assert process.returncode == 7, told
    assert told.count("KeyError: 'a word'") == 1
    assert "Traceback" not in told
    assert "bug" not in told


def test_a_signal_stops_all_at_a_checkpoint_and_resume_goes_on(folder: Path) -> None:
    process = start(folder, "ppo", "--set", "ppo.iterations=1000", SLOW="0.2")
    journal = folder / "runs/t/ppo/v0001/metrics.jsonl"
    deadline = time.monotonic() + 100
    while not journal.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=100)
    assert process.returncode == 75, told
    assert told.count("--resume") == 1
    done = len(losses(journal.parent, "reward"))
    again = start(folder, "ppo", "--set", "ppo.iterations=1000", "--resume", BROKEN_RANK="0")
    _, told = again.communicate(timeout=200)
    assert again.returncode == 7, told  # it went on, into the broken judge
    assert len(losses(journal.parent, "reward")) == done
    assert f"after step {done}" in told


def test_sft_of_two_processes_resumes_exactly_with_each_ones_own_dropout(folder: Path) -> None:
    words = ["sft", "--set", "sft.max_steps=40", "--set", "adapter.dropout=0.2"]
    whole = start(folder, *words)
    _, told = whole.communicate(timeout=200)
    assert whole.returncode == 0, told
    process = start(folder, *words)
    runs = folder / "runs/t/sft"
    journal = runs / "v0002/metrics.jsonl"
    deadline = time.monotonic() + 100
    while (not journal.exists() or len(journal.read_text().splitlines()) < 3) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=100)
    assert process.returncode == 75, told
    again = start(folder, *words, "--resume")
    _, told = again.communicate(timeout=200)
    assert again.returncode == 0, told
    for name in ("loss", "grad_norm", "num_tokens", "epoch"):
        assert losses(runs / "v0001", name) == losses(runs / "v0002", name)
    files = [json.loads((runs / run / "manifest.json").read_text())["files"] for run in ("v0001", "v0002")]
    assert files[0]["adapter_model.safetensors"] == files[1]["adapter_model.safetensors"]
