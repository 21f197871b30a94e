"""Metrics of measurements, worked out by hand."""

from __future__ import annotations

import math

import pytest

from rlhf_cli.evaluation import comparison
from rlhf_cli.evaluation.gates import evaluate_gates
from rlhf_cli.evaluation.measurements import (
    CompletionLoss,
    JudgedPairs,
    PairedCompletions,
    PreferenceMargins,
    ScoredCompletions,
)
from rlhf_cli.evaluation.metrics import COMPARISON_METRICS, COMPLETION_METRICS, compute
from rlhf_cli.evaluation.preference_metrics import PREFERENCE_METRICS
from rlhf_cli.recipe.schema import Gate

CANDIDATE = ScoredCompletions([[5, 6, 2], [5, 5, 5, 5, 5]], ["a", "b"], [1.0, 3.0], {"gold": [0.5, 1.0]}, [False, True])
BASELINE = ScoredCompletions([[7, 2], [8, 2]], ["c", "d"], [2.0, 1.0], {"gold": [0.5, 0.0]}, [False, False])
PAIR = PairedCompletions(CANDIDATE, BASELINE, [0.5, -0.1], 0, JudgedPairs([0.5, -1.0, 0.0, 1.0, 0.25], 0.75))


def test_nll_and_perplexity_are_per_token() -> None:
    loss = CompletionLoss(nll=6.0, tokens=3)
    assert comparison.nll(loss) == 2.0
    assert comparison.perplexity(loss) == math.exp(2.0)
    assert math.isfinite(comparison.perplexity(CompletionLoss(1e6, 1)))


def test_completion_metrics_of_one_side() -> None:
    metrics = [metric for metric in COMPLETION_METRICS if "functions" not in metric.needs]
    assert compute(metrics, "completions", CANDIDATE) == {
        "response_length": 4.0,
        "truncation_rate": 0.5,
        "repeated_4gram_rate": 0.5,  # 5555 twice, of two 4-grams
        "distinct_2": 3 / 6,  # 56 62 55
        "policy.reward": 2.0,
    }
    assert comparison.function_score(CANDIDATE, "gold") == 0.75


def test_win_rate_of_the_judge_counts_a_tie_as_half_a_win() -> None:
    found = comparison.judge_win_rate(PAIR)
    assert (found.value, found.n) == (3.5 / 5, 5)  # three wins, a loss and a tie
    assert comparison.judge_consistency(PAIR) == 0.75


def test_win_rate_of_people_is_over_the_prompts_that_they_judged() -> None:
    assert comparison.people_win_rate(PAIR) is None
    found = comparison.people_win_rate(PAIR._replace(people=[1.0, 0.0, 1.0, -1.0]))
    assert found is not None
    assert (found.value, found.n) == (2.5 / 4, 4)


def test_gains_are_paired_by_prompt() -> None:
    metrics = [metric for metric in COMPARISON_METRICS if "functions" not in metric.needs]
    found = compute(metrics, "comparison", PAIR)
    assert found["win_rate"] == 0.5
    assert found["win_rate.n"] == 2
    assert found["policy.reward_gain"] == pytest.approx(0.5)  # (-1 + 2) / 2
    assert (found["policy.reward_gain.low"], found["policy.reward_gain.high"]) == (-1.0, 2.0)
    assert comparison.function_gain(PAIR, "gold").value == pytest.approx(0.5)


def test_kl_is_a_mean_over_completions_or_tokens() -> None:
    assert comparison.sequence_kl(PAIR) == pytest.approx(0.2)  # (0.5 - 0.1) / 2
    assert comparison.token_kl(PAIR) == pytest.approx(0.05)  # (0.5 - 0.1) / (3 + 5)


def test_preference_accuracy_tie_is_wrong() -> None:
    found = compute(PREFERENCE_METRICS, "preferences", PreferenceMargins([1.0, 2.0, -1.0, 0.0], [3.0, -1.0, 2.0, 0.0]))
    assert found["reward.accuracy"] == 2 / 4
    assert found["reward.accuracy.n"] == 4
    assert found["reward.ties"] == 1
    assert found["reward.margin"] == 0.5
    assert found["reward.accuracy_longer"] == (2 + 0.5) / 4


def test_preference_accuracy_of_constant_scorer_fails_a_gate_at_chance() -> None:
    found = compute(PREFERENCE_METRICS, "preferences", PreferenceMargins([0.0, 0.0], [1.0, -1.0]))
    assert (found["reward.accuracy"], found["reward.accuracy.n"], found["reward.ties"]) == (0, 2, 2)
    (verdict,) = evaluate_gates([Gate(metric="reward.accuracy", min=0.5)], found)
    assert not verdict.passed
