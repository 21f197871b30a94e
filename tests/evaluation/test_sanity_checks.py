"""Warnings about metrics, with values worked by hand."""

from __future__ import annotations

import pytest

from rlhf_cli.evaluation.comparison import preference_accuracy
from rlhf_cli.evaluation.measurements import PreferenceMargins
from rlhf_cli.evaluation.metrics import compute
from rlhf_cli.evaluation.preference_metrics import PREFERENCE_METRICS
from rlhf_cli.evaluation.sanity_checks import CHECKS, warnings_of


def margins(right: int, wrong: int, *, longer: int, ties: int = 0) -> dict[str, float]:
    """Return the metrics of pairs of which `right` are ordered right and `longer` have the longer completion chosen."""
    scores = [1.0] * right + [-1.0] * wrong + [0.0] * ties
    lengths = [1.0] * longer + [-1.0] * (len(scores) - longer)
    return compute(PREFERENCE_METRICS, "preferences", PreferenceMargins(scores, lengths))


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        (24, 16, "not clearly better than chance"),  # Wilson: 0.6 [0.446, 0.737] contains 0.5
        (28, 12, None),  # 0.7 [0.546, 0.819]
        (12, 28, "below chance"),  # 0.3 [0.181, 0.454]
        (1, 1, "not clearly better than chance"),  # 0.5 [0.095, 0.905]
    ],
)
def test_accuracy_whose_interval_includes_chance_is_warned_of(right: int, wrong: int, words: str | None) -> None:
    metrics = margins(right, wrong, longer=(right + wrong) // 2)  # length is no better than chance
    found = warnings_of(metrics)
    assert len(found) == (words is not None)
    assert words is None or words in found[0]


@pytest.mark.parametrize(
    ("longer", "word"),
    [
        (30, "longer"),  # of 40 pairs: always preferring the longer one is right in 75%, the reward model in 70%
        (28, "longer"),  # equally accurate
        (26, None),
        (10, "shorter"),  # 1 - 10/40 = 75%
        (14, None),
    ],
)
def test_accuracy_not_above_length_baseline_is_warned_of(longer: int, word: str | None) -> None:
    found = warnings_of(margins(28, 12, longer=longer))
    assert len(found) == (word is not None)
    assert word is None or f"always preferring the {word} completion" in found[0]


def test_reward_model_without_any_margin_is_warned_of() -> None:
    assert preference_accuracy(PreferenceMargins([0.0] * 8, [1.0] * 8)).low <= 0.5
    found = warnings_of(margins(0, 0, longer=4, ties=8))
    assert any("every pair the same score" in text for text in found)
    symmetric = warnings_of(margins(1, 1, longer=1, ties=2))  # a mean margin of 0, but not equal scores
    assert not any("every pair the same score" in text for text in symmetric)


@pytest.mark.parametrize(
    ("kl", "low", "high", "warned"), [(0.3, 0, 0, True), (0.3, 0, 0.1, False), (0.3, 0.2, 0.2, False), (0, 0, 0, False)]
)
def test_score_that_no_prompt_changes_is_warned_of(kl: float, low: float, high: float, warned: bool) -> None:
    for name in ("policy.reward", "tone"):
        gain = "policy.reward_gain" if name == "policy.reward" else "tone.gain"
        found = warnings_of({"kl": kl, gain: low, f"{gain}.low": low, f"{gain}.high": high})
        assert [text.rpartition(": ")[2] for text in found] == ([name] if warned else [])


@pytest.mark.parametrize("name", ["truncation_rate", "truncation_rate.baseline", "ppo.truncation_rate"])
def test_truncation_near_one_is_warned_of(name: str) -> None:
    assert warnings_of({name: 0.89}) == []
    (text,) = warnings_of({name: 0.9})
    assert text.startswith(f"{name} 0.9:")


def test_metrics_without_problem_have_no_warning() -> None:
    assert warnings_of({}) == []
    assert warnings_of(margins(30, 10, longer=20) | {"truncation_rate": 0.1, "kl": 0.2}) == []
    assert len(CHECKS) == 5
