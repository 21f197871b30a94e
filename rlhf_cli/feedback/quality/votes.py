"""Votes: the pairs of completions that judgments compare, as arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.feedback.types import ItemKind, Judgment, Snapshot, Source

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
    """Return the votes of these judgments: what `comparisons` returns of each, many at a time."""
    groups: dict[int, list[tuple[list[int], list[int], int, int]]] = {}  # by number of completions
    for index, judgment in enumerate(judgments):
        tiers = judgment.answer.tiers
        completions = [completion for tier in tiers for completion in tier]
        places = [place for place, tier in enumerate(tiers) for _ in tier]
        middle = 1 if judgment.task == "best-worst" and len(tiers) == 3 else -1  # its completions are not compared
        groups.setdefault(len(completions), []).append((completions, places, middle, index))
    tables = [_pairs_of_group(rows) for rows in groups.values()]
    first, second, label, index = np.concatenate([as_table([], 4), *tables]).T
    item = np.array([judgment.item_id for judgment in judgments], dtype=np.int64)[index]
    annotator = np.array([judgment.annotator_id for judgment in judgments], dtype=np.int64)[index]
    pairs, pair = unique_rows(np.stack([item, first, second], -1))
    return Votes(pairs, pair, annotator, label, index)


def _pairs_of_group(rows: list[tuple[list[int], list[int], int, int]]) -> IntArray:
    """Return first, second, label and index of each vote of judgments of equally many completions."""
    completions, places, middle, index = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    left, right = np.triu_indices(completions.shape[1], 1)
    a, b = completions[:, left], completions[:, right]  # (judgments, pairs)
    outcome = np.sign(places[:, right] - places[:, left])  # 1 if a is in a better tier than b
    is_compared = (outcome != 0) | (places[:, left] != middle[:, None])
    label = np.where(a < b, outcome, -outcome) + 1
    columns = np.minimum(a, b), np.maximum(a, b), label, np.broadcast_to(index[:, None], a.shape)
    return np.stack([column[is_compared] for column in columns], -1)


def unique_rows(table: IntArray) -> tuple[IntArray, IntArray]:
    """Return the different rows in ascending order, and for each row its index among them.

    As `numpy.unique` with an axis, which takes many times as long.
    """
    order = np.lexsort(table.T[::-1])
    ordered = table[order]
    is_new = np.ones(len(table), dtype=bool)
    is_new[1:] = (ordered[1:] != ordered[:-1]).any(1)
    index = np.empty(len(table), dtype=np.int64)
    index[order] = np.cumsum(is_new) - 1
    return ordered[is_new], index


def as_table(rows: Iterable[tuple[int, ...]], columns: int) -> IntArray:
    """Return rows of integers as an array, also if there are no rows. Shape: (rows, columns)."""
    return np.array(list(rows), dtype=np.int64).reshape(-1, columns)


def count_labels(votes: Votes) -> FloatArray:
    """Return how many votes each label of each pair has. Shape: (P, LABELS)."""
    cells = np.bincount(votes.pair * LABELS + votes.label, minlength=len(votes.pairs) * LABELS)
    return cells.reshape(-1, LABELS).astype(np.float64)
