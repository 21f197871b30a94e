"""Every way in which training fails, through the command: exit code 7, the location, the hint, and what was saved.

Signals and exit code 75 are tested in test_resume.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.command import Rlhf
from tests.support.reward_server import Server

REWARD = """
calls = 0

def score(completions, **_):
    global calls
    calls += 1
    if calls < 3:  # the sample prompts, and the first iteration
        return [0.0 for _ in completions]
    {body}
"""
PPO = ["--set", "ppo.iterations=4", "--set", "ppo.reward=[{python: judge.py:score}]", "--set", "ppo.save_every=99"]


def failed_training(rlhf: Rlhf, stage: str, *words: str) -> dict[str, str]:
    """Return the only issue of a stage that fails with exit code 7 and leaves an incomplete run."""
    result = rlhf(stage, "-r", "r.yaml", *words, "--json")
    assert result.code == 7, result.err
    assert "Traceback" not in result.err
    (listed,) = rlhf("runs", "list", "--json").json["runs"]
    assert listed["state"] == "incomplete"
    assert not Path(f"runs/bot/{stage}/latest").exists()
    return result.issue


@pytest.mark.parametrize(
    ("body", "code", "pattern"),
    [
        ("raise KeyError('a word')", "training.reward-raised", r"judge\.py:9 .*KeyError: 'a word'"),
        ("return [1.0]*99", "training.invalid-reward", r"judge\.py.* 99\D.* 1\b"),
        ("return ['good' for _ in completions]", "training.invalid-reward", r"judge\.py.*'good'"),
        ("return [float('nan') for _ in completions]", "training.non-finite", r"ppo\.reward.*nan"),
        ("return [float('inf') for _ in completions]", "training.non-finite", r"ppo\.reward.*inf"),
        ("return None", "training.invalid-reward", r"judge\.py.*None"),
    ],
    ids=["raises", "wrong length", "not a number", "nan", "inf", "None"],
)
@pytest.mark.usefixtures("base")
def test_reward_that_fails_during_training_leaves_the_last_policy(
    rlhf: Rlhf, body: str, code: str, pattern: str
) -> None:
    Path("judge.py").write_text(REWARD.format(body=body))
    issue = failed_training(rlhf, "ppo", *PPO)
    text = f"{issue['location']}  {issue['message']}  {issue['hint']}"
    assert issue["code"] == code, text
    assert re.search(pattern, text), text
    assert "iteration 2" in text
    saved = re.search(r"(\S+/checkpoints/step-\d+)", text)
    assert saved is not None, text
    assert (Path(saved[1]) / "model" / "adapter_model.safetensors").is_file()
    assert rlhf("runs", "verify").code == 0
    # The checkpoint is a policy like any other.
    assert rlhf("export", "-r", "r.yaml", "--set", f"export.of={saved[1]}").code == 0


@pytest.mark.usefixtures("base")
def test_http_reward_with_invalid_response_exits_7_and_names_the_url(rlhf: Rlhf, server: Server) -> None:
    server.replies = [(200, b"oops", {})]
    result = rlhf("ppo", "-r", "r.yaml", "--set", f"ppo.reward=[{{http: {server.url}}}]", "--json")
    assert result.code == 7
    assert result.issue["code"] == "training.invalid-reward"
    assert server.url in result.issue["location"] + result.issue["message"]


@pytest.mark.parametrize("stage", ["sft", "reward"])
@pytest.mark.usefixtures("base")
def test_loss_or_gradient_that_is_not_finite_exits_7_with_step_and_row(rlhf: Rlhf, stage: str) -> None:
    rates = ["--set", f"{stage}.learning_rate=1e38", "--set", f"{stage}.max_steps=6"]
    issue = failed_training(rlhf, stage, *rates, "--set", f"{stage}.trainer={{max_grad_norm: 0.0}}")
    assert issue["code"] == "training.non-finite"
    assert re.search(r"(loss|grad_norm) is (nan|inf) at step \d+.*“", issue["message"]), issue
    assert "earning rate" in issue["hint"]
    rows = [json.loads(line) for line in Path(f"runs/bot/{stage}/v0001/metrics.jsonl").read_text().splitlines()]
    assert any(row[name] is None for row in rows[-1:] for name in ("loss", "grad_norm"))


@pytest.mark.usefixtures("base")
def test_policy_over_the_kl_limit_exits_7_and_names_its_checkpoint(rlhf: Rlhf) -> None:
    Path("judge.py").write_text("def score(completions, **_):\n    return [float(len(c)) for c in completions]\n")
    issue = failed_training(rlhf, "ppo", *PPO, "--set", "ppo.kl.abort=0.01", "--set", "ppo.learning_rate=0.3")
    assert issue["code"] == "training.kl-limit"
    assert "ppo.kl.abort" in issue["location"] + issue["message"]
    assert "kl.coef" in issue["hint"]
    assert "/checkpoints/step-" in issue["message"] + issue["hint"]
