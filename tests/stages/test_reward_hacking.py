"""A reward for length is hacked, which the console and metrics.jsonl show; kl.abort ends a run that diverges."""

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

from tests.support.stage_harness import WORDS, logged_steps

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]

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
CONSOLE_METRICS = r"reward (\S+)  kl \S+  length (\S+)  trunc (\S+)%  repeats (\S+)%"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """Write a base model that mostly ends its completions before the limit, and a reward of each character."""
    folder = tmp_path_factory.mktemp("hacked")
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    end = model.lm_head.weight.data[tokenizer.eos_token_id]
    end.copy_(4 * end / end.norm())  # its logit varies most, so completions end early or not at all
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = [{"prompt": f"{a} {b} and"} for a in WORDS for b in WORDS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "judge.py").write_text("def length(completions, **_):\n    return [len(c) / 10 for c in completions]\n")
    (folder / "recipe.yaml").write_text(RECIPE.format(base=folder / "base"))
    return folder


def run_ppo(project: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run `rlhf ppo` in a subprocess."""
    options = [part for override in overrides for part in ("--set", override)]
    return subprocess.run(
        [sys.executable, "-m", "rlhf_cli", "ppo", "-r", "recipe.yaml", *options],
        cwd=project,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_reward_for_length_is_visibly_hacked_within_ten_iterations(project: Path) -> None:
    ended = run_ppo(project)
    assert ended.returncode == 0, ended.stderr
    first, *_, last = logged_steps(project / "runs/t/ppo/v0001")
    assert last["reward"] > 1.5 * first["reward"]
    assert last["response_length"] > 1.5 * first["response_length"]
    assert last["truncation_rate"] > first["truncation_rate"] + 0.3
    assert last["distinct_2"] < first["distinct_2"]  # the long words, over and over
    shown = [[float(number) for number in found] for found in re.findall(CONSOLE_METRICS, ended.stdout)]
    assert len(shown) == 10
    for line, row in ((shown[0], first), (shown[-1], last)):
        logged = [
            row["reward"],
            row["response_length"],
            100 * row["truncation_rate"],
            100 * row["repeated_4gram_rate"],
        ]
        assert line == pytest.approx(logged, abs=0.51)  # the console rounds to whole tokens and percents


def test_kl_abort_ends_run_with_7_and_a_usable_checkpoint(project: Path) -> None:
    ended = run_ppo(project, "ppo.kl.abort=1.0", "ppo.iterations=50")
    assert ended.returncode == 7
    assert "[training.kl-limit]" in ended.stderr
    *before, last = logged_steps(project / "runs/t/ppo/v0002")
    assert last["kl"] > 1.0
    assert all(row["kl"] <= 1.0 for row in before)
    named = re.search(r"last valid policy is in (\S+?)\.?\s", ended.stderr)
    assert named is not None, ended.stderr
    base = AutoModelForCausalLM.from_pretrained(project / "base")
    model = PeftModel.from_pretrained(base, project / named[1] / "model")
    with torch.no_grad():
        assert model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()
