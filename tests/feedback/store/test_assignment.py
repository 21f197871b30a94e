"""Which items an annotator gets, in which order, and how many judgments an item gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.feedback.store import NotFoundError, Store
from rlhf_cli.feedback.types import Answer
from tests.support.feedback_store import (
    Stores,
    agreeing,
    contradicting,
    judge,
    new_item,
    new_items,
    ranking,
)

HOUR = 3600.0
TEST: dict[str, Any] = {"path": "test.jsonl", "min_accuracy": 0.7}


def add(store: Store, *names: str, **fields: Any) -> list[int]:
    return [store.add_annotator(name, **fields).annotator.id for name in names]


def test_assign_without_items_returns_nothing(stores: Stores) -> None:
    store = stores()
    (annotator,) = add(store, "Ann")
    assert store.assign(annotator) == []


def test_assign_again_returns_the_same_leases(stores: Stores) -> None:
    """A reload, and a second tab."""
    store = stores()
    store.add_items(new_items(5))
    (annotator,) = add(store, "Ann")
    first = store.assign(annotator, 2)
    assert len({assignment.item.id for assignment in first}) == 2
    assert store.assign(annotator, 2) == first
    assert store.assign(annotator) == first[:1]
    assert store.assign(annotator, 3)[:2] == first


def test_assignment_hides_sources_answer_and_kind(stores: Stores) -> None:
    store = stores(gold={"path": "gold.jsonl", "share": 1.0})
    store.add_items([new_item(kind="gold", explanation="why", extra={"author": "x"})])
    (annotator,) = add(store, "Ann")
    (assignment,) = store.assign(annotator)
    item = assignment.item
    assert (item.kind, item.answer, item.explanation, item.extra) == ("item", (), "", {})
    assert {completion.source for completion in item.completions} == {""}
    assert [completion.id for completion in item.completions] == list(assignment.order)


def test_assigned_order_differs_between_annotators_and_is_reproducible(stores: Stores, tmp_path: Path) -> None:
    orders = []
    for url in (stores.url, str(tmp_path / "other.db")):
        with Stores(url).closing() as opened:
            store = opened()
            store.add_items(new_items(6))
            annotators = add(store, "Ann", "Bob")
            orders += [[assignment.order for assignment in store.assign(number, 6)] for number in annotators]
    assert orders[:2] == orders[2:]
    assert len(set(orders[0] + orders[1])) > 6  # 6 items; the same order for both would give 6


# --- overlap --------------------------------------------------------------------------------------------------------


def test_items_get_as_many_judgments_as_the_overlap(stores: Stores) -> None:
    store = stores(overlap=2)
    store.add_items(new_items(3))
    ann, bob, eve = add(store, "Ann", "Bob", "Eve")
    judge(store, ann, 3)
    judge(store, bob, 3)
    assert store.assign(eve) == []
    status = store.status()
    assert (status.items, status.open, status.done, status.disputed, status.judgments) == (3, 0, 3, 0, 6)


def test_assign_completes_items_before_it_starts_others(stores: Stores) -> None:
    store = stores(overlap=2)
    store.add_items(new_items(10))
    ann, bob = add(store, "Ann", "Bob")
    (assignment,) = store.assign(ann)
    assert [other.item.id for other in store.assign(bob)] == [assignment.item.id]


def test_contradiction_raises_the_overlap_to_its_maximum(stores: Stores) -> None:
    store = stores(overlap=2, max_overlap=3)
    store.add_items([new_item()])
    ann, bob, eve, dan = add(store, "Ann", "Bob", "Eve", "Dan")
    judge(store, ann)
    assert not store.assign(bob)[0].is_disputed
    judge(store, bob, agree=False)
    assert [entry.missing for entry in store.disputed()] == [1]
    assert store.assign(eve)[0].is_disputed
    judge(store, eve)
    assert store.assign(dan) == []
    (disputed,) = store.disputed()
    assert (len(disputed.judgments), disputed.missing) == (3, 0)
    assert store.status().disputed == 1


def test_tie_against_an_order_is_no_contradiction(stores: Stores) -> None:
    store = stores(overlap=2)
    store.add_items([new_item()])
    ann, bob, eve = add(store, "Ann", "Bob", "Eve")
    judge(store, ann)
    (assignment,) = store.assign(bob)
    store.submit(bob, assignment.id, Answer((tuple(assignment.order),)), "key")
    assert store.assign(eve) == []
    assert store.status().done == 1


def test_undone_contradiction_lowers_the_overlap(stores: Stores) -> None:
    store = stores(overlap=2, max_overlap=5)
    store.add_items([new_item()])
    ann, bob, eve = add(store, "Ann", "Bob", "Eve")
    judge(store, ann)
    (made,) = judge(store, bob, agree=False)
    reopened = store.reopen(bob, made)
    store.submit(bob, reopened.id, agreeing(reopened), "undo")
    assert store.assign(eve) == []
    assert store.status().done == 1


def test_changed_overlap_applies_to_items_of_the_store(stores: Stores) -> None:
    store = stores(overlap=1)
    store.add_items(new_items(2))
    ann, bob = add(store, "Ann", "Bob")
    judge(store, ann, 2)
    assert store.assign(bob) == []
    raised = stores(overlap=2)
    assert raised.status().open == 2
    judge(raised, bob, 1)
    lowered = stores(overlap=1)
    assert lowered.assign(bob) == []


def test_expired_lease_frees_the_slot(stores: Stores) -> None:
    store = stores(overlap=1, lease_minutes=60)
    store.add_items([new_item()])
    ann, bob = add(store, "Ann", "Bob")
    (lease,) = store.assign(ann)
    assert lease.expires == stores.clock.now + HOUR
    stores.clock.now += HOUR - 1
    assert store.assign(bob) == []
    stores.clock.now += 2
    assert [other.item.id for other in store.assign(bob)] == [lease.item.id]


def test_lease_is_extended_if_its_owner_returns_to_it(stores: Stores) -> None:
    store = stores(overlap=1, lease_minutes=60)
    store.add_items([new_item()])
    ann, bob = add(store, "Ann", "Bob")
    (lease,) = store.assign(ann)
    stores.clock.now += 0.75 * HOUR
    (again,) = store.assign(ann)
    assert (again.id, again.expires) == (lease.id, stores.clock.now + HOUR)
    stores.clock.now += 0.75 * HOUR
    assert store.assign(bob) == []


# --- who gets which item --------------------------------------------------------------------------------------------

MATCHES: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "same language": ({"languages": ["de"]}, {"language": "de"}, True),
    "other language": ({"languages": ["de"]}, {"language": "en"}, False),
    "region of the language": ({"languages": ["en"]}, {"language": "en-GB"}, True),
    "other region": ({"languages": ["en-US"]}, {"language": "en-GB"}, False),
    "language that begins alike": ({"languages": ["en"]}, {"language": "enm"}, False),
    "case": ({"languages": ["ZH-hant"]}, {"language": "zh-Hant"}, True),
    "one of two languages": ({"languages": ["de", "fr"]}, {"language": "fr"}, True),
    "unknown language": ({"languages": ["de"]}, {}, True),
    "annotator of all languages": ({}, {"language": "de"}, True),
    "same field": ({"fields": ["law"]}, {"field": "law"}, True),
    "other field": ({"fields": ["law"]}, {"field": "medicine"}, False),
    "no field": ({"fields": ["law"]}, {}, True),
    "language without the field": ({"languages": ["de"], "fields": ["law"]}, {"language": "de", "field": "art"}, False),
    "own text": ({}, {"extra": {"author": "Ann"}}, False),
    "own text of several authors": ({}, {"extra": {"author": ["Eve", "Ann"]}}, False),
    "text of another": ({}, {"extra": {"author": "Eve"}}, True),
}


def test_assign_matches_language_field_and_author(stores: Stores) -> None:
    for name, (annotator, item, expected) in MATCHES.items():
        store = stores(project=name)
        store.add_items([new_item(**item)])
        (ann,) = add(store, "Ann", **annotator)
        assert store.progress(ann).remaining == int(expected), name
        assert bool(store.assign(ann)) == expected, name


def test_assign_over_many_languages_takes_the_item_that_lacks_least(stores: Stores) -> None:
    store = stores(overlap=2)
    languages = [f"x{number}" for number in range(120)]
    store.add_items(new_item(language, language=language) for language in languages)
    ann, bob = add(store, "Ann", "Bob")
    (first,) = store.assign(ann)
    assert [other.item.id for other in store.assign(bob)] == [first.item.id]


def test_projects_of_one_database_are_separate(stores: Stores) -> None:
    first, second = stores(project="first"), stores(project="second")
    first.add_items([new_item()])
    (ann,) = add(first, "Ann")
    (other,) = add(second, "Ann")
    assert ann != other
    assert second.assign(other) == []
    judge(first, ann)
    assert second.snapshot().judgments == []
    assert second.status().annotators[0].judged == 0
    assert len(first.snapshot().judgments) == 1


# --- gold items and repeats -----------------------------------------------------------------------------------------


def test_gold_items_are_assigned_at_their_share_and_once(stores: Stores) -> None:
    store = stores(gold={"path": "gold.jsonl", "share": 0.2}, overlap=1)
    store.add_items([*new_items(80), *(new_item(f"gold {i}", kind="gold") for i in range(40))])
    (annotator,) = add(store, "Ann")
    assigned = store.assign(annotator, 80)
    gold = {item.id for item in store.snapshot().items if item.kind == "gold"}
    shown = [assignment.item.id for assignment in assigned if assignment.item.id in gold]
    assert len(shown) == len(set(shown))
    assert 6 <= len(shown) <= 26  # 80 · 0.2 = 16, and less than three standard deviations of √(80 · 0.2 · 0.8) = 3.6


def test_gold_items_do_not_count_towards_the_overlap(stores: Stores) -> None:
    store = stores(gold={"path": "gold.jsonl", "share": 1.0}, overlap=1)
    store.add_items([new_item(kind="gold")])
    for annotator in add(store, "Ann", "Bob", "Eve"):
        judge(store, annotator)
        assert store.assign(annotator) == []
    status = store.status()
    assert (status.items, status.judgments, status.kinds) == (0, 0, {"gold": 1})


def test_repeat_shows_an_earlier_item_once_more_in_reversed_order(stores: Stores) -> None:
    store = stores(repeats=0.5, overlap=1)
    store.add_items(new_items(40))
    (annotator,) = add(store, "Ann")
    orders: dict[int, tuple[int, ...]] = {}
    repeated: set[int] = set()
    for number in range(40):
        (assignment,) = store.assign(annotator)
        item = assignment.item.id
        if item in orders:
            assert item not in repeated
            assert assignment.order == orders[item][::-1]
            assert item not in [*orders][-5:]
            repeated.add(item)
        orders[item] = assignment.order
        store.submit(annotator, assignment.id, agreeing(assignment), f"{number}")
    assert len(orders) + len(repeated) == 40
    assert 8 <= len(repeated) <= 20
    judgments = store.snapshot().judgments
    assert {judgment.item_id for judgment in judgments if judgment.is_repeat} == repeated
    assert store.status().judgments == len(orders)


def test_item_that_was_undone_and_skipped_is_not_repeated(stores: Stores) -> None:
    store = stores(repeats=1.0, overlap=1)
    store.add_items(new_items(7))
    (annotator,) = add(store, "Ann")
    first, *_ = judge(store, annotator, 6)
    reopened = store.reopen(annotator, first)
    store.skip(annotator, reopened.id, "broken", "undo")
    (assignment,) = store.assign(annotator)
    assert assignment.item.id not in {judgment.item_id for judgment in store.snapshot().judgments}


# --- qualification --------------------------------------------------------------------------------------------------


def take_test(store: Store, annotator: int, answers: str) -> list[Any]:
    """Answer the test: r right, w wrong, s skip. Return the feedback."""
    feedback = []
    for index, letter in enumerate(answers):
        (assignment,) = store.assign(annotator)
        assert assignment.is_qualification
        if letter == "s":
            receipt = store.skip(annotator, assignment.id, "x", f"test {index}")
        else:
            answer = agreeing(assignment) if letter == "r" else contradicting(assignment)
            receipt = store.submit(annotator, assignment.id, answer, f"test {index}")
        feedback.append(receipt.feedback)
    return feedback


def test_qualification_is_passed_before_other_items(stores: Stores) -> None:
    store = stores(qualification=TEST)
    store.add_items([new_item("real"), *(new_item(i, kind="qualification", explanation=f"why {i}") for i in range(4))])
    (annotator,) = add(store, "Ann")
    assert len(store.assign(annotator, 9)) == 4
    assert store.progress(annotator).qualification == "open"
    feedback = take_test(store, annotator, "rwrr")
    assert [(found.correct, found.pairs, found.explanation) for found in feedback] == [
        (6, 6, "why 0"),
        (0, 6, "why 1"),
        (6, 6, "why 2"),
        (6, 6, "why 3"),
    ]
    assert [found.state for found in feedback] == ["open", "open", "open", "passed"]  # 18 of 24 pairs: 0.75
    assert feedback[0].tiers == tuple((completion.id,) for completion in store.item(2).completions)
    (assignment,) = store.assign(annotator)
    assert (assignment.is_qualification, assignment.item.prompt) == (False, "prompt real")


@pytest.mark.parametrize("answers", ["rww", "rss"])
def test_failed_qualification_ends_the_work(stores: Stores, answers: str) -> None:
    store = stores(qualification=TEST)
    store.add_items([new_item("real"), *(new_item(i, kind="qualification") for i in range(3))])
    (annotator,) = add(store, "Ann")
    assert take_test(store, annotator, answers)[-1].state == "failed"  # 6 of 18 pairs
    assert store.assign(annotator) == []
    progress = store.progress(annotator)
    assert (progress.qualification, progress.remaining, progress.judged) == ("failed", 0, 0)
    assert [row.qualification for row in store.status().annotators] == ["failed"]


def test_qualification_item_is_answered_once(stores: Stores) -> None:
    store = stores(qualification=TEST)
    store.add_items([new_item(i, kind="qualification") for i in range(2)])
    (annotator,) = add(store, "Ann")
    (assignment,) = store.assign(annotator)
    receipt = store.submit(annotator, assignment.id, contradicting(assignment), "first")
    again = store.submit(annotator, assignment.id, contradicting(assignment), "first")
    assert again == receipt
    changed = store.submit(annotator, assignment.id, agreeing(assignment), "second")
    assert changed == replace(receipt, is_duplicate=True)
    with pytest.raises(NotFoundError):
        store.reopen(annotator, receipt.judgment_id)


def test_qualification_grades_only_pairs_that_the_task_compares(stores: Stores) -> None:
    """Best and worst of four order five of the six pairs."""
    store = stores(task="best-worst", qualification={"path": "t.jsonl", "min_accuracy": 1.0})
    store.add_items([new_item(kind="qualification")])
    (annotator,) = add(store, "Ann")
    (assignment,) = store.assign(annotator)
    first, second, third, fourth = sorted(assignment.order)
    receipt = store.submit(annotator, assignment.id, Answer(((first,), (third, second), (fourth,))), "key")
    assert receipt.feedback is not None
    assert (receipt.feedback.correct, receipt.feedback.pairs, receipt.feedback.state) == (5, 5, "passed")


def test_tie_in_the_right_answer_must_be_answered_as_tie(stores: Stores) -> None:
    store = stores(qualification={"path": "t.jsonl", "min_accuracy": 1.0})
    store.add_items([new_item(kind="qualification", completions=3, answer=((0, 1), (2,)))])
    (annotator,) = add(store, "Ann")
    (assignment,) = store.assign(annotator)
    receipt = store.submit(annotator, assignment.id, ranking(sorted(assignment.order)), "key")
    assert receipt.feedback is not None
    assert (receipt.feedback.correct, receipt.feedback.pairs, receipt.feedback.state) == (2, 3, "failed")
