"""A reward that pays for length is seen to be hacked, on console and in the journal; kl.abort ends what runs away."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

WORDS = ["red", "blue", "cat", "dog", "sun", "tree"]
RECIPE = """
name: t
base: {{model: {base}}}
adapter: {{rank: 8, alpha: 16}}
data: {{prompts: {{path: prompts.jsonl}}}}
ppo:
  start: base
  reward: [{{python: judge.py:length}}]
  iterations: 10
  rollout_batch_size: 64
  max_new_tokens: 24
  minibatches: 2
  learning_rate: 3.0e-2
  critic: {{kind: adapter, learning_rate: 1.0e-2}}
  kl: {{coef: 0.0}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A base that mostly ends its answers before the limit, and a judge that pays for each character."""
    made = tmp_path_factory.mktemp("hacked")
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    end = model.lm_head.weight.data[tokenizer.eos_token_id]
    end.copy_(4 * end / end.norm())  # the logit that swings furthest: an end comes early, or does not come
    model.save_pretrained(made / "base")
    tokenizer.save_pretrained(made / "base")
    rows = [{"prompt": f"{a} {b} and"} for a in WORDS for b in WORDS]
    (made / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made / "judge.py").write_text("def length(completions, **_):\n    return [len(c) / 10 for c in completions]\n")
    (made / "recipe.yaml").write_text(RECIPE.format(base=made / "base"))
    return made


def ppo(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    options = [part for override in overrides for part in ("--set", override)]
    return subprocess.run(
        [sys.executable, "-m", "rlhf_cli", "ppo", "-r", "recipe.yaml", *options],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def journal(folder: Path, version: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / f"runs/t/ppo/{version}/metrics.jsonl").read_text().splitlines()]


def test_a_reward_for_length_shows_within_ten_iterations(folder: Path) -> None:
    told = ppo(folder)
    assert told.returncode == 0, told.stderr
    first, *_, last = journal(folder, "v0001")
    assert last["reward"] > 1.5 * first["reward"]
    assert last["response_length"] > 1.5 * first["response_length"]
    assert last["truncation_rate"] > first["truncation_rate"] + 0.3
    assert last["distinct_2"] < first["distinct_2"]  # the long words, over and over
    shown = [
        [float(number) for number in found]
        for found in re.findall(r"reward (\S+)  kl \S+  length (\S+)  cut (\S+)%  repeats (\S+)%", told.stdout)
    ]
    assert len(shown) == 10
    for line, row in ((shown[0], first), (shown[-1], last)):
        figures = [
            row["reward"],
            row["response_length"],
            100 * row["truncation_rate"],
            100 * row["repeated_4gram_rate"],
        ]
        assert line == pytest.approx(figures, abs=0.51)


def test_a_run_that_runs_away_ends_with_7_and_a_checkpoint_that_answers(folder: Path) -> None:
    told = ppo(folder, "ppo.kl.abort=1.0", "ppo.iterations=50")
    assert told.returncode == 7
    assert "kl.abort" in told.stderr
    *well, offending = journal(folder, "v0002")
    assert offending["kl"] > 1.0
    assert all(row["kl"] <= 1.0 for row in well)
    named = re.search(r"last good policy is in (\S+?)\.?\s*$", told.stderr)
    assert named is not None
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), Path(named[1]) / "model")
    with torch.no_grad():
        assert model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()
