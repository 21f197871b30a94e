"""What metrics are computed from: one value per row, as measured by the models. No model and no arithmetic here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from rlhf_cli.evaluation.slices import is_of_held_out_annotators, slices_of


class CompletionLoss(NamedTuple):
    """One model's loss on the completions of held-out demonstrations.

    Attributes:
        nll: Sum of the negative log-likelihood over all completion tokens, in nats.
        tokens: Number of completion tokens.
    """

    nll: float
    tokens: int


class Ceiling(NamedTuple):
    """How often a person agrees with the labels that others gave.

    Attributes:
        agreement: Fraction of the votes that agree.
        votes: Number of votes.
    """

    agreement: float
    votes: int


class PreferenceMargins(NamedTuple):
    """A reward model's scores of held-out preferences. Each list has one item per pair.

    Attributes:
        margins: r_chosen - r_rejected.
        length_differences: Tokens of the chosen completion minus those of the rejected one.
        slices: The slices of each pair; empty if no pair has any.
        held_out_annotators: r_chosen - r_rejected of each vote of the annotators whose votes became no labels.
        ceiling: How often people agree with the labels; None if it is not known.
    """

    margins: Sequence[float]
    length_differences: Sequence[float]
    slices: Sequence[Collection[str]] = ()
    held_out_annotators: Sequence[float] = ()
    ceiling: Ceiling | None = None

    @classmethod
    def from_rows(
        cls,
        margins: Sequence[float],
        length_differences: Sequence[float],
        columns: Sequence[Mapping[str, Any]],
        ceiling: Ceiling | None,
    ) -> PreferenceMargins:
        """Return the measurement, with the votes of held-out annotators kept apart from the labels.

        Args:
            margins: r_chosen - r_rejected of each row.
            length_differences: The difference of the lengths of each row.
            columns: The columns of each row beside prompt, chosen and rejected.
            ceiling: How often people agree with the labels; None if it is not known.
        """
        is_vote = [is_of_held_out_annotators(row) for row in columns]
        votes = [margin for margin, vote in zip(margins, is_vote, strict=True) if vote]
        # Without any label the votes are all that can be measured.
        kept = [index for index, vote in enumerate(is_vote) if not vote] or list(range(len(margins)))
        slices = [slices_of(columns[index]) for index in kept]
        return cls(
            [margins[index] for index in kept],
            [length_differences[index] for index in kept],
            slices,
            votes,
            ceiling,
        )


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
        people: Verdicts of people on the prompts that they have judged: 1 for the candidate, -1, or 0 for a tie.
    """

    candidate: ScoredCompletions
    baseline: ScoredCompletions
    log_ratios: Sequence[float]
    seed: int
    judged: JudgedPairs | None = None
    people: Sequence[float] = ()
