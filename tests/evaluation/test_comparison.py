"""From answers, scores and margins to metrics, worked by hand."""

from __future__ import annotations

import pytest

from rlhf_cli.evaluation.comparison import ScoredCompletions, figures, gains, ranking

CANDIDATE = ScoredCompletions([[5, 6, 2], [5, 5, 5, 5, 5]], ["a", "b"], [1.0, 3.0], {"gold": [0.5, 1.0]}, [False, True])
BASELINE = ScoredCompletions([[7, 2], [8, 2]], ["c", "d"], [2.0, 1.0], {"gold": [0.5, 0.0]}, [False, False])


def test_figures_of_one_side() -> None:
    found = figures(CANDIDATE)
    assert found == {
        "response_length": 4.0,
        "truncation_rate": 0.5,
        "repeated_4gram_rate": 0.5,  # 5555 twice, of two 4-grams
        "distinct_2": 3 / 6,  # 56 62 55
        "policy.reward": 2.0,
        "gold": 0.75,
    }


def test_without_a_judge_there_is_no_reward() -> None:
    found = figures(CANDIDATE._replace(scores=[], judged={}))
    assert "policy.reward" not in found
    assert not any(name.startswith("win_rate") for name in gains(CANDIDATE._replace(scores=[]), BASELINE, seed=0))


def test_gains_are_paired_by_prompt() -> None:
    found = gains(CANDIDATE, BASELINE, seed=0)
    assert found["win_rate"] == 0.5
    assert found["win_rate.n"] == 2
    assert found["policy.reward_gain"] == pytest.approx(0.5)  # (-1 + 2) / 2
    assert (found["policy.reward_gain.low"], found["policy.reward_gain.high"]) == (-1.0, 2.0)
    assert found["gold.gain"] == pytest.approx(0.5)


def test_a_tie_counts_neither_for_nor_against_the_reward_model() -> None:
    found = ranking([1.0, 2.0, -1.0, 0.0], [3.0, -1.0, 2.0, 0.0])
    assert found["reward.accuracy"] == pytest.approx(2 / 3)
    assert found["reward.accuracy.n"] == 3
    assert found["reward.ties"] == 1
    assert found["reward.margin"] == 0.5
    assert found["reward.accuracy_longer"] == (2 + 0.5) / 4


def test_a_reward_model_that_ties_on_everything_has_shown_nothing() -> None:
    found = ranking([0.0, 0.0], [1.0, -1.0])
    assert (found["reward.accuracy"], found["reward.accuracy.low"], found["reward.accuracy.high"]) == (0.5, 0.0, 1.0)
    assert found["reward.accuracy.n"] == 0
