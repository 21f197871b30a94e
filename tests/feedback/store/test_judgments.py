"""Judgments are acknowledged once, superseded rather than changed, and validated."""

from __future__ import annotations

import pytest

from rlhf_cli.feedback.store import LeaseExpiredError, NotFoundError
from rlhf_cli.feedback.types import Answer
from tests.support.feedback_store import Stores, agreeing, contradicting, judge, new_item, new_items, ranking
from tests.support.issues import raises_issue

HOUR = 3600.0


def test_submit_with_same_key_twice_stores_one_judgment(stores: Stores) -> None:
    store = stores()
    store.add_items([new_item()])
    annotator = store.add_annotator("Ann").annotator.id
    (assignment,) = store.assign(annotator)
    receipts = [store.submit(annotator, assignment.id, agreeing(assignment), "one") for _ in range(2)]
    assert receipts[0] == receipts[1]
    assert not receipts[0].is_duplicate
    assert [judgment.id for judgment in store.snapshot().judgments] == [receipts[0].judgment_id]


def test_submit_of_answered_assignment_by_another_key_keeps_the_first_judgment(stores: Stores) -> None:
    """A second tab, or the back button."""
    store = stores()
    store.add_items([new_item()])
    annotator = store.add_annotator("Ann").annotator.id
    (assignment,) = store.assign(annotator)
    first = store.submit(annotator, assignment.id, agreeing(assignment), "tab 1")
    second = store.submit(annotator, assignment.id, contradicting(assignment), "tab 2")
    assert (second.judgment_id, second.is_duplicate) == (first.judgment_id, True)
    (judgment,) = store.snapshot().judgments
    assert judgment.answer == agreeing(assignment)


def test_submit_stores_answer_order_guideline_and_time(stores: Stores) -> None:
    store = stores(criteria=["helpful"])
    guideline = store.set_guideline("Be kind.")
    store.add_items([new_item()])
    annotator = store.add_annotator("Ann").annotator.id
    (assignment,) = store.assign(annotator)
    first, *others = assignment.order
    answer = Answer(
        tiers=((first,), tuple(others)),
        criteria={first: {"helpful": 5}},
        flags={0: ("broken",), first: ("unsafe", "false")},
        rationale="because",
        seconds=12.5,
    )
    receipt = store.submit(annotator, assignment.id, answer, "key")
    (judgment,) = store.snapshot().judgments
    assert judgment.id == receipt.judgment_id
    assert judgment.answer == answer
    assert (judgment.order, judgment.guideline, judgment.task) == (assignment.order, guideline, "rank")
    assert (judgment.source, judgment.is_repeat, judgment.created) == ("human", False, "2027-01-15T08:00:00.000+00:00")


def test_submit_for_another_annotators_assignment_is_not_found(stores: Stores) -> None:
    store = stores()
    store.add_items([new_item()])
    ann, bob = (store.add_annotator(name).annotator.id for name in ("Ann", "Bob"))
    (assignment,) = store.assign(ann)
    with pytest.raises(NotFoundError):
        store.submit(bob, assignment.id, agreeing(assignment), "key")
    with pytest.raises(NotFoundError):
        store.assignment(bob, assignment.id)
    assert store.assignment(ann, assignment.id) == assignment
    assert store.snapshot().judgments == []


def test_skip_frees_the_slot_and_hides_the_item_from_the_annotator(stores: Stores) -> None:
    store = stores(overlap=1)
    store.add_items([new_item()])
    ann, bob = (store.add_annotator(name).annotator.id for name in ("Ann", "Bob"))
    (assignment,) = store.assign(ann)
    assert store.assign(bob) == []
    store.skip(ann, assignment.id, "not my language", "key")
    assert store.assign(ann) == []
    assert [other.item.id for other in store.assign(bob)] == [assignment.item.id]
    assert store.snapshot().judgments[0].answer.skip_reason == "not my language"


# --- undo -----------------------------------------------------------------------------------------------------------


def test_reopen_supersedes_the_judgment_and_keeps_its_slot(stores: Stores) -> None:
    store = stores(overlap=1)
    store.add_items([new_item()])
    ann, bob = (store.add_annotator(name).annotator.id for name in ("Ann", "Bob"))
    (first,) = judge(store, ann)
    reopened = store.reopen(ann, first)
    assert (reopened.judgment_id, reopened.is_open) == (first, True)
    assert reopened.answer == agreeing(reopened)
    assert store.assign(ann) == [reopened]
    assert store.assign(bob) == []
    second = store.submit(ann, reopened.id, contradicting(reopened), "undo").judgment_id
    (current,) = store.snapshot().judgments
    assert (current.id, current.answer) == (second, contradicting(reopened))
    assert store.status().judgments == 1


def test_reopen_in_two_tabs_stores_one_new_judgment(stores: Stores) -> None:
    store = stores(overlap=1)
    store.add_items([new_item()])
    annotator = store.add_annotator("Ann").annotator.id
    (first,) = judge(store, annotator)
    tabs = [store.reopen(annotator, first) for _ in range(2)]
    assert tabs[0] == tabs[1]
    receipts = [store.submit(annotator, tab.id, contradicting(tab), f"tab {i}") for i, tab in enumerate(tabs)]
    assert receipts[0].judgment_id == receipts[1].judgment_id
    assert [receipt.is_duplicate for receipt in receipts] == [False, True]


def test_reopen_of_superseded_judgment_opens_the_current_one(stores: Stores) -> None:
    store = stores(overlap=1)
    store.add_items([new_item()])
    annotator = store.add_annotator("Ann").annotator.id
    (first,) = judge(store, annotator)
    reopened = store.reopen(annotator, first)
    second = store.submit(annotator, reopened.id, contradicting(reopened), "undo").judgment_id
    assert store.reopen(annotator, first).judgment_id == second


def test_reopen_of_another_annotators_judgment_is_not_found(stores: Stores) -> None:
    store = stores()
    store.add_items([new_item()])
    ann, bob = (store.add_annotator(name).annotator.id for name in ("Ann", "Bob"))
    (made,) = judge(store, ann)
    with pytest.raises(NotFoundError):
        store.reopen(bob, made)


# --- expired leases -------------------------------------------------------------------------------------------------


def test_submit_after_lease_expired_is_accepted_if_the_slot_is_free(stores: Stores) -> None:
    store = stores(overlap=1, lease_minutes=60)
    store.add_items([new_item()])
    annotator = store.add_annotator("Ann").annotator.id
    (assignment,) = store.assign(annotator)
    stores.clock.now += 2 * HOUR
    receipt = store.submit(annotator, assignment.id, agreeing(assignment), "late")
    assert [judgment.id for judgment in store.snapshot().judgments] == [receipt.judgment_id]
    assert store.status().done == 1


@pytest.mark.parametrize("is_judged", [False, True], ids=["leased", "judged"])
def test_submit_after_lease_expired_is_refused_if_another_has_the_slot(stores: Stores, is_judged: bool) -> None:
    store = stores(overlap=1, lease_minutes=60)
    store.add_items([new_item()])
    ann, bob = (store.add_annotator(name).annotator.id for name in ("Ann", "Bob"))
    (late,) = store.assign(ann)
    stores.clock.now += 2 * HOUR
    (taken,) = store.assign(bob)
    assert taken.item.id == late.item.id
    if is_judged:
        store.submit(bob, taken.id, agreeing(taken), "key")
    with pytest.raises(LeaseExpiredError) as raised:
        store.submit(ann, late.id, agreeing(late), "late")
    assert raised.value.issues[0].code == "feedback.lease-expired"
    if not is_judged:
        store.submit(bob, taken.id, agreeing(taken), "key")
    assert [judgment.annotator_id for judgment in store.snapshot().judgments] == [bob]
    assert store.assignment(ann, late.id).item.id == late.item.id


def test_submit_in_old_tab_after_item_was_assigned_again_stores_one_judgment(stores: Stores) -> None:
    store = stores(overlap=2, lease_minutes=60)
    store.add_items([new_item()])
    annotator = store.add_annotator("Ann").annotator.id
    (old,) = store.assign(annotator)
    stores.clock.now += 2 * HOUR
    (new,) = store.assign(annotator)
    assert new.id != old.id
    first = store.submit(annotator, new.id, agreeing(new), "new tab")
    second = store.submit(annotator, old.id, contradicting(old), "old tab")
    assert (second.judgment_id, second.is_duplicate) == (first.judgment_id, True)
    assert len(store.snapshot().judgments) == 1


def test_late_answer_to_gold_item_that_was_assigned_again_is_stored_once(stores: Stores) -> None:
    store = stores(gold={"path": "gold.jsonl", "share": 1.0}, lease_minutes=60)
    store.add_items([new_item(kind="gold")])
    annotator = store.add_annotator("Ann").annotator.id
    (old,) = store.assign(annotator)
    stores.clock.now += 2 * HOUR
    (new,) = store.assign(annotator)
    assert new.id != old.id
    first = store.submit(annotator, new.id, agreeing(new), "new tab")
    second = store.submit(annotator, old.id, agreeing(old), "old tab")
    assert (second.judgment_id, second.is_duplicate) == (first.judgment_id, True)


# --- validation -----------------------------------------------------------------------------------------------------

INVALID = {
    "missing completion": Answer(((1,), (2,), (3,))),
    "repeated completion": Answer(((1,), (2,), (3,), (4, 4))),
    "foreign completion": Answer(((1,), (2,), (3,), (99,))),
    "empty tier": Answer(((1, 2), (), (3, 4))),
    "no tiers": Answer(()),
    "skipped with tiers": ranking((1, 2, 3, 4), skip_reason="x"),
    "unknown flag": ranking((1, 2, 3, 4), flags={1: ("rude",)}),
    "flag of foreign completion": ranking((1, 2, 3, 4), flags={99: ("unsafe",)}),
    "rating out of range": ranking((1, 2, 3, 4), criteria={1: {"helpful": 6}}),
    "unknown criterion": ranking((1, 2, 3, 4), criteria={1: {"funny": 3}}),
    "rating of foreign completion": ranking((1, 2, 3, 4), criteria={99: {"helpful": 3}}),
    "not a number of seconds": ranking((1, 2, 3, 4), seconds=float("nan")),
}


def test_submit_of_invalid_answer_is_refused(stores: Stores) -> None:
    store = stores(criteria=["helpful"])
    store.add_items([new_item()])
    annotator = store.add_annotator("Ann").annotator.id
    (assignment,) = store.assign(annotator)
    assert sorted(assignment.order) == [1, 2, 3, 4]
    for answer in INVALID.values():
        with raises_issue("feedback.invalid-answer"):
            store.submit(annotator, assignment.id, answer, "key")
    store.submit(annotator, assignment.id, agreeing(assignment), "key")


def test_submit_of_best_worst_answer_with_other_tiers_is_refused(stores: Stores) -> None:
    store = stores(task="best-worst")
    store.add_items([new_item()])
    annotator = store.add_annotator("Ann").annotator.id
    (assignment,) = store.assign(annotator)
    for tiers in (((1, 2), (3, 4)), ((1,), (2,), (3,), (4,)), ((1,), (2, 3, 4)), ((1, 2, 3), (4,))):
        with raises_issue("feedback.invalid-answer"):
            store.submit(annotator, assignment.id, Answer(tiers), "key")
    store.submit(annotator, assignment.id, Answer(((1,), (2, 3), (4,))), "key")


def test_submit_of_pair_with_contradictory_strength_is_refused(stores: Stores) -> None:
    """The strength is negative if the first completion of the item is better."""
    store = stores(task="pair")
    store.add_items([new_item(completions=2)])
    annotator = store.add_annotator("Ann").annotator.id
    (assignment,) = store.assign(annotator)
    for tiers, strength in ((((1,), (2,)), 1), (((1, 2),), -2), (((2,), (1,)), 0), (((2,), (1,)), 4)):
        with raises_issue("feedback.invalid-answer"):
            store.submit(annotator, assignment.id, Answer(tiers, strength), "key")
    store.submit(annotator, assignment.id, Answer(((2,), (1,)), strength=3), "key")


def test_submit_of_all_bad_without_tiers_is_a_judgment(stores: Stores) -> None:
    store = stores(overlap=1)
    store.add_items([new_item()])
    annotator = store.add_annotator("Ann").annotator.id
    (assignment,) = store.assign(annotator)
    store.submit(annotator, assignment.id, Answer((), all_bad=True), "key")
    assert store.status().done == 1


def test_progress_counts_judgments_today_and_open_items(stores: Stores) -> None:
    store = stores()
    store.add_items(new_items(5))
    annotator = store.add_annotator("Ann").annotator.id
    judge(store, annotator, 2)
    stores.clock.now += 24 * HOUR
    (assignment,) = store.assign(annotator)
    store.submit(annotator, assignment.id, ranking(assignment.order, seconds=30.0), "key")
    (skipped,) = store.assign(annotator)
    store.skip(annotator, skipped.id, "broken", "skip")
    progress = store.progress(annotator)
    assert (progress.judged, progress.today, progress.remaining) == (3, 1, 1)
    assert progress.pace_seconds == 0.0  # the median of 0, 0 and 30 seconds
    assert progress.qualification == "none"


def test_submit_to_skipped_item_that_others_judged_since_is_refused(stores: Stores) -> None:
    """Undo after a skip must not exceed the overlap."""
    store = stores(overlap=1, max_overlap=1)
    store.add_items([new_item()])
    ann, bob = (store.add_annotator(name).annotator.id for name in ("Ann", "Bob"))
    (skipped,) = store.assign(ann)
    receipt = store.skip(ann, skipped.id, "broken", "skip")
    reopened = store.reopen(ann, receipt.judgment_id)
    (assignment,) = store.assign(bob)
    with pytest.raises(LeaseExpiredError):
        store.submit(ann, reopened.id, agreeing(reopened), "answer")
    store.submit(bob, assignment.id, agreeing(assignment), "answer")
    assert store.status().judgments == 1


def test_submit_to_skipped_item_that_is_still_open_is_stored(stores: Stores) -> None:
    store = stores(overlap=1, max_overlap=1)
    store.add_items([new_item()])
    ann = store.add_annotator("Ann").annotator.id
    (skipped,) = store.assign(ann)
    reopened = store.reopen(ann, store.skip(ann, skipped.id, "broken", "skip").judgment_id)
    store.submit(ann, reopened.id, agreeing(reopened), "answer")
    assert store.status().judgments == 1
