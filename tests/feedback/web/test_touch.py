"""An annotator on a phone: 390 pixels wide, by touch alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, expect

from rlhf_cli.feedback.types import Judgment
from tests.support.browser import PHONE, Person, served
from tests.support.feedback_store import Stores, new_item, new_items


@pytest.fixture
def phone(page_stores: Stores, chromium: Browser) -> Iterator[Person]:
    """Log in an annotator of a project with a qualification test and six items."""
    store = page_stores(qualification={"path": "q.jsonl", "min_accuracy": 0.5})
    store.set_guideline("Be fair.")
    store.add_items([new_item(kind="qualification"), *new_items(6)])
    with served(store) as address:
        ann = Person(chromium, address, viewport=PHONE, has_touch=True, is_mobile=True)
        ann.page.goto(f"{address}/login#{store.add_annotator('Ann').token}")
        ann.page.get_by_role("button", name="Begin").tap()
        ann.page.wait_for_url("**/annotate")
        ann.page.locator("#guideline").get_by_role("button", name="Continue").tap()
        yield ann
        ann.context.close()
        assert ann.problems == []


def shown_tiers(judgment: Judgment) -> list[list[int]]:
    """Return the tiers as shown positions."""
    return [sorted(judgment.order.index(completion) + 1 for completion in tier) for tier in judgment.answer.tiers]


def tap(phone: Person, *positions: int) -> None:
    for position in positions:
        phone.page.locator(f'[data-choose="{position}"]').tap()


def pass_test(phone: Person, stores: Stores) -> None:
    (assignment,) = stores(qualification={"path": "q.jsonl", "min_accuracy": 0.5}).assign(1)
    with phone.until_next():
        tap(phone, *(assignment.order.index(completion) + 1 for completion in sorted(assignment.order)))
        phone.page.get_by_role("button", name="Continue").tap()


def test_session_by_touch_is_stored_exactly(phone: Person, page_stores: Stores) -> None:
    """Pass the qualification, rank five, tie two, undo one, flag one, leave and return."""
    page = phone.page
    submit, undo = page.get_by_role("button", name="Submit"), page.get_by_role("button", name="Undo")
    pass_test(phone, page_stores)
    with phone.until_next():  # submitted after a moment
        tap(phone, 2, 1, 3, 4)
    with phone.until_next():  # two tied
        tap(phone, 3, 1)
        page.get_by_role("button", name="Tie the next answer").tap()
        tap(phone, 4, 2)
        submit.tap()
    with phone.until_next():  # a slip is undone
        tap(phone, 1)
        undo.tap()
        tap(phone, 4, 3, 2, 1)
        submit.tap()
    with phone.until_next():  # one flagged
        page.get_by_role("button", name="Flag").tap()
        page.get_by_label("False: answer 2").tap()
        page.get_by_role("button", name="Done").tap()
        tap(phone, 1, 2, 3, 4)
        submit.tap()
    tap(phone, 4, 2)  # leave in the middle of the fifth
    shown = phone.item_id()
    page.goto("about:blank")
    page.goto(phone.address)
    assert phone.item_id() == shown
    with phone.until_next():
        tap(phone, 1, 3)
        submit.tap()
    _, *judgments = page_stores().snapshot().judgments
    assert [shown_tiers(judgment) for judgment in judgments] == [
        [[2], [1], [3], [4]],
        [[3], [1, 4], [2]],
        [[4], [3], [2], [1]],
        [[1], [2], [3], [4]],
        [[4], [2], [1], [3]],
    ]
    assert judgments[3].answer.flags == {judgments[3].order[1]: ("false",)}


def drag(phone: Person, source: Locator, target: Locator) -> None:
    """Drag with a finger, as the browser reports it."""
    start, end = source.bounding_box(), target.bounding_box()
    assert start is not None
    assert end is not None
    touch = phone.context.new_cdp_session(phone.page)
    first = {"x": start["x"] + start["width"] / 2, "y": start["y"] + start["height"] / 2}
    last = {"x": end["x"] + end["width"] / 2, "y": end["y"] + end["height"] / 2}
    middle = {axis: (first[axis] + last[axis]) / 2 for axis in "xy"}
    for kind, points in (("Start", [first]), ("Move", [middle]), ("Move", [last]), ("End", [])):
        touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})


def test_digits_dragged_onto_places_rank_and_tie(phone: Person, page_stores: Stores) -> None:
    pass_test(phone, page_stores)
    page = phone.page
    with phone.until_next():
        for position, slot in ((3, 0), (1, 1), (2, 1), (4, 3)):
            drag(phone, page.locator(f'.place [data-chip="{position}"]'), page.locator(f'[data-slot="{slot}"]'))
        expect(page.locator('.answer[data-position="2"] .rank')).to_have_text("2nd, tied")
        page.get_by_role("button", name="Submit").tap()
    (judgment,) = page_stores().snapshot().judgments[1:]
    assert shown_tiers(judgment) == [[3], [1, 2], [4]]


def test_digit_dragged_off_its_place_is_free_again(phone: Person, page_stores: Stores) -> None:
    pass_test(phone, page_stores)
    tap(phone, 1)
    expect(phone.page.locator(".chosen")).to_have_count(1)
    drag(phone, phone.page.locator('.slot [data-chip="1"]'), phone.page.locator("header.top"))
    expect(phone.page.locator(".chosen")).to_have_count(0)


def test_phone_shows_targets_of_44_pixels_and_no_keys(phone: Person) -> None:
    """The size that Apple and WCAG 2.5.5 ask for."""
    page = phone.page
    for button in page.locator(".item button:visible").all():
        box = button.bounding_box()
        assert box is not None
        assert box["height"] >= 44
    expect(page.locator("kbd:visible")).to_have_count(0)


def test_phone_does_not_scroll_sideways(phone: Person) -> None:
    assert phone.page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
