"""Many annotators at the same time: items get exactly the overlap, and an answer is stored once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import pytest

from rlhf_cli.feedback.store import Assignment, NotFoundError, Session
from tests.support import feedback_worker
from tests.support.feedback_store import Stores, agreeing, contradicting, judge, new_item, new_items

T = TypeVar("T")
TOGETHER = 50


def at_once(count: int, action: Callable[[int], T]) -> list[T]:
    """Call an action with 0, 1, … in as many threads, which start together."""
    barrier = Barrier(count)

    def act(number: int) -> T:
        barrier.wait()
        return action(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(act, range(count)))


@pytest.mark.parametrize("overlap", [1, 3])
def test_fifty_annotators_on_the_last_item_get_exactly_the_overlap(stores: Stores, overlap: int) -> None:
    store = stores(overlap=overlap)
    store.add_items([new_item()])
    annotators = [store.add_annotator(f"annotator {number}").annotator.id for number in range(TOGETHER)]

    def answer(number: int) -> list[Assignment]:
        assigned = store.assign(annotators[number])
        for assignment in assigned:
            store.submit(annotators[number], assignment.id, agreeing(assignment), "key")
        return assigned

    assert sum(map(len, at_once(TOGETHER, answer))) == overlap
    assert len({judgment.annotator_id for judgment in store.snapshot().judgments}) == overlap
    assert store.status().done == 1


@pytest.mark.subprocess
def test_fifty_annotators_in_processes_complete_all_items_exactly(stores: Stores) -> None:
    store = stores(overlap=2)
    store.add_items(new_items(16))
    annotators = [store.add_annotator(f"annotator {number}").annotator.id for number in range(TOGETHER)]
    workers = [feedback_worker.start(stores.url, store.settings, annotators[part::2]) for part in range(2)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    acknowledged: list[list[int]] = []
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    for worker in workers:
        output, _ = worker.communicate()
        assert worker.returncode == 0
        acknowledged += json.loads(output)
    judgments = store.snapshot().judgments
    assert sorted(acknowledged) == sorted([judgment.id, judgment.annotator_id] for judgment in judgments)
    assert Counter(Counter(judgment.item_id for judgment in judgments).values()) == {2: 16}
    assert len({(judgment.item_id, judgment.annotator_id) for judgment in judgments}) == 32


def test_disputed_item_gets_exactly_the_maximum(stores: Stores) -> None:
    store = stores(overlap=2, max_overlap=4)
    store.add_items([new_item()])
    annotators = [store.add_annotator(f"annotator {number}").annotator.id for number in range(12)]
    judge(store, annotators[0])
    judge(store, annotators[1], agree=False)
    assigned = at_once(10, lambda number: store.assign(annotators[2 + number]))
    assert sum(map(len, assigned)) == 2


def test_double_submit_at_once_stores_one_judgment(stores: Stores) -> None:
    store = stores()
    store.add_items([new_item()])
    annotator = store.add_annotator("Ann").annotator.id
    (assignment,) = store.assign(annotator)
    receipts = at_once(8, lambda _: store.submit(annotator, assignment.id, agreeing(assignment), "key"))
    assert len(set(receipts)) == 1
    assert len(store.snapshot().judgments) == 1


def test_submit_of_two_tabs_at_once_stores_one_judgment(stores: Stores) -> None:
    store = stores()
    store.add_items([new_item()])
    annotator = store.add_annotator("Ann").annotator.id
    (assignment,) = store.assign(annotator)
    receipts = at_once(8, lambda tab: store.submit(annotator, assignment.id, agreeing(assignment), f"tab {tab}"))
    assert sorted(receipt.is_duplicate for receipt in receipts) == [False] + 7 * [True]
    assert len({receipt.judgment_id for receipt in receipts}) == 1
    assert len(store.snapshot().judgments) == 1


def test_assign_in_tabs_at_once_leases_one_item(stores: Stores) -> None:
    store = stores()
    store.add_items(new_items(9))
    annotator = store.add_annotator("Ann").annotator.id
    assert len({store_id for (store_id,) in at_once(8, lambda _: [a.id for a in store.assign(annotator)])}) == 1


def test_reopen_in_tabs_at_once_supersedes_the_judgment_once(stores: Stores) -> None:
    store = stores(overlap=1)
    store.add_items([new_item()])
    annotator = store.add_annotator("Ann").annotator.id
    (first,) = judge(store, annotator)

    def undo(tab: int) -> int:
        reopened = store.reopen(annotator, first)
        return store.submit(annotator, reopened.id, contradicting(reopened), f"tab {tab}").judgment_id

    at_once(6, undo)
    (current,) = store.snapshot().judgments
    assert current.answer.tiers == tuple((completion.id,) for completion in reversed(store.item(1).completions))
    assert store.status().judgments == 1


def test_invite_redeemed_at_once_starts_one_session(stores: Stores) -> None:
    store = stores()
    token = store.add_annotator("Ann").token

    def redeem(_: int) -> Session | None:
        try:
            return store.redeem(token)
        except NotFoundError:
            return None

    assert sum(session is not None for session in at_once(8, redeem)) == 1


def test_items_imported_at_once_are_added_once(stores: Stores) -> None:
    store = stores()
    results = at_once(4, lambda _: store.add_items(new_items(30, language="de")))
    assert sum(result.added for result in results) == 30
    assert len(store.snapshot().items) == 30


def test_store_opened_at_once_is_created_once(stores: Stores) -> None:
    opened = at_once(4, lambda _: stores())
    opened[0].add_items([new_item()])
    assert [store.status().items for store in opened] == [1] * 4


def test_leases_that_expire_under_load_are_assigned_again_exactly(stores: Stores) -> None:
    store = stores(overlap=2, lease_minutes=60)
    store.add_items(new_items(8))
    annotators = [store.add_annotator(f"annotator {number}").annotator.id for number in range(32)]
    assert sum(map(len, at_once(16, lambda number: store.assign(annotators[number])))) == 16
    stores.clock.now += 2 * 3600
    assert sum(map(len, at_once(16, lambda number: store.assign(annotators[16 + number])))) == 16
    status = store.status()
    assert (status.open, status.judgments) == (8, 0)
