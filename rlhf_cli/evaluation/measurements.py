"""What metrics are computed from: one value per row, as measured by the models. No model and no arithmetic here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class CompletionLoss(NamedTuple):
    """One model's loss on the completions of held-out demonstrations.

    Attributes:
        nll: Sum of the negative log-likelihood over all completion tokens, in nats.
        tokens: Number of completion tokens.
    """

    nll: float
    tokens: int


class PreferenceMargins(NamedTuple):
    """A reward model's scores of held-out preferences. Both lists have one item per pair.

    Attributes:
        margins: r_chosen - r_rejected.
        length_differences: Tokens of the chosen completion minus those of the rejected one.
    """

    margins: Sequence[float]
    length_differences: Sequence[float]


class ScoredCompletions(NamedTuple):
    """One model's completions of the held-out prompts. Each list has one item per prompt, in their order.

    Attributes:
        responses: Token ids, with the end token.
        texts: The completions as text.
        reward_scores: The reward model's scores; empty without a reward model.
        function_scores: The scores of each Python function, by its name.
        truncated: Whether the completion reached the limit on its tokens.
    """

    responses: list[list[int]]
    texts: list[str]
    reward_scores: list[float]
    function_scores: dict[str, list[float]]
    truncated: list[bool]


class JudgedPairs(NamedTuple):
    """Which of both models' completions a judge or people prefer.

    Attributes:
        outcomes: Above 0 for each prompt on which the candidate is preferred, below 0 for the baseline, 0 for a tie.
        consistency: Fraction of a judge's verdicts that are the same in both orders.
    """

    outcomes: Sequence[float]
    consistency: float = 1.0


class PairedCompletions(NamedTuple):
    """Both models' completions of the same prompts.

    Attributes:
        candidate: The candidate's completions.
        baseline: The baseline's completions.
        log_ratios: log p_candidate - log p_baseline of each of the candidate's completions, in nats.
        seed: Seed of the bootstrap.
        judged: Verdicts of the judge, or None without a judge.
    """

    candidate: ScoredCompletions
    baseline: ScoredCompletions
    log_ratios: Sequence[float]
    seed: int
    judged: JudgedPairs | None = None
