"""How often a person agrees with the label that the others give."""

from __future__ import annotations

import pytest

from rlhf_cli.feedback.label_agreement import label_agreement
from tests.support.snapshots import SnapshotBuilder

FIRST, SECOND, TIED = [[0], [1]], [[1], [0]], [[0, 1]]


def agreement(*items: list[list[list[int]]]) -> tuple[float, int] | None:
    """Return the value and the number of votes for items that are each judged by several annotators."""
    builder = SnapshotBuilder()
    for number, votes in enumerate(items):
        item = builder.item(f"prompt {number}", ("a", "b"))
        for index, order in enumerate(votes):
            builder.judge(f"name {index}", item, order)
    found = label_agreement(builder.build())
    return None if found is None else (found.value, found.n)


def test_label_agreement_of_two_annotators_is_how_often_they_agree() -> None:
    assert agreement([FIRST, FIRST], [FIRST, SECOND], [SECOND, SECOND], [FIRST, FIRST]) == (0.75, 8)


def test_label_agreement_of_three_annotators_compares_with_the_two_others_if_they_agree() -> None:
    # Unanimous: 3 of 3. Two against one: the others of each of the two are tied, those of the third disagree: 0 of 1.
    assert agreement([FIRST, FIRST, FIRST], [FIRST, FIRST, SECOND]) == (0.75, 4)


def test_label_agreement_counts_a_tied_vote_as_half_and_leaves_out_tied_labels() -> None:
    # Of the tied vote the other is a label: half of 1. Of the other vote the label is a tie: not compared.
    assert agreement([FIRST, TIED]) == (0.5, 1)
    assert agreement([FIRST, FIRST, TIED]) == (0.5, 1)


def test_label_agreement_without_a_second_vote_is_none() -> None:
    assert agreement([FIRST], [SECOND]) is None
    assert agreement([TIED, TIED]) is None


def test_label_agreement_leaves_out_models() -> None:
    builder = SnapshotBuilder()
    builder.item()
    builder.judge("ann", 1, FIRST)
    builder.judge("model", 1, SECOND, source="ai", principle="kind")
    assert label_agreement(builder.build()) is None


def test_label_agreement_interval_contains_the_value() -> None:
    builder = SnapshotBuilder()
    for number in range(40):
        item = builder.item(f"prompt {number}")
        builder.judge("ann", item, FIRST)
        builder.judge("bob", item, FIRST if number % 4 else SECOND)
    found = label_agreement(builder.build())
    assert found is not None
    assert found.value == pytest.approx(0.75)
    assert 0.5 < found.low < 0.75 < found.high < 0.95
