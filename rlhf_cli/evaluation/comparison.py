"""Two sides' answers to the same prompts, and the pairs that a reward model ranked, as metrics. No model here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rlhf_cli.evaluation import statistics, text

Metrics = dict[str, float]


class ScoredCompletions(NamedTuple):
    """One side's answers to the prompts, in their order; each list has one item a prompt."""

    responses: list[list[int]]  # token ids, end token included
    texts: list[str]
    scores: list[float]  # the reward model's; empty without one
    judged: dict[str, list[float]]  # function name -> its judgments
    truncated: list[bool]  # which answers ran into the limit on their length


def figures(side: ScoredCompletions) -> Metrics:
    """One side's figures, named without a side."""
    count = len(side.responses)
    found = {
        "response_length": sum(map(len, side.responses)) / count,
        "truncation_rate": sum(side.truncated) / count,
        "repeated_4gram_rate": text.repeated_ngram_rate(side.responses, 4),
        "distinct_2": text.distinct_ngram_rate(side.responses, 2),
    }
    if side.scores:
        found["policy.reward"] = sum(side.scores) / count
    return found | {name: sum(values) / count for name, values in side.judged.items()}


def gains(candidate: ScoredCompletions, baseline: ScoredCompletions, seed: int) -> Metrics:
    """`of` less `against`, paired by prompt, and how often the reward model prefers `of`."""
    pairs = {f"{name}.gain": (values, baseline.judged[name]) for name, values in candidate.judged.items()}
    metrics: Metrics = {}
    if candidate.scores:
        pairs["policy.reward_gain"] = (candidate.scores, baseline.scores)
        metrics |= statistics.win_rate(candidate.scores, baseline.scores).named("win_rate")
        metrics["win_rate.n"] = float(len(candidate.scores))
    for name, (ours, theirs) in pairs.items():
        differences = [a - b for a, b in zip(ours, theirs, strict=True)]
        metrics |= statistics.bootstrap_mean(differences, seed).named(name)
    return metrics


def ranking(margins: Sequence[float], longer: Sequence[float]) -> Metrics:
    """How often a reward model prefers what people chose, a tie counted apart.

    `margins`: r_chosen - r_rejected of each pair; `longer`: the chosen answer's length less the other's, in tokens.
    """
    decided = [margin for margin in margins if margin != 0]
    quality = statistics.calibration(margins)
    return statistics.wilson(sum(margin > 0 for margin in decided), len(decided)).named("reward.accuracy") | {
        "reward.accuracy.n": float(len(decided)),
        "reward.ties": float(len(margins) - len(decided)),
        "reward.accuracy_longer": statistics.win_rate(longer, [0.0] * len(longer)).value,
        "reward.margin": sum(margins) / len(margins),
        "reward.brier": quality.brier,
        "reward.ece": quality.ece,
    }
