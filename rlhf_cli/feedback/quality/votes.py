"""Votes: the pairs of completions that judgments compare, as arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.feedback.types import ItemKind, Judgment, Snapshot, Source, comparisons

SECOND, TIE, FIRST = 0, 1, 2  # labels of a pair: an outcome plus 1, so that `2 - label` swaps the two completions
LABELS = 3

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

PEOPLE: tuple[Source, ...] = ("human",)
ORDINARY: tuple[ItemKind, ...] = ("item",)


@dataclass(frozen=True)
class Votes:
    """A vote is what one judgment says about one pair of completions.

    Attributes:
        pairs: Item id, first and second completion id of each pair, in ascending order. Shape: (P, 3)
        pair: Index of the pair. Shape: (V,)
        annotator: Id of the annotator. Shape: (V,)
        label: SECOND, TIE or FIRST, whichever is better. Shape: (V,)
        judgment: Index of the judgment in the list that was counted. Shape: (V,)
    """

    pairs: IntArray
    pair: IntArray
    annotator: IntArray
    label: IntArray
    judgment: IntArray

    def select(self, mask: NDArray[np.bool_]) -> Votes:
        """Return the votes for which `mask` is True; the pairs keep their indices."""
        return Votes(self.pairs, self.pair[mask], self.annotator[mask], self.label[mask], self.judgment[mask])


def first_judgments(
    snapshot: Snapshot,
    *,
    sources: Collection[Source] = PEOPLE,
    annotators: Collection[int] | None = None,
    kinds: Collection[ItemKind] = ORDINARY,
) -> list[Judgment]:
    """Return the judgments that count as votes: not skipped, and only the first of an annotator on an item.

    An annotator's repeated judgment of an item is no second opinion. A model may judge an item once per principle.

    Args:
        snapshot: All feedback of the project.
        sources: Whose judgments count.
        annotators: Ids of the annotators whose judgments count; None: all.
        kinds: The kinds of items whose judgments count.
    """
    wanted = {item.id for item in snapshot.items if item.kind in kinds}
    chosen = None if annotators is None else frozenset(annotators)
    found: dict[tuple[int, int, str], Judgment] = {}
    for judgment in snapshot.judgments:
        counts = not judgment.is_repeat and judgment.answer.tiers and judgment.source in sources
        if counts and judgment.item_id in wanted and (chosen is None or judgment.annotator_id in chosen):
            found.setdefault((judgment.item_id, judgment.annotator_id, judgment.principle), judgment)
    return list(found.values())


def count_votes(judgments: Sequence[Judgment]) -> Votes:
    """Return the votes of these judgments."""
    rows = [
        (judgment.item_id, first, second, judgment.annotator_id, outcome + 1, index)
        for index, judgment in enumerate(judgments)
        for first, second, outcome in comparisons(judgment.answer.tiers, judgment.task)
    ]
    table = as_table(rows, 6)
    pairs, pair = np.unique(table[:, :3], axis=0, return_inverse=True)
    return Votes(pairs, pair.reshape(-1), table[:, 3], table[:, 4], table[:, 5])


def as_table(rows: Iterable[tuple[int, ...]], columns: int) -> IntArray:
    """Return rows of integers as an array, also if there are no rows. Shape: (rows, columns)."""
    return np.array(list(rows), dtype=np.int64).reshape(-1, columns)


def count_labels(votes: Votes) -> FloatArray:
    """Return how many votes each label of each pair has. Shape: (P, LABELS)."""
    cells = np.bincount(votes.pair * LABELS + votes.label, minlength=len(votes.pairs) * LABELS)
    return cells.reshape(-1, LABELS).astype(np.float64)
