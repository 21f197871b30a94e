"""Disputed items, experts' decisions, the snapshot that exports read, and its digest."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_cli.errors import DataError
from rlhf_cli.feedback.store import NotFoundError, Store
from rlhf_cli.feedback.types import NewJudgment
from tests.support.feedback_store import Stores, agreeing, judge, new_item, new_items, ranking
from tests.support.issues import raises_issue


def add_team(store: Store) -> tuple[int, int, int]:
    """Add two annotators and an expert, and return their ids."""
    ann, bob = (store.add_annotator(name).annotator.id for name in ("Ann", "Bob"))
    return ann, bob, store.add_annotator("Eve", role="expert").annotator.id


def dispute(store: Store) -> tuple[int, int]:
    """Let two annotators contradict each other on the only item. Return the item and an expert."""
    store.add_items([new_item()])
    ann, bob, expert = add_team(store)
    judge(store, ann)
    judge(store, bob, agree=False)
    return store.disputed()[0].item.id, expert


def test_decision_settles_an_item_and_keeps_its_judgments(stores: Stores) -> None:
    store = stores(overlap=2, max_overlap=5)
    item, expert = dispute(store)
    assert store.disputed()[0].missing == 3
    third = store.add_annotator("Dan").annotator.id
    ids = [completion.id for completion in store.item(item).completions]
    decision = store.decide(expert, item, ((ids[2],), (ids[0], ids[1]), (ids[3],)), "because")
    assert store.disputed() == []
    assert (store.status().done, store.status().disputed) == (1, 0)
    assert store.assign(third) == []
    snapshot = store.snapshot()
    assert snapshot.decisions == [decision]
    assert (decision.expert_id, decision.rationale) == (expert, "because")
    assert len(snapshot.judgments) == 2


def test_later_decision_outranks_the_earlier_one(stores: Stores) -> None:
    store = stores(overlap=2)
    item, expert = dispute(store)
    ids = [completion.id for completion in store.item(item).completions]
    store.decide(expert, item, (tuple(ids),), "first")
    second = store.decide(expert, item, tuple((number,) for number in ids), "second")
    assert store.snapshot().decisions == [second]


def test_decision_of_an_annotator_or_with_other_completions_is_refused(stores: Stores) -> None:
    store = stores(overlap=2)
    item, expert = dispute(store)
    ids = tuple(completion.id for completion in store.item(item).completions)
    annotator = store.annotators()[0].id
    with raises_issue("feedback.not-an-expert", error=DataError):
        store.decide(annotator, item, (ids,))
    with raises_issue("feedback.invalid-answer", error=DataError):
        store.decide(expert, item, (ids[:3],))
    with pytest.raises(NotFoundError):
        store.decide(expert, 99, (ids,))
    assert store.snapshot().decisions == []


def test_disputed_items_without_further_judgments_come_first(stores: Stores) -> None:
    store = stores(overlap=2, max_overlap=3)
    store.add_items(new_items(2))
    ann, bob, _ = add_team(store)
    judge(store, ann, 2)
    judge(store, bob, 2, agree=False)
    assert [entry.missing for entry in store.disputed()] == [1, 1]
    third = store.add_annotator("Dan").annotator.id
    judge(store, third)
    disputed = store.disputed()
    assert [(entry.missing, len(entry.judgments)) for entry in disputed] == [(0, 3), (1, 2)]


def test_judgments_of_models_are_no_votes(stores: Stores) -> None:
    store = stores(overlap=1)
    (item,) = store.add_items([new_item()]).ids
    answer = ranking((3, 2, 1, 0))
    store.record([NewJudgment(item, "model", "rank", answer, source="ai", principle="honesty")])
    assert (store.status().open, store.status().judgments) == (1, 0)
    annotator = store.add_annotator("Ann").annotator.id
    judge(store, annotator)
    assert (store.status().done, store.disputed()) == (1, [])
    by_model, by_person = store.snapshot().judgments
    assert (by_model.source, by_model.principle, by_person.source) == ("ai", "honesty", "human")


def test_digest_depends_on_content_only(stores: Stores, tmp_path: Path) -> None:
    digests: list[str] = []
    for url in (stores.url, str(tmp_path / "other.db")):
        with Stores(url).closing() as opened:
            store = opened(overlap=1)
            store.add_items(new_items(3))
            annotator = store.add_annotator("Ann").annotator.id
            empty = store.digest()
            opened.clock.now += 60.0 * len(digests)  # the second store is filled a minute later
            judge(store, annotator, 3)
            assert store.digest() != empty
            digests.append(store.digest())
    assert digests[0] == digests[1]


def test_digest_changes_with_a_decision_and_an_undone_judgment(stores: Stores) -> None:
    store = stores(overlap=2)
    item, expert = dispute(store)
    digests = [store.digest()]
    ids = tuple(completion.id for completion in store.item(item).completions)
    store.decide(expert, item, (ids,))
    digests.append(store.digest())
    made = store.snapshot().judgments[1]
    reopened = store.reopen(made.annotator_id, made.id)
    assert store.digest() == digests[1]
    store.submit(made.annotator_id, reopened.id, agreeing(reopened), "undo")
    digests.append(store.digest())
    assert len(set(digests)) == 3


def test_status_counts_by_language_and_annotator(stores: Stores) -> None:
    store = stores(overlap=2, max_overlap=2)
    store.add_items([new_item(0, language="de", field="law"), new_item(1, language="de"), new_item(2, language="en")])
    ann, bob, _ = add_team(store)
    judge(store, ann, 3)
    (skipped,) = store.assign(bob)
    store.skip(bob, skipped.id, "broken", "skip")
    judge(store, bob, agree=False)
    judge(store, bob)
    status = store.status()
    assert (status.items, status.open, status.done, status.disputed, status.judgments) == (3, 1, 1, 1, 5)
    assert [(group.language, group.field, group.items) for group in status.groups] == [
        ("de", "", 1),
        ("de", "law", 1),
        ("en", "", 1),
    ]
    assert [sum(numbers) for numbers in zip(*[(g.open, g.done, g.disputed) for g in status.groups], strict=True)] == [
        1,
        1,
        1,
    ]
    assert [(row.judged, row.skipped) for row in status.annotators] == [(3, 0), (2, 1), (0, 0)]
    assert [row.latest for row in status.annotators] == [*["2027-01-15T08:00:00.000+00:00"] * 2, ""]


def test_snapshot_is_of_one_moment_and_in_the_order_of_ids(stores: Stores) -> None:
    store = stores(overlap=1)
    store.add_items(reversed(new_items(3)))
    ann, bob, _ = add_team(store)
    judge(store, bob)
    judge(store, ann, 2)
    snapshot = store.snapshot()
    for records in (snapshot.items, snapshot.annotators, snapshot.judgments):
        numbers = [record.id for record in records]
        assert numbers == sorted(numbers)
    assert [item.prompt for item in snapshot.items] == [
        "prompt 2",
        "prompt 1",
        "prompt 0",
    ]
