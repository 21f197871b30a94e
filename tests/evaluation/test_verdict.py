"""The verdict: what an evaluation shows, in one sentence."""

from __future__ import annotations

import pytest

from rlhf_cli.evaluation.statistics import wilson
from rlhf_cli.evaluation.verdict import Models, decide


def win_rate(wins: float, n: int) -> dict[str, float]:
    """Return the metrics of a win rate."""
    found = wilson(wins, n)
    return {"win_rate": found.value, "win_rate.low": found.low, "win_rate.high": found.high, "win_rate.n": n}


def function(name: str, baseline: float, candidate: float, margin: float) -> dict[str, float]:
    """Return the metrics of a Python function whose gain is known up to `margin`."""
    gain = candidate - baseline
    interval = {f"{name}.gain.low": gain - margin, f"{name}.gain.high": gain + margin}
    return {name: candidate, f"{name}.baseline": baseline, f"{name}.gain": gain, **interval}


def models(*functions: str, optimized: tuple[str, ...] = (), reward: str | None = "reward@v0001") -> Models:
    """Return the models ppo and sft."""
    return Models("ppo", "sft", reward, functions, optimized)


@pytest.mark.parametrize(
    ("wins", "outcome", "start"),
    [
        (35.5, "better", "ppo beats sft: preferred on 68% [55, 79] of 52 prompts by the reward model reward@v0001."),
        (16.5, "worse", "ppo loses to sft: preferred on 32% [21, 45]"),
        (30.0, "unclear", "no clear difference between ppo and sft: preferred on 58% [44, 70]"),
    ],
)
def test_outcome_follows_interval_of_win_rate(wins: float, outcome: str, start: str) -> None:
    verdict = decide(win_rate(wins, 52), models())
    assert verdict.outcome == outcome
    assert verdict.text.startswith(start)
    assert verdict.text.startswith(verdict.headline)
    assert not verdict.warnings


def test_accuracy_of_reward_model_is_shown_beside_that_of_a_person() -> None:
    metrics = win_rate(35.5, 52)
    for name, found in (("reward.accuracy", wilson(70, 100)), ("reward.ceiling", wilson(160, 200))):
        metrics |= {name: found.value, f"{name}.low": found.low, f"{name}.high": found.high, f"{name}.n": found.n}
    text = decide(metrics, models()).text
    own = "the reward model reward@v0001 is right on 70% [60, 78] of 100 held-out pairs"
    assert text.endswith(f"{own}, and a person on 80% [74, 85].")


def test_optimized_reward_model_is_named_as_such_with_a_warning() -> None:
    verdict = decide(win_rate(35.5, 52), models(optimized=("reward@v0001",)))
    assert verdict.text == (
        "ppo beats sft: preferred on 68% [55, 79] of 52 prompts by the reward model reward@v0001 "
        "that it was trained against."
    )
    (warning,) = verdict.warnings
    assert warning.startswith("ppo was trained to maximize reward@v0001")


@pytest.mark.parametrize(
    ("candidate", "outcome", "change", "hacked"),
    [
        (0.64, "better", "higher in truth 0.45 → 0.64 [+0.14, +0.24]", False),
        (0.15, "worse", "lower in truth 0.45 → 0.15 [-0.35, -0.25]", True),
        (0.46, "unclear", "no clear change in truth 0.45 → 0.46 [-0.04, +0.06]", False),
    ],
)
def test_independent_function_decides_over_optimized_reward(
    candidate: float, outcome: str, change: str, hacked: bool
) -> None:
    metrics = win_rate(51, 52) | function("truth", 0.45, candidate, 0.05)
    verdict = decide(metrics, models("truth", optimized=("reward@v0001",)))
    assert verdict.outcome == outcome
    assert f"; {change}." in verdict.text
    assert [("hacking" in text) for text in verdict.warnings] == ([True] if hacked else [])


def test_function_that_was_optimized_is_not_independent() -> None:
    metrics = win_rate(51, 52) | function("brevity", 0.1, 0.9, 0.05)
    verdict = decide(metrics, models("brevity", optimized=("reward@v0001", "brevity")))
    assert verdict.outcome == "better"
    assert verdict.warnings[0].startswith("ppo was trained to maximize reward@v0001 and brevity")
    assert "higher in brevity 0.1 → 0.9 [+0.75, +0.85], which it was trained to maximize" in verdict.text


def test_opposite_scores_give_mixed_result_and_are_grouped() -> None:
    metrics = function("polite", 0.2, 0.4, 0.1) | function("correct", 0.6, 0.3, 0.1) | function("safe", 1, 1, 0.1)
    verdict = decide(metrics, models("polite", "correct", "safe", reward=None))
    assert verdict.outcome == "mixed"
    assert verdict.text == (
        "mixed result of ppo compared with sft: higher in polite 0.2 → 0.4 [+0.1, +0.3]; "
        "lower in correct 0.6 → 0.3 [-0.4, -0.2]; no clear change in safe 1 → 1 [-0.1, +0.1]."
    )


def test_regressions_beyond_tolerance_are_listed() -> None:
    metrics = win_rate(40, 52) | {"sft.nll": 0.835, "sft.nll.baseline": 0.445}
    metrics |= {"truncation_rate": 0.3, "truncation_rate.baseline": 0.25}  # within the tolerance of 0.1
    metrics |= {"distinct_2": 0.2, "distinct_2.baseline": 0.5}  # higher is better
    verdict = decide(metrics, models())
    assert list(verdict.regressions) == ["sft.nll", "distinct_2"]
    assert verdict.text.endswith("; worse in sft.nll 0.445 → 0.835, distinct_2 0.5 → 0.2.")


def test_improved_metric_is_no_regression() -> None:
    metrics = win_rate(40, 52) | {"sft.nll": 0.445, "sft.nll.baseline": 0.835}
    assert decide(metrics, models()).regressions == []


def test_evaluation_without_baseline_or_score_is_not_compared() -> None:
    verdict = decide({"policy.reward": 1.0}, Models("ppo", None, "reward", (), ()))
    assert (verdict.outcome, verdict.text) == ("not compared", "ppo was not compared with a baseline by any score.")
    verdict = decide({"sft.nll": 0.9, "sft.nll.baseline": 0.5}, models(reward=None))
    assert verdict.outcome == "not compared"
    assert verdict.regressions == ["sft.nll"]


def test_judge_decides_like_a_reward_model_and_is_named() -> None:
    found = {name.replace("win_rate", "judge.win_rate"): value for name, value in win_rate(35.5, 52).items()}
    name = "the judge m (agrees with people on 81% [76, 85] of 200 pairs)"
    verdict = decide(found, Models("ppo", "sft", None, (), (), {"judge.win_rate": name}))
    assert verdict.outcome == "better"
    assert verdict.text == f"ppo beats sft: preferred on 68% [55, 79] of 52 prompts by {name}."
    assert not verdict.warnings
    (warning,) = decide(found, Models("ppo", "sft", None, (), (name,), {"judge.win_rate": name})).warnings
    assert warning.startswith(f"ppo was trained to maximize {name}")


def test_judge_and_reward_model_that_disagree_are_mixed() -> None:
    found = {name.replace("win_rate", "judge.win_rate"): value for name, value in win_rate(10, 52).items()}
    compared = Models("ppo", "sft", "reward@v0001", (), (), {"judge.win_rate": "the judge m"})
    assert decide({**found, **win_rate(42, 52)}, compared).outcome == "mixed"
