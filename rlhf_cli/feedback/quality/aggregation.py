"""Aggregation: one label for each pair of completions, from the votes on it or the decision of an expert."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.feedback.quality.dawid_skene import DawidSkene, dawid_skene
from rlhf_cli.feedback.quality.votes import (
    FIRST,
    LABELS,
    ORDINARY,
    PEOPLE,
    SECOND,
    TIE,
    FloatArray,
    IntArray,
    Votes,
    as_table,
    count_labels,
    count_votes,
    first_judgments,
    unique_rows,
)
from rlhf_cli.feedback.types import ItemKind, Judgment, Snapshot, Source, TaskKind, comparisons

Pair = tuple[int, int, int]  # item id, smaller completion id, larger completion id
Method = Literal["majority", "dawid-skene", "expert"]
UNKNOWN = -1
# Of Dawid-Skene, in favor of annotators who are right more often than not. Without them, labels of 100 pairs are worse
# than by majority, and one overruled label turns all votes of an annotator around; see docs/quality.md.
PSEUDO_COUNTS = np.ones((LABELS, LABELS)) + 3 * np.eye(LABELS)
EQUAL = 1e-9  # probabilities that differ by less are equal: the rest is rounding


class PairLabel(NamedTuple):
    """The label of two completions of an item.

    Attributes:
        item_id: Id of the item.
        first: The smaller completion id.
        second: The larger completion id.
        outcome: 1 if `first` is better, -1 if `second` is, 0 if they are tied or undecided.
        is_undecided: Whether two outcomes are equally probable, such as after one vote for each; `outcome` is then 0.
        n_votes: Number of votes on the pair. The decision of an expert is no vote.
        agreement: Fraction of the votes that are for the outcome, or None if there is no vote.
        probability: Probability of the outcome: for majority its fraction of the votes, for dawid-skene its posterior,
            for an expert 1.
        margin: Probability of the better completion minus that of the other one; 0 for a tie.
        strength: Mean strength by which the votes prefer the better completion, -3 to 3, or None for a tie or if no
            vote has a strength.
        by_expert: Whether an expert decided.
    """

    item_id: int
    first: int
    second: int
    outcome: int
    is_undecided: bool
    n_votes: int
    agreement: float | None
    probability: float
    margin: float
    strength: float | None
    by_expert: bool

    @property
    def chosen(self) -> int | None:
        """Id of the better completion, or None if there is none."""
        return {1: self.first, 0: None, -1: self.second}[self.outcome]

    @property
    def rejected(self) -> int | None:
        """Id of the worse completion, or None if there is none."""
        return {1: self.second, 0: None, -1: self.first}[self.outcome]


def aggregate(
    snapshot: Snapshot,
    method: Method,
    *,
    sources: Collection[Source] = PEOPLE,
    annotators: Collection[int] | None = None,
) -> list[PairLabel]:
    """Return a label for each pair of completions of ordinary items that was judged, in the order of ids.

    The decision of an expert outranks the votes on the pairs that it orders; the last decision on an item counts.
    Which completion has the smaller id changes no label.

    Args:
        snapshot: All feedback of the project.
        method: majority: votes count equally. dawid-skene: votes count by each annotator's estimated confusion matrix;
            gold items and decisions count as known labels. expert: only decisions.
        sources: Whose votes count: people's, models' or both. Experts are people, so their decisions always count.
        annotators: Ids of the annotators whose votes count; None: all.
    """
    kinds = ORDINARY if method == "majority" else get_args(ItemKind)
    judgments = first_judgments(snapshot, sources=sources, annotators=annotators, kinds=kinds)
    decided = _decided_pairs(snapshot)
    votes = _with_pairs(count_votes(judgments), decided)
    probabilities = _probabilities(snapshot, votes, method)
    label, is_undecided = most_probable(probabilities)
    counts = count_labels(votes)
    total = counts.sum(1)
    columns: list[NDArray[Any]] = [
        *votes.pairs.T,
        label - 1,
        is_undecided,
        total.astype(int),
        _of_label(counts, label) / np.maximum(total, 1),
        _of_label(probabilities, label),
        np.where(label == TIE, 0.0, np.abs(probabilities[:, FIRST] - probabilities[:, SECOND])),
    ]
    ordinary = {item.id for item in snapshot.items if item.kind == "item"}
    strengths = _strengths(snapshot, judgments)
    found = []
    for item, first, second, outcome, undecided, n_votes, agreement, probability, margin in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        pair = (item, first, second)
        if item in ordinary and (method != "expert" or pair in decided):
            seen, strength = agreement if n_votes else None, _toward(outcome, strengths.get(pair))
            numbers = (n_votes, seen, probability, margin, strength)
            found.append(PairLabel(item, first, second, outcome, undecided, *numbers, pair in decided))
    return found


def _of_label(table: FloatArray, label: IntArray) -> FloatArray:
    """Return the value of the given label in each row. Shape: (P,)."""
    values: FloatArray = np.take_along_axis(table, label[:, None], 1)[:, 0]
    return values


def most_probable(probabilities: FloatArray) -> tuple[IntArray, NDArray[np.bool_]]:
    """Return the most probable label of each pair, and whether two are equally probable; the label is then TIE.

    Args:
        probabilities: Probability of each label. Shape: (P, LABELS)
    """
    ranked = np.sort(probabilities, 1)
    is_undecided = ranked[:, -1] - ranked[:, -2] < EQUAL
    return np.where(is_undecided, TIE, probabilities.argmax(1)), is_undecided


def _decided_pairs(snapshot: Snapshot) -> dict[Pair, int]:
    """Return the label of each pair that the last decision on its item orders or ties."""
    judged = [judgment for judgment in snapshot.judgments if judgment.source == "human"]  # models always rank
    tasks: dict[int, TaskKind] = {judgment.item_id: judgment.task for judgment in judged}
    last = {decision.item_id: decision.tiers for decision in snapshot.decisions}
    return {
        (item, first, second): outcome + 1
        for item, tiers in last.items()
        for first, second, outcome in comparisons(tiers, tasks.get(item, "rank"))
    }


def _gold_pairs(snapshot: Snapshot) -> dict[Pair, int]:
    """Return the label of each pair of the items with a known answer."""
    return {
        (item.id, first, second): outcome + 1
        for item in snapshot.items
        if item.answer
        for first, second, outcome in comparisons(item.answer, "rank")
    }


def _with_pairs(votes: Votes, pairs: Collection[Pair]) -> Votes:
    """Return `votes` with further pairs, on which there may be no vote."""
    table = np.concatenate([votes.pairs, as_table(pairs, 3)])
    merged, index = unique_rows(table)
    return Votes(merged, index[votes.pair], votes.annotator, votes.label, votes.judgment)


def known_labels(snapshot: Snapshot, votes: Votes) -> IntArray:
    """Return the label of each pair that a decision or the answer of a gold item gives, else UNKNOWN. Shape: (P,)."""
    known = {**_gold_pairs(snapshot), **_decided_pairs(snapshot)}
    labels = np.full(len(votes.pairs), UNKNOWN)
    rows = np.flatnonzero(np.isin(votes.pairs[:, 0], [item for item, _, _ in known]))
    labels[rows] = [known.get((item, first, second), UNKNOWN) for item, first, second in votes.pairs[rows].tolist()]
    return labels


def fit_annotators(snapshot: Snapshot, votes: Votes) -> DawidSkene:
    """Fit the model of Dawid and Skene to at least one vote; its annotators are those with a vote, in order of ids."""
    _, annotator = np.unique(votes.annotator, return_inverse=True)
    known = known_labels(snapshot, votes)
    task, label = votes.pair, votes.label
    return dawid_skene(task, annotator, label, LABELS, known=known, symmetric=True, pseudo_counts=PSEUDO_COUNTS)


def _probabilities(snapshot: Snapshot, votes: Votes, method: Method) -> FloatArray:
    """Return the probability of each label of each pair. Shape: (P, LABELS)."""
    if method == "dawid-skene" and votes.pair.size:
        return fit_annotators(snapshot, votes).posterior
    known, counts = known_labels(snapshot, votes), count_labels(votes)
    shares: FloatArray = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    shares[known != UNKNOWN] = np.eye(LABELS)[known[known != UNKNOWN]]
    return shares


def _strengths(snapshot: Snapshot, judgments: Iterable[Judgment]) -> dict[Pair, list[int]]:
    """Return, for each pair, the strengths by which votes prefer its first completion."""
    shown_first = {item.id: item.completions[0].id for item in snapshot.items}
    found: dict[Pair, list[int]] = {}
    for judgment in judgments:
        strength = judgment.answer.strength
        if strength is None:
            continue
        for first, second, _ in comparisons(judgment.answer.tiers, judgment.task):
            for_first = -strength if shown_first[judgment.item_id] == first else strength
            found.setdefault((judgment.item_id, first, second), []).append(for_first)
    return found


def _toward(outcome: int, strengths: list[int] | None) -> float | None:
    return outcome * sum(strengths) / len(strengths) if strengths and outcome else None
