"""Each way in which training itself goes wrong, through the command: exit code 7, what and where, the hint, and what is
left to go on from. (Signals and their 75: test_resume.)"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.command import Rlhf
from tests.support.reward_server import Server

from .test_catalogue_model import base as base  # a small recipe for every stage

JUDGE = """
asked = 0

def says(completions, **_):
    global asked
    asked += 1
    if asked < 3:  # the watched prompts, and the first iteration
        return [0.0 for _ in completions]
    {body}
"""
PPO = ["--set", "ppo.iterations=4", "--set", "ppo.reward=[{python: judge.py:says}]", "--set", "ppo.save_every=99"]


def diverged(rlhf: Rlhf, stage: str, *words: str) -> str:
    """The one issue of a stage that ends with 7: where, what, hint."""
    ended = rlhf(stage, "-r", "r.yaml", *words, "--json")
    assert ended.code == 7, ended.err
    assert "Traceback" not in ended.err
    (issue,) = ended.json["issues"]
    (listed,) = rlhf("runs", "list", "--json").json["runs"]
    assert listed["state"] == "incomplete"
    assert not Path(f"runs/bot/{stage}/latest").exists()
    return f"{issue['location']}  {issue['message']}  {issue['hint']}"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise KeyError('a word')", r"judge\.py:9 .*KeyError: 'a word'"),
        ("return [1.0]*99", r"judge\.py.* 99 .* 1 "),
        ("return ['good' for _ in completions]", r"judge\.py.*'good'"),
        ("return [float('nan') for _ in completions]", r"ppo\.reward says .* is nan"),
        ("return [float('inf') for _ in completions]", r"ppo\.reward says .* is inf"),
        ("return None", r"judge\.py.*None"),
    ],
    ids=["raises", "wrong length", "no number", "nan", "inf", "nothing"],
)
@pytest.mark.usefixtures("base")
def test_a_reward_that_fails_in_the_middle_leaves_the_last_good_policy(rlhf: Rlhf, body: str, says: str) -> None:
    Path("judge.py").write_text(JUDGE.format(body=body))
    found = diverged(rlhf, "ppo", *PPO)
    assert re.search(says, found), found
    assert "iteration 2" in found
    named = re.search(r"The last good policy is in (\S+step-\d+)\.", found)
    assert named is not None
    assert (Path(named[1]) / "model" / "adapter_model.safetensors").is_file()
    assert rlhf("runs", "verify").code == 0
    assert rlhf("export", "-r", "r.yaml", "--set", f"export.of={named[1]}").code == 0  # it is a policy as any other


@pytest.mark.usefixtures("base")
def test_a_served_reward_that_answers_rubbish(rlhf: Rlhf, server: Server) -> None:
    server.replies = [(200, b"oops", {})]
    found = rlhf("ppo", "-r", "r.yaml", "--set", f"ppo.reward=[{{http: {server.url}}}]", "--json")
    (issue,) = found.json["issues"]
    assert found.code == 7
    assert server.url in issue["message"]
    assert "not JSON" in issue["message"]


@pytest.mark.parametrize("stage", ["sft", "reward"])
@pytest.mark.usefixtures("base")
def test_a_loss_or_gradient_that_is_no_number(rlhf: Rlhf, stage: str) -> None:
    rates = ["--set", f"{stage}.learning_rate=1e38", "--set", f"{stage}.max_steps=6"]
    found = diverged(rlhf, stage, *rates, "--set", f"{stage}.trainer={{max_grad_norm: 0.0}}")
    assert re.search(r"(loss|grad_norm) is (nan|inf) at step \d+, on “", found), found
    assert "Lower the learning rate" in found
    rows = [json.loads(line) for line in Path(f"runs/bot/{stage}/v0001/metrics.jsonl").read_text().splitlines()]
    assert any(row[name] is None for row in rows[-1:] for name in ("loss", "grad_norm"))


@pytest.mark.usefixtures("base")
def test_a_policy_that_runs_away(rlhf: Rlhf) -> None:
    Path("judge.py").write_text("def says(completions, **_):\n    return [float(len(c)) for c in completions]\n")
    found = diverged(rlhf, "ppo", *PPO, "--set", "ppo.kl.abort=0.01", "--set", "ppo.learning_rate=0.3")
    assert "ppo.kl.abort" in found
    assert "Raise kl.coef" in found
    assert "The last good policy is in" in found
