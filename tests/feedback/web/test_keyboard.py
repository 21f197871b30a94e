"""An annotator at a real browser, by keyboard alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from rlhf_cli.feedback.store import Store
from rlhf_cli.feedback.types import Judgment
from tests.support.browser import Person, served
from tests.support.feedback_store import Stores, judge, new_item, new_items

HOUR = 3600.0


@pytest.fixture
def person(page_stores: Stores, chromium: Browser) -> Iterator[Person]:
    """Log in an annotator of a project with 20 items to rank."""
    store = page_stores()
    store.add_items(new_items(20))
    yield from annotator_of(store, chromium)


def annotator_of(store: Store, browser: Browser) -> Iterator[Person]:
    with served(store) as address:
        someone = Person(browser, address)
        someone.log_in(store.add_annotator("Ann"))
        yield someone
        someone.context.close()
        assert someone.problems == []


def shown_tiers(judgment: Judgment) -> list[list[int]]:
    """Return the tiers as shown positions."""
    return [sorted(judgment.order.index(completion) + 1 for completion in tier) for tier in judgment.answer.tiers]


def test_session_by_keyboard_alone_is_stored_exactly(page_stores: Stores, chromium: Browser) -> None:
    """Log in, pass the qualification, rank five, tie two, undo one, flag one, leave and return."""
    store = page_stores(qualification={"path": "q.jsonl", "min_accuracy": 0.5})
    store.set_guideline("Be fair.")
    store.add_items([new_item(kind="qualification", explanation="Zero is best."), *new_items(6)])
    with served(store) as address:
        ann = Person(chromium, address)
        ann.log_in(store.add_annotator("Ann"))
        ann.read_guideline()
        (assignment,) = store.assign(1)
        with ann.until_next():
            ann.press(*(str(assignment.order.index(completion) + 1) for completion in sorted(assignment.order)))
            expect(ann.page.locator("#outcome")).to_contain_text("You passed the test")
            ann.press("Enter")

        with ann.until_next():  # an ordinary item, submitted after a moment
            ann.press("2", "1", "3", "4")
        with ann.until_next():  # two tied, submitted at once
            ann.press("3", "1", "=", "4", "2", "Enter")
        with ann.until_next():  # a slip is undone
            ann.press("1", "Backspace", "4", "3", "2", "1", "Enter")
        with ann.until_next():  # one flagged
            ann.press("1", "2")
            ann.press("f", "2", "f", "Enter")
            ann.press("3", "4", "Enter")

        ann.press("4", "2")  # leave in the middle of the fifth
        shown = ann.item_id()
        ann.page.goto("about:blank")
        ann.page.goto(f"{address}/")
        assert ann.item_id() == shown
        expect(ann.page.locator('.answer[data-position="4"] .rank')).to_have_text("1st")
        with ann.until_next():
            ann.press("1", "3", "Enter")
        ann.context.close()
    assert ann.problems == []
    first, *judgments = store.snapshot().judgments
    assert first.item_id == assignment.item.id
    assert [shown_tiers(judgment) for judgment in judgments] == [
        [[2], [1], [3], [4]],
        [[3], [1, 4], [2]],
        [[4], [3], [2], [1]],
        [[1], [2], [3], [4]],
        [[4], [2], [1], [3]],
    ]
    flagged = judgments[3]
    assert [judgment.answer.flags for judgment in judgments] == [{}, {}, {}, {flagged.order[1]: ("false",)}, {}]
    assert all(judgment.answer.seconds > 0 for judgment in judgments)
    assert all(judgment.guideline for judgment in judgments)


@pytest.mark.parametrize(
    ("task", "completions", "keys", "tiers"),
    [
        ("best-worst", 4, ["3", "1"], [[3], [2, 4], [1]]),
        ("pair", 2, ["2"], [[2], [1]]),
        ("pair", 2, ["0"], [[1, 2]]),
        ("rank", 3, ["2", "3", "1"], [[2], [3], [1]]),
    ],
)
def test_ordinary_item_needs_the_fewest_keys(
    page_stores: Stores, chromium: Browser, task: str, completions: int, keys: list[str], tiers: list[list[int]]
) -> None:
    """At most two keys per ordinary item of best-worst and pair, and no further key to submit."""
    store = page_stores(task=task)
    store.add_items(new_items(2, completions=completions))
    for ann in annotator_of(store, chromium):
        ann.page.evaluate("addEventListener('keydown', () => { window.pressed = (window.pressed ?? 0) + 1; }, true)")
        with ann.until_next():
            ann.press(*keys)
        assert ann.page.evaluate("window.pressed") == len(keys)
        assert len(keys) <= 2 or task == "rank"
    (judgment,) = store.snapshot().judgments
    assert shown_tiers(judgment) == tiers


def test_backspace_within_the_moment_takes_the_last_digit_back(person: Person) -> None:
    person.press("1", "2", "3", "4", "Backspace")
    status = person.page.locator("#status")
    expect(status).to_have_text("Which comes next?")
    expect(person.page.locator('.answer[data-position="4"] .place')).to_have_attribute("aria-pressed", "false")


def test_backspace_on_a_fresh_item_answers_the_one_before_again(person: Person, page_stores: Stores) -> None:
    with person.until_next():
        person.press("1", "2", "3", "4", "Enter")
    with person.until_next():
        person.press("Backspace")
    expect(person.page.locator(".chosen")).to_have_count(4)
    with person.until_next():
        person.press("4", "3", "4", "3", "Enter")  # take two back, and put them the other way round
    (judgment,) = page_stores().snapshot().judgments
    assert shown_tiers(judgment) == [[1], [2], [4], [3]]


def test_pair_with_a_strong_preference_asks_why(page_stores: Stores, chromium: Browser) -> None:
    store = page_stores(task="pair")
    store.add_items(new_items(2, completions=2))
    for ann in annotator_of(store, chromium):
        ann.press("1", "1", "1")
        expect(ann.page.locator("#rationale")).to_be_focused()
        with ann.until_next():
            ann.page.keyboard.type("Because 2 is wrong.")
            ann.press("Enter")
    (judgment,) = store.snapshot().judgments
    assert abs(judgment.answer.strength or 0) == 3
    assert judgment.answer.rationale == "Because 2 is wrong."


def test_all_bad_is_one_key(person: Person, page_stores: Stores) -> None:
    with person.until_next():
        person.press("b")
    (judgment,) = page_stores().snapshot().judgments
    assert (judgment.answer.all_bad, judgment.answer.tiers) == (True, ())


def test_all_bad_is_one_key_if_best_and_worst_are_asked(page_stores: Stores, chromium: Browser) -> None:
    store = page_stores(task="best-worst")
    store.add_items(new_items(2))
    for ann in annotator_of(store, chromium):
        with ann.until_next():
            ann.press("b")
    (judgment,) = store.snapshot().judgments
    assert (judgment.answer.all_bad, judgment.answer.tiers) == (True, ())


def test_skip_by_keyboard_stores_the_reason(person: Person, page_stores: Stores) -> None:
    with person.until_next():
        person.press("s", "2")
    (judgment,) = page_stores().snapshot().judgments
    assert judgment.answer.skip_reason == "The prompt makes no sense"


def test_criteria_are_rated_by_digits_and_confirmed_by_enter(page_stores: Stores, chromium: Browser) -> None:
    store = page_stores(task="best-worst", criteria=["helpful", "correct"])
    store.add_items(new_items(2, completions=2))
    for ann in annotator_of(store, chromium):
        ann.press("2", "1")
        expect(ann.page.locator(".rating input").first).to_be_focused()
        with ann.until_next():
            ann.press("5", "4", "3", "2", "Enter")
    (judgment,) = store.snapshot().judgments
    first, second = judgment.order
    assert judgment.answer.criteria == {first: {"helpful": 5, "correct": 4}, second: {"helpful": 3, "correct": 2}}


def test_missing_ratings_are_asked_for_once(page_stores: Stores, chromium: Browser) -> None:
    store = page_stores(task="best-worst", criteria=["helpful"])
    store.add_items(new_items(2, completions=2))
    for ann in annotator_of(store, chromium):
        ann.press("2", "1", "Enter")
        expect(ann.page.locator("#status")).to_contain_text("2 ratings are missing")
        with ann.until_next():
            ann.press("Enter")
    (judgment,) = store.snapshot().judgments
    assert judgment.answer.criteria == {}


def test_complete_item_is_not_submitted_while_a_dialog_is_open(page_stores: Stores, chromium: Browser) -> None:
    store = page_stores()
    store.add_items(new_items(2))
    with served(store) as address:
        ann = Person(chromium, address)
        ann.page.clock.install()
        ann.log_in(store.add_annotator("Ann"))
        ann.press("1", "2", "3", "4", "f")
        ann.page.get_by_label("Unsafe: answer 3").check()
        ann.page.clock.run_for(10_000)
        expect(ann.page.locator("#flag")).to_be_visible()
        ann.press("Escape")
        with ann.until_next():
            ann.page.clock.run_for(10_000)
        ann.context.close()
    (judgment,) = store.snapshot().judgments
    assert judgment.answer.flags == {judgment.order[2]: ("unsafe",)}


def test_keys_overlay_lists_the_keys_of_the_task(person: Person) -> None:
    person.press("?")
    dialog = person.page.locator("#keys")
    expect(dialog).to_be_visible()
    expect(dialog).to_contain_text("ties with the last one")
    expect(dialog.get_by_text("Equally good")).to_be_hidden()
    person.press("Escape")
    expect(dialog).to_be_hidden()


def test_keys_turned_off_do_nothing_until_turned_on(person: Person) -> None:
    person.press("?")
    person.page.get_by_label("Turn off the keys").check()
    person.press("Escape", "1")
    expect(person.page.locator(".chosen")).to_have_count(0)
    person.page.get_by_role("button", name="Answer 1: not placed").press("Enter")
    expect(person.page.locator(".chosen")).to_have_count(1)


def test_setting_to_wait_submits_only_by_enter(person: Person) -> None:
    person.press("?")
    person.page.get_by_label("Never submit by itself").check()
    person.press("Escape", "1", "2", "3", "4")
    expect(person.page.locator("#status")).to_have_text("Complete. Submit it, or change it.")
    with person.until_next():
        person.press("Enter")


def test_digits_of_another_keyboard_layout_work(person: Person) -> None:
    """A French keyboard types & for the key of the digit 1."""
    event = {"key": "&", "code": "Digit1", "bubbles": True}
    person.page.locator("#item-heading").dispatch_event("keydown", event)
    expect(person.page.locator('.answer[data-position="1"] .rank')).to_have_text("1st")


def test_guideline_that_changed_is_shown_before_the_next_item(page_stores: Stores, chromium: Browser) -> None:
    store = page_stores()
    store.set_guideline("Be kind.")
    store.add_items(new_items(3))
    for ann in annotator_of(store, chromium):
        ann.read_guideline()
        store.set_guideline("Be kind and brief.")
        with ann.until_next():  # the next one was loaded before the change
            ann.press("1", "2", "3", "4", "Enter")
        dialog = ann.page.locator("#guideline")
        expect(dialog).to_be_visible()
        expect(dialog.locator("ins")).to_contain_text("Be kind and brief.")
        expect(dialog.locator("del")).to_contain_text("Be kind.")


def test_guideline_is_shown_to_each_person_who_shares_a_browser(page_stores: Stores, chromium: Browser) -> None:
    store = page_stores()
    store.set_guideline("Be kind.")
    store.add_items(new_items(3))
    with served(store) as address:
        shared = Person(chromium, address)
        for name in ("Ann", "Bob"):
            shared.log_in(store.add_annotator(name))
            shared.read_guideline()
            shared.page.reload()
            expect(shared.page.locator(".item")).to_be_visible()
            expect(shared.page.locator("#guideline")).to_be_hidden()
            shared.page.get_by_role("button", name="Log out").click()
            shared.page.wait_for_url("**/login")
        shared.context.close()


def test_rest_is_suggested_after_fifty_minutes(page_stores: Stores, chromium: Browser) -> None:
    store = page_stores()
    store.add_items(new_items(30))
    with served(store) as address:
        ann = Person(chromium, address)
        ann.page.clock.install()
        ann.log_in(store.add_annotator("Ann"))
        rest = ann.page.locator("#rest")
        for _ in range(13):  # an item every four minutes
            expect(rest).to_be_hidden()
            ann.page.clock.run_for(4 * 60_000)
            with ann.until_next():
                ann.press("1", "2", "3", "4", "Enter")
        expect(rest).to_be_visible()
        ann.press("Enter")
        expect(rest).to_be_hidden()
        ann.context.close()


def test_expired_lease_is_told_and_the_text_kept(page_stores: Stores, chromium: Browser) -> None:
    store = page_stores(overlap=1, max_overlap=1)
    store.add_items(new_items(1))
    with served(store) as address:
        ann = Person(chromium, address)
        ann.log_in(store.add_annotator("Ann"))
        ann.press("r")
        ann.page.keyboard.type("A long thought.")
        ann.press("Escape")
        page_stores.clock.now += 2 * HOUR
        judge(store, store.add_annotator("Bob").annotator.id)
        ann.press("1", "2", "3", "4", "Enter")
        expect(ann.page.locator("#outcome")).to_contain_text("The time for this item is over")
        expect(ann.page.locator("#kept")).to_have_value("A long thought.")
        with ann.until_next():
            ann.press("Enter")
        ann.context.close()
    assert len(store.snapshot().judgments) == 1


def test_answer_without_connection_is_kept_and_sent_later(person: Person, page_stores: Stores) -> None:
    person.context.set_offline(True)
    person.press("1", "2", "3", "4", "Enter")
    expect(person.page.locator("#status")).to_contain_text("No connection")
    with person.until_next():
        person.context.set_offline(False)
    assert len(page_stores().snapshot().judgments) == 1
    person.problems = [problem for problem in person.problems if "ERR_INTERNET_DISCONNECTED" not in problem]


def test_two_tabs_and_the_back_button_give_one_judgment(person: Person, page_stores: Stores) -> None:
    other = person.open_tab()
    other.goto(f"{person.address}/annotate")
    expect(other.locator(".item")).to_have_attribute("data-id", person.item_id())
    with person.until_next():
        person.press("1", "2", "3", "4", "Enter")
    for key in ("4", "3", "2", "1", "Enter"):
        other.keyboard.press(key)
    expect(other.locator("#status")).to_contain_text("answered this item already")
    second = person.item_id()
    expect(other.locator(".item")).to_have_attribute("data-id", second)
    person.page.goto(f"{person.address}/login")
    person.page.go_back()
    assert person.item_id() == second
    (judgment,) = page_stores().snapshot().judgments
    assert shown_tiers(judgment) == [[1], [2], [3], [4]]


def test_invite_code_leaves_the_address_bar(page_stores: Stores, chromium: Browser) -> None:
    store = page_stores()
    invite = store.add_annotator("Ann")
    with served(store) as address:
        ann = Person(chromium, address)
        ann.page.goto(f"{address}/login#{invite.token}")
        expect(ann.page.get_by_label("Invite code")).to_have_value(invite.token)
        assert ann.page.url == f"{address}/login"
        ann.page.get_by_label("Invite code").fill("")
        ann.page.goto(f"{address}/login#{invite.token}")  # the same link again, which loads nothing
        expect(ann.page.get_by_label("Invite code")).to_have_value(invite.token)
        ann.context.close()


def test_expert_adjudicates_with_one_key(page_stores: Stores, chromium: Browser) -> None:
    store = page_stores(overlap=2, max_overlap=2)
    store.add_items(new_items(1))
    for name, agree in (("Ann", True), ("Bob", False)):
        judge(store, store.add_annotator(name).annotator.id, agree=agree)
    (entry,) = store.disputed()
    with served(store) as address:
        eve = Person(chromium, address)
        eve.log_in(store.add_annotator("Eve", role="expert"))
        eve.page.goto(f"{address}/disagreements/{entry.item.id}")
        eve.press("b")
        eve.page.wait_for_url("**/disagreements")
        expect(eve.page.locator("main")).to_contain_text("Nothing to settle.")
        eve.context.close()
    (decision,) = store.snapshot().decisions
    assert decision.tiers == entry.judgments[1].answer.tiers
    assert eve.problems == []
