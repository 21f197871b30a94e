"""Agreement of annotators on pairs of completions, strengths and ratings, overall and by slice, with intervals."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.evaluation.statistics import Interval
from rlhf_cli.feedback.quality import coefficients
from rlhf_cli.feedback.quality.coefficients import Sums, identity_weights, linear_weights
from rlhf_cli.feedback.quality.votes import (
    FIRST,
    SECOND,
    FloatArray,
    IntArray,
    Votes,
    as_table,
    count_labels,
    unique_rows,
)
from rlhf_cli.feedback.types import Item, Judgment

MIN_SLICE_ITEMS = 30  # a smaller slice is suppressed: its interval would be too wide, and it may show one person
OUTCOMES = ("agreement", "agreement_half_ties", "agreement_no_ties", "alpha", "ac1", "ac2", "kappa")
RATINGS = ("agreement", "alpha", "ac2")


class Undefined(NamedTuple):
    """Why a metric has no value."""

    reason: str


_NOT_IN_NAMES = re.compile(r"[^\w-]+")
Estimate = Interval | Undefined
TOO_FEW = Undefined("no item has two judgments that can be compared")
CONSTANT = Undefined("all labels are equal, so agreement cannot be told from chance")


@dataclass(frozen=True)
class Labels:
    """Labels of units by annotators; a unit is a pair of completions, or one completion for ratings.

    Attributes:
        item: The item of each unit. Shape: (U,)
        unit: Index of the unit of each label. Shape: (L,)
        annotator: Id of the annotator. Shape: (L,)
        value: The label, a number. Shape: (L,)
    """

    item: IntArray
    unit: IntArray
    annotator: IntArray
    value: IntArray

    @property
    def values(self) -> IntArray:
        """The labels that occur, in ascending order."""
        return np.unique(self.value)

    def of_items(self, items: Iterable[int]) -> Labels:
        """Return the labels of these items; units keep their indices."""
        is_kept = np.isin(self.item, list(items))[self.unit]
        return Labels(self.item, self.unit[is_kept], self.annotator[is_kept], self.value[is_kept])


def outcome_labels(votes: Votes) -> Labels:
    """Return -1, 0 or 1 for each vote: whether the second or the first completion is better, or neither."""
    return Labels(votes.pairs[:, 0], votes.pair, votes.annotator, votes.label - 1)


def strength_labels(judgments: Iterable[Judgment]) -> Labels:
    """Return the strengths of pairs, -3 to 3."""
    answers = ((j.item_id, 0, j.annotator_id, j.answer.strength) for j in judgments)
    return _make_labels((item, 0, person, strength) for item, _, person, strength in answers if strength is not None)


def rating_labels(judgments: Sequence[Judgment]) -> dict[str, Labels]:
    """Return the ratings of completions by each criterion, 1 to 5."""
    rows: dict[str, list[tuple[int, int, int, int]]] = {}
    for judgment in judgments:
        for completion, ratings in judgment.answer.criteria.items():
            for criterion, rating in ratings.items():
                row = (judgment.item_id, completion, judgment.annotator_id, rating)
                rows.setdefault(criterion, []).append(row)
    return {criterion: _make_labels(rows[criterion]) for criterion in sorted(rows)}


def _make_labels(rows: Iterable[tuple[int, int, int, int]]) -> Labels:
    table = as_table(rows, 4)
    units, unit = unique_rows(table[:, :2])
    return Labels(units[:, 0], unit, table[:, 2], table[:, 3])


def before_disagreement(judgments: Sequence[Judgment], votes: Votes, overlap: int | None) -> NDArray[np.bool_]:
    """Return which judgments every item gets, whether or not annotators disagree about it.

    Items get more than `overlap` judgments if annotators disagree. Counting these too would overstate agreement,
    because items on which the first annotators agree by chance are not asked about again. But if most of those have
    more judgments too, as in an import, then the number of judgments does not depend on agreement, and all count.

    Args:
        judgments: Judgments in the order in which they were made.
        votes: Their votes.
        overlap: Number of judgments that every item gets; None: all count.
    """
    total: Counter[int] = Counter()
    is_early = np.ones(len(judgments), dtype=bool)
    if overlap is None:
        return is_early
    for index, judgment in enumerate(judgments):
        total[judgment.item_id] += 1
        is_early[index] = total[judgment.item_id] <= overlap
    counts = count_labels(votes.select(is_early[votes.judgment]))
    disputed = set(votes.pairs[(counts[:, FIRST] > 0) & (counts[:, SECOND] > 0), 0].tolist())
    agreed = [number for item, number in total.items() if item not in disputed and number >= overlap]
    depends_on_agreement = 2 * sum(number > overlap for number in agreed) <= len(agreed)
    return is_early if depends_on_agreement else np.ones_like(is_early)


def measure_outcomes(labels: Labels, values: IntArray, *, seed: int = 0) -> dict[str, Estimate]:
    """Return the metrics OUTCOMES of labels -1, 0 and 1.

    agreement: equal labels, so two ties agree, and a tie agrees with nothing else. agreement_half_ties: a tie and
    another label agree by half (WebGPT). agreement_no_ties: of labels that are no ties. kappa is Cohen's if two
    annotators judged, and Fleiss' if more did.

    Args:
        labels: The labels.
        values: The labels that occur in all slices, so that chance is the same in each.
        seed: Seed of the bootstrap.
    """
    identity, linear = identity_weights(values.astype(float)), linear_weights(values.astype(float))
    statistics: dict[str, Callable[[Sums], FloatArray]] = {
        "agreement": partial(coefficients.raw_agreement, weights=identity),
        "agreement_half_ties": partial(coefficients.raw_agreement, weights=_half_ties(values)),
        "alpha": coefficients.krippendorff_alpha,
        "ac1": partial(coefficients.gwet_ac, weights=identity),
        "ac2": partial(coefficients.gwet_ac, weights=linear),
        "kappa": coefficients.fleiss_kappa,
    }
    found = _estimate(labels, values, statistics, seed)
    is_decided = labels.value != 0
    decided = Labels(labels.item, labels.unit[is_decided], labels.annotator[is_decided], labels.value[is_decided])
    found |= _estimate(decided, values, {"agreement_no_ties": statistics["agreement"]}, seed)
    if len(np.unique(labels.annotator)) == 2:
        found["kappa"] = _cohen(labels, values, seed)
    return {name: found[name] for name in OUTCOMES}


def measure_ratings(labels: Labels, values: IntArray, *, seed: int = 0) -> dict[str, Estimate]:
    """Return the metrics RATINGS of ordered labels: equal labels, ordinal alpha, and AC2 with linear weights."""
    numbers = values.astype(float)
    statistics: dict[str, Callable[[Sums], FloatArray]] = {
        "agreement": partial(coefficients.raw_agreement, weights=identity_weights(numbers)),
        "alpha": partial(coefficients.krippendorff_alpha, ordinal=True),
        "ac2": partial(coefficients.gwet_ac, weights=linear_weights(numbers)),
    }
    return _estimate(labels, values, statistics, seed)


def slices_of(items: Iterable[Item]) -> dict[str, list[int]]:
    """Return the items of each slice, such as `language.en`; nothing for a property that is the same for all items."""
    languages: dict[str, list[int]] = {}
    fields: dict[str, list[int]] = {}
    for item in items:
        languages.setdefault(item.language, []).append(item.id)
        fields.setdefault(item.field, []).append(item.id)
    groups: dict[str, Mapping[str, list[int]]] = {"language": languages, "field": fields}
    return {
        f"{kind}.{_NOT_IN_NAMES.sub('_', name)}": ids
        for kind, group in groups.items()
        for name, ids in sorted(group.items())
        if name and len(group) > 1
    }


def count_judged_twice(labels: Labels) -> int:
    """Return the number of items of which some unit has at least two labels."""
    has_pairs = np.bincount(labels.unit, minlength=len(labels.item)) >= 2
    return len(np.unique(labels.item[has_pairs]))


def _half_ties(values: IntArray) -> FloatArray:
    """Return weights of 1 for equal labels, 1/2 for a tie and another label, and 0 otherwise. Shape: (Q, Q)."""
    weights: FloatArray = 1 - np.abs(values[:, None] - values) / 2
    return weights


def _estimate(
    labels: Labels, values: IntArray, statistics: Mapping[str, Callable[[Sums], FloatArray]], seed: int
) -> dict[str, Estimate]:
    """Return each statistic of the sums over units with its interval over items."""
    cells = labels.unit * len(values) + np.searchsorted(values, labels.value)
    counts = np.bincount(cells, minlength=len(labels.item) * len(values)).reshape(len(labels.item), len(values))
    labeled = np.flatnonzero(counts.any(1))

    def compute(sums: FloatArray) -> list[FloatArray]:
        named = coefficients.unpack(sums, values.astype(float))
        return [statistic(named) for statistic in statistics.values()]

    terms = coefficients.unit_terms(counts[labeled].astype(float))
    return _bootstrap(labels, terms, labeled, compute, list(statistics), seed)


def _cohen(labels: Labels, values: IntArray, seed: int) -> Estimate:
    """Return Cohen's kappa of the units that both annotators labeled."""
    q = len(values)
    category = np.full((2, len(labels.item)), -1)
    for row, person in enumerate(np.unique(labels.annotator)):
        is_own = labels.annotator == person
        category[row, labels.unit[is_own]] = np.searchsorted(values, labels.value[is_own])
    common = np.flatnonzero((category >= 0).all(0))
    terms = np.eye(q * q)[category[0, common] * q + category[1, common]]

    def compute(sums: FloatArray) -> list[FloatArray]:
        return [coefficients.cohen_kappa(sums.reshape(*sums.shape[:-1], q, q))]

    return _bootstrap(labels, terms, common, compute, ["kappa"], seed)["kappa"]


def _bootstrap(
    labels: Labels,
    terms: FloatArray,
    units: IntArray,
    compute: Callable[[FloatArray], list[FloatArray]],
    names: Sequence[str],
    seed: int,
) -> dict[str, Estimate]:
    """Return each statistic with its interval; `n` counts the items judged twice. `units` are those of the terms."""
    n = count_judged_twice(labels)
    if n == 0:
        return dict.fromkeys(names, TOO_FEW)
    found = coefficients.bootstrap(terms, labels.item[units], compute, seed=seed)
    return {
        name: CONSTANT if interval is None else interval._replace(n=n)
        for name, interval in zip(names, found, strict=True)
    }
