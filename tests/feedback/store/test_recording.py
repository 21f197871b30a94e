"""Judgments that were made elsewhere are stored once, superseded or kept as repeats, and validated."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_cli.feedback.store import NotFoundError, RecordResult
from rlhf_cli.feedback.types import Answer, NewItem, NewJudgment, Tiers
from tests.support.feedback_store import Stores, agreeing, new_item, new_items, ranking
from tests.support.issues import raises_issue

FORWARD, BACKWARD = ((0,), (1,)), ((1,), (0,))


def new_judgment(item: NewItem | int, tiers: Tiers = FORWARD, annotator: str = "ann", **fields: Any) -> NewJudgment:
    return NewJudgment(item, annotator, fields.pop("task", "rank"), Answer(tiers), **fields)


def test_record_maps_indices_to_completions(stores: Stores) -> None:
    store = stores()
    item = new_item(completions=3)
    store.add_items([item])
    answer = Answer(((2,), (0, 1)), criteria={1: {"helpful": 4}}, flags={-1: ("private",), 2: ("false",)})
    store.record([NewJudgment(item, "ann", "rank", answer, order=(2, 0, 1), created="2026-01-01T00:00:00Z")])
    snapshot = store.snapshot()
    ids = [completion.id for completion in snapshot.items[0].completions]
    (judgment,) = snapshot.judgments
    assert judgment.answer == Answer(
        ((ids[2],), (ids[0], ids[1])), criteria={ids[1]: {"helpful": 4}}, flags={0: ("private",), ids[2]: ("false",)}
    )
    assert judgment.order == (ids[2], ids[0], ids[1])
    assert judgment.created == "2026-01-01T00:00:00Z"


def test_record_without_order_claims_none(stores: Stores) -> None:
    store = stores()
    store.add_items([new_item(completions=2)])
    store.record([new_judgment(new_item(completions=2))])
    assert store.snapshot().judgments[0].order == ()


def test_record_of_equal_judgments_stores_one(stores: Stores) -> None:
    store = stores()
    item = new_item(completions=2)
    store.add_items([item])
    assert store.record([new_judgment(item), new_judgment(item)]) == RecordResult(1, 1)
    assert store.record([new_judgment(item)]) == RecordResult(0, 1)


def test_record_of_another_judgment_supersedes_the_earlier_one_also_in_one_call(stores: Stores) -> None:
    store = stores()
    item = new_item(completions=2)
    store.add_items([item])
    store.record([new_judgment(item, FORWARD), new_judgment(item, BACKWARD), new_judgment(item, ((0, 1),))])
    assert [len(judgment.answer.tiers) for judgment in store.snapshot().judgments] == [1]
    store.record([new_judgment(item, FORWARD, created="later")])
    assert [len(judgment.answer.tiers) for judgment in store.snapshot().judgments] == [2]
    assert store.status().judgments == 1


def test_record_with_keys_keeps_judgments_of_one_item_as_repeats(stores: Stores) -> None:
    store = stores(overlap=2)
    item = new_item(completions=2)
    store.add_items([item])
    new = [new_judgment(item, FORWARD, key="row 1"), new_judgment(item, BACKWARD, key="row 2")]
    assert store.record(new) == RecordResult(2, 0)
    assert store.record(new) == RecordResult(0, 2)
    assert [judgment.is_repeat for judgment in store.snapshot().judgments] == [False, True]
    assert store.status().open == 1  # a repeat is no second vote


def test_record_updates_the_state_of_each_item(stores: Stores) -> None:
    store = stores(overlap=2, max_overlap=3)
    items = new_items(3, completions=2)
    store.add_items(items)
    agreed = [new_judgment(item, FORWARD, name) for item in items[:2] for name in ("ann", "ben")]
    store.record([*agreed, new_judgment(items[1], BACKWARD, "cem"), new_judgment(items[2], FORWARD, "ann")])
    status = store.status()
    assert (status.done, status.disputed, status.open) == (1, 1, 1)


def test_record_of_contradicting_judgments_asks_for_one_more(stores: Stores) -> None:
    store = stores(overlap=2, max_overlap=3)
    items = new_items(2, completions=2)
    store.add_items(items)
    store.record([new_judgment(item, FORWARD, "ann") for item in items])
    store.record([new_judgment(items[0], FORWARD, "ben"), new_judgment(items[1], BACKWARD, "ben")])
    (assignment,) = store.assign(store.add_annotator("cem").annotator.id, count=2)
    assert assignment.item.prompt == items[1].prompt


def test_record_leaves_the_lease_of_an_annotator_usable(stores: Stores) -> None:
    store = stores(overlap=2)
    item = new_item(completions=2)
    store.add_items([item])
    annotator = store.add_annotator("Ann").annotator.id
    (assignment,) = store.assign(annotator)
    store.record([new_judgment(item, FORWARD, "ben")])
    store.submit(annotator, assignment.id, agreeing(assignment), "key")
    assert store.status().done == 1


def test_record_by_item_id_of_a_model_keeps_principles_apart(stores: Stores) -> None:
    store = stores()
    ids = store.add_items([new_item(completions=2)]).ids
    new = [new_judgment(ids[0], annotator="judge", source="ai", principle=name) for name in ("kind", "true")]
    store.record(new)
    assert [judgment.principle for judgment in store.snapshot().judgments] == ["kind", "true"]
    assert store.status().judgments == 0  # of people


def test_record_of_unknown_item_raises(stores: Stores) -> None:
    with pytest.raises(NotFoundError):
        stores().record([new_judgment(new_item())])


@pytest.mark.parametrize(
    ("judgment", "code"),
    [
        (new_judgment(new_item(completions=2), ((0,),)), "feedback.invalid-answer"),
        (new_judgment(new_item(completions=2), FORWARD, "judge"), "feedback.invalid-annotator"),
    ],
)
def test_record_of_invalid_judgment_stores_nothing(stores: Stores, judgment: NewJudgment, code: str) -> None:
    store = stores()
    store.add_items([new_item(completions=2)])
    store.add_annotator("judge", source="ai")
    with raises_issue(code):
        store.record([new_judgment(new_item(completions=2)), judgment])
    assert store.snapshot().judgments == []


def test_import_batch_with_invalid_judgment_stores_no_item(stores: Stores) -> None:
    store = stores()
    item = new_item(completions=2)
    with raises_issue("feedback.invalid-answer"):
        store.import_batch([item], [new_judgment(item, ((0,),))])
    assert store.snapshot().items == []
    added, recorded = store.import_batch([item], [NewJudgment(item, "ann", "rank", ranking((1, 0)))])
    assert (added.added, recorded) == (1, RecordResult(1, 0))
