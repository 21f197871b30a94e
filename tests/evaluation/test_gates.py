"""A gate's verdict, and what is said of a metric that no evaluation gives."""

from __future__ import annotations

import math

import pytest

from rlhf_cli.errors import RecipeError
from rlhf_cli.evaluation.gates import judge
from rlhf_cli.recipe.schema import Gate

METRICS = {"win_rate": 0.61, "reward.accuracy": 0.7, "kl": 4.0}


@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        (Gate(metric="win_rate", min=0.55), True),
        (Gate(metric="win_rate", min=0.61), True),
        (Gate(metric="win_rate", min=0.62), False),
        (Gate(metric="kl", max=4.0), True),
        (Gate(metric="kl", max=3.9), False),
        (Gate(metric="kl", min=1.0, max=3.0), False),
        (Gate(metric="kl", min=5.0, max=6.0), False),
        (Gate(metric="kl", min=1.0, max=6.0), True),
    ],
)
def test_a_gate_passes_within_its_bounds(gate: Gate, passed: bool) -> None:
    (verdict,) = judge([gate], METRICS)
    assert verdict.passed is passed
    assert verdict.value == METRICS[gate.metric]
    assert verdict.text.startswith("pass" if passed else "FAIL")


def test_the_verdict_says_the_value_and_the_bound() -> None:
    (verdict,) = judge([Gate(metric="win_rate", min=0.65)], METRICS)
    assert verdict.text == "FAIL  win_rate = 0.61, wanted at least 0.65"


def test_a_bound_of_zero_is_a_bound() -> None:
    (verdict,) = judge([Gate(metric="kl", max=0.0)], METRICS)
    assert not verdict.passed


def test_what_is_not_a_number_passes_no_gate() -> None:
    (verdict,) = judge([Gate(metric="kl", max=9.0)], {"kl": math.nan})
    assert not verdict.passed


def test_all_unknown_metrics_are_told_at_once_with_the_nearest_names() -> None:
    gates = [Gate(metric="winrate", min=0.5), Gate(metric="kl", max=1), Gate(metric="accuracy", min=0.5)]
    with pytest.raises(RecipeError) as caught:
        judge(gates, METRICS)
    first, second = caught.value.issues
    assert "winrate" in first.message
    assert "win_rate" in first.hint
    assert first.location == "eval.gates.0.metric"
    assert "reward.accuracy" in second.hint
    assert second.location == "eval.gates.2.metric"


def test_a_name_like_no_other_gets_the_list() -> None:
    with pytest.raises(RecipeError, match=r"kl, reward\.accuracy, win_rate"):
        judge([Gate(metric="zzzzzz", min=0.5)], METRICS)
