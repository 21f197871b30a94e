"""Compare and rate completions by a constitution, independent of the model that answers the questions.

Every comparison is asked in both orders. A verdict that changes with the order is a tie, so a model that prefers the
first response, whatever it says, decides nothing (Zheng et al. 2023, https://arxiv.org/abs/2306.05685, section 3.4).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple, Protocol

from rlhf_cli.ai_feedback import questions
from rlhf_cli.ai_feedback.questions import Answers
from rlhf_cli.data.rows import Text
from rlhf_cli.feedback.types import Tiers
from rlhf_cli.recipe.constitution import Constitution, Principle

NAME_DIGITS = 8  # of the hash in an annotator's name


class Answerer(Protocol):
    """A model that chooses between two answers to a question.

    Attributes:
        has_weights: Whether it is a model in this process, whose weights `load` loads.
    """

    has_weights: bool

    def load(self, *, smoke: bool) -> None:
        """Load weights, if it has any; with `smoke` random ones of a tiny model."""

    def log_odds(self, asked: Sequence[str], answers: Answers) -> list[float | None]:
        """Return log(p(first answer) / p(second answer)) of each question.

        A model that only returns text gives 1 for the first answer, -1 for the second and 0 for any other reply. None
        if a question exceeds the model's context.
        """


class Pair(NamedTuple):
    """Two completions of the same prompt."""

    prompt: Text
    first: Text
    second: Text


class Verdict(NamedTuple):
    """The answers about a pair in both orders, each as the log-odds that its first completion is better."""

    shown_first: float  # the first completion was shown as A
    shown_second: float  # the first completion was shown as B

    @property
    def outcome(self) -> int:
        """1 if the first completion is better, -1 if the second is, 0 for a tie."""
        if self.shown_first > 0 and self.shown_second > 0:
            return 1
        return -1 if self.shown_first < 0 and self.shown_second < 0 else 0

    @property
    def is_consistent(self) -> bool:
        """Whether both orders gave the same completion, or both a tie."""
        return self.outcome != 0 or self.shown_first == self.shown_second == 0


class Judge:
    """A model with a constitution.

    Args:
        answerer: The model.
        constitution: The principles.
        label: What tables call the judge.
        identity: Hash of the model, or what else identifies it.
    """

    def __init__(self, answerer: Answerer, constitution: Constitution, *, label: str, identity: str) -> None:
        self.answerer, self.constitution = answerer, constitution
        self.label, self.identity = label, identity

    @property
    def has_weights(self) -> bool:
        """Whether the model is in this process."""
        return self.answerer.has_weights

    def annotator_name(self, principle: Principle) -> str:
        """Return the name under which judgments by a principle are stored. Another model or text gives another one."""
        content = "\0".join((self.identity, questions.VERSION, principle.text))
        digest = hashlib.sha256(content.encode()).hexdigest()[:NAME_DIGITS]
        return f"{self.label}/{principle.id} {digest}"

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each principle, by the name of its annotator."""
        return {self.annotator_name(principle): principle.weight for principle in self.constitution.principles}

    def compare(self, pairs: Sequence[Pair], principle: Principle) -> list[Verdict | None]:
        """Return the verdict on each pair by one principle; None if it exceeds the model's context."""
        asked = []
        for prompt, first, second in pairs:
            asked.append(questions.compare_question(principle, prompt, first, second))
            asked.append(questions.compare_question(principle, prompt, second, first))
        found = self.answerer.log_odds(asked, questions.COMPARE_ANSWERS)
        return [
            None if forward is None or backward is None else Verdict(forward, -backward)
            for forward, backward in zip(found[::2], found[1::2], strict=True)
        ]

    def outcomes(self, pairs: Sequence[Pair]) -> tuple[list[float | None], list[Verdict]]:
        """Return the weighted mean outcome of each pair over all principles, and every verdict.

        A mean above 0 says that the first completion is better; None if a question exceeds the model's context.
        """
        by_principle = [self.compare(pairs, principle) for principle in self.constitution.principles]
        weights = [principle.weight for principle in self.constitution.principles]
        means: list[float | None] = []
        for verdicts in zip(*by_principle, strict=True):
            values = [None if verdict is None else float(verdict.outcome) for verdict in verdicts]
            means.append(_weighted_mean(values, weights))
        return means, [verdict for verdicts in by_principle for verdict in verdicts if verdict is not None]

    def rate(self, prompts: Sequence[Text], completions: Sequence[Text]) -> list[float | None]:
        """Return how clearly each completion follows the principles: the weighted mean of the log-odds of Yes over No.

        None if a question exceeds the model's context.
        """
        both = list(zip(prompts, completions, strict=True))
        principles = self.constitution.principles
        asked = [questions.rate_question(p, prompt, completion) for prompt, completion in both for p in principles]
        found = self.answerer.log_odds(asked, questions.RATE_ANSWERS)
        weights, count = [principle.weight for principle in principles], len(principles)
        return [_weighted_mean(found[i * count : (i + 1) * count], weights) for i in range(len(both))]


def all_pairs(prompt: Text, completions: Sequence[Text]) -> list[Pair]:
    """Return all pairs of completions, in the order of `itertools.combinations`."""
    return [Pair(prompt, first, second) for first, second in combinations(completions, 2)]


def tiers_of(count: int, verdicts: Sequence[Verdict]) -> Tiers:
    """Return the ranking that the verdicts on all pairs imply, as tiers of indices.

    Completions are ordered by their wins, a tie counting half (Copeland's method). Equal counts share a tier, so the
    ranking is transitive even if the verdicts are not.

    Args:
        count: Number of completions.
        verdicts: The verdicts on `all_pairs`.
    """
    scores = [0.0] * count
    for (first, second), verdict in zip(combinations(range(count), 2), verdicts, strict=True):
        scores[first] += verdict.outcome / 2
        scores[second] -= verdict.outcome / 2
    levels = sorted(set(scores), reverse=True)
    return tuple(tuple(index for index in range(count) if scores[index] == level) for level in levels)


def consistency(verdicts: Sequence[Verdict]) -> float:
    """Return the fraction of verdicts that are the same in both orders. At least one verdict."""
    return sum(verdict.is_consistent for verdict in verdicts) / len(verdicts)


def _weighted_mean(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return sum(value * weight for value, weight in zip(known, weights, strict=True)) / sum(weights)
