"""Gates compare a metric with bounds; unknown metrics are refused with suggestions."""

from __future__ import annotations

import math

import pytest

from rlhf_cli.errors import RecipeError
from rlhf_cli.evaluation.gates import evaluate_gates, summarize
from rlhf_cli.recipe.schema import Gate
from tests.support.issues import raises_issue

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
def test_gate_passes_within_its_bounds(gate: Gate, passed: bool) -> None:
    (verdict,) = evaluate_gates([gate], METRICS)
    assert verdict.passed is passed
    assert verdict.value == METRICS[gate.metric]
    assert verdict.text.startswith("pass" if passed else "FAIL")


def test_verdict_text_holds_value_and_bound() -> None:
    (verdict,) = evaluate_gates([Gate(metric="win_rate", min=0.65)], METRICS)
    assert verdict.text == "FAIL  win_rate = 0.61, expected at least 0.65"


def test_gate_with_bound_zero_fails_above() -> None:
    (verdict,) = evaluate_gates([Gate(metric="kl", max=0.0)], METRICS)
    assert not verdict.passed


def test_gate_fails_on_nan() -> None:
    (verdict,) = evaluate_gates([Gate(metric="kl", max=9.0)], {"kl": math.nan})
    assert not verdict.passed


def test_summary_counts_gates_and_names_the_failed_ones() -> None:
    gates = [Gate(metric="win_rate", min=0.55), Gate(metric="kl", max=3.0), Gate(metric="kl", min=0.0)]
    verdicts = [verdict.as_json() for verdict in evaluate_gates(gates, METRICS)]
    assert summarize(verdicts) == "1 gate of 3 failed: kl = 4, expected at most 3"
    assert summarize(verdicts[:1]) == "1 gate passed"
    assert summarize([]) == ""


def test_unknown_metrics_raise_at_once_with_similar_names() -> None:
    gates = [Gate(metric="winrate", min=0.5), Gate(metric="kl", max=1), Gate(metric="accuracy", min=0.5)]
    with raises_issue("eval.unknown-metric", error=RecipeError) as issues:
        evaluate_gates(gates, METRICS)
    first, second = issues
    assert first.message == "unknown metric winrate; this recipe's evaluation does not compute it."
    assert first.hint == "Did you mean win_rate?"
    assert first.location == "eval.gates.0.metric"
    assert "reward.accuracy" in second.hint
    assert second.location == "eval.gates.2.metric"


def test_unknown_metric_without_similar_name_lists_all() -> None:
    with raises_issue("eval.unknown-metric") as issues:
        evaluate_gates([Gate(metric="zzzzzz", min=0.5)], METRICS)
    assert issues[0].hint == "Metrics: kl, reward.accuracy, win_rate."
