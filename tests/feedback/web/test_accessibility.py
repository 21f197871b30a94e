"""What axe-core reports, and how the page looks to readers of other scripts, at 200 % zoom and by a screen reader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, Locator, expect

from rlhf_cli.data.rows import Message
from rlhf_cli.feedback.store import Store
from rlhf_cli.feedback.types import NewCompletion, NewItem
from tests.support.browser import DESKTOP, PHONE, Person, served
from tests.support.feedback_store import Stores, judge, new_item, new_items

ARABIC = ("ما هي عاصمة الأردن؟", "عاصمة الأردن هي **عمّان**.\n\n- المدرج الروماني\n- Rainbow Street", "لا أعرف.")
CHINESE = ("什么是强化学习？", "强化学习是让智能体通过与环境互动来学习的方法。", "我不知道。")
CODE = ("Sum a list in Python.", "```python\ndef total(rows):\n    return sum(rows)\n```", "Use a `for` loop.")


class Project(NamedTuple):
    """A served project with every kind of item, and a disagreement."""

    store: Store
    address: str
    disagreement: int


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with Stores(str(tmp_path_factory.mktemp("page") / "feedback.db")).closing() as stores:
        store = stores(criteria=["helpful"], overlap=2, max_overlap=2)
        store.set_guideline("# Rules\n\n1. Be **fair**.\n\n> Read twice.\n\n`code`")
        store.add_items([new_item("first")])
        for name, agree in (("Ann", True), ("Bob", False)):
            judge(store, store.add_annotator(name).annotator.id, agree=agree)
        turns = [Message(role=role, content=f"{role} says. " * 200) for role in ("system", "user", "assistant", "user")]
        texts = (CODE[1], "# Title\n\n| a | b |\n|---|---|\n| 1 | 2 |")
        store.add_items([NewItem(turns, tuple(NewCompletion(text) for text in texts))])
        with served(store) as address:
            yield Project(store, address, store.disputed()[0].item.id)


SCREENS = [(size, scheme) for size in ("desktop", "phone") for scheme in ("light", "dark")]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "scheme"), SCREENS)
def test_axe_reports_nothing_on_any_page(project: Project, chromium: Browser, size: str, scheme: str) -> None:
    viewport = DESKTOP if size == "desktop" else PHONE
    someone = Person(chromium, project.address, viewport=viewport, color_scheme=scheme)
    page, found = someone.page, {}
    page.goto(f"{project.address}/login")
    found["log-in"] = someone.violations()
    someone.log_in(project.store.add_annotator(f"{size} {scheme}", role="owner"), then="**/overview")
    found["overview"] = someone.violations()
    page.goto(f"{project.address}/disagreements")
    found["disagreements"] = someone.violations()
    page.goto(f"{project.address}/disagreements/{project.disagreement}")
    someone.press("a", "Backspace", "1")
    found["disagreement"] = someone.violations()
    page.goto(f"{project.address}/annotate")
    found["guideline"] = someone.violations()
    someone.read_guideline()
    found["item"] = someone.violations()
    page.locator("summary").click()
    someone.press("2", "1", "5")
    found["answered item"] = someone.violations()
    for key, name in (("?", "keys"), ("f", "flag"), ("s", "skip")):
        page.locator("#item-heading").focus()
        someone.press(key)
        expect(page.locator(f"#{name}")).to_be_visible()
        found[name] = someone.violations()
        someone.press("Escape")
    page.locator("#item-heading").focus()
    someone.press("r")
    found["why"] = someone.violations()
    someone.press("Escape", "s", "1")
    expect(page.locator("[data-done]")).to_be_visible()
    found["done"] = someone.violations()
    page.goto(f"{project.address}/missing")
    found["not found"] = someone.violations()
    someone.context.close()
    assert {name: violations for name, violations in found.items() if violations} == {}


@pytest.mark.parametrize(("size", "scheme"), SCREENS)
def test_axe_reports_nothing_on_the_outcome_of_a_test_item(
    page_stores: Stores, chromium: Browser, size: str, scheme: str
) -> None:
    store = page_stores(task="pair", qualification={"path": "q.jsonl", "min_accuracy": 0.5})
    store.add_items([new_item(kind="qualification", completions=2, explanation="Zero is *best*.")])
    with served(store) as address:
        viewport = DESKTOP if size == "desktop" else PHONE
        ann = Person(chromium, address, viewport=viewport, color_scheme=scheme)
        ann.log_in(store.add_annotator("Ann"))
        ann.press("1", "Enter")
        expect(ann.page.locator("#outcome")).to_be_visible()
        found = ann.violations()
        ann.context.close()
    assert found == []


def open_item(stores: Stores, texts: tuple[str, ...], language: str, chromium: Browser) -> Iterator[Person]:
    store = stores()
    prompt, *completions = texts
    store.add_items([NewItem(prompt, tuple(NewCompletion(text) for text in completions), language=language)])
    with served(store) as address:
        ann = Person(chromium, address)
        ann.log_in(store.add_annotator("Ann"))
        yield ann
        ann.context.close()


def right_edge_distance(block: Locator) -> float:
    """Return how far the text of a block ends from the block's right edge, in pixels."""
    return float(
        block.evaluate(
            """block => {
                const range = document.createRange();
                range.selectNodeContents(block);
                return block.getBoundingClientRect().right - range.getBoundingClientRect().right;
            }"""
        )
    )


def test_arabic_runs_from_the_right_within_its_box(page_stores: Stores, chromium: Browser) -> None:
    for ann in open_item(page_stores, ARABIC, "ar", chromium):
        page = ann.page
        expect(page.locator(".prompt")).to_have_attribute("dir", "rtl")
        expect(page.locator('.body[lang="ar"]')).to_have_count(2)
        for block in page.locator(".body p").all():
            assert right_edge_distance(block) < 1
            assert block.evaluate("block => getComputedStyle(block).direction") == "rtl"
        listed = page.locator(".body ul")
        assert listed.evaluate("list => getComputedStyle(list).direction") == "rtl"
        assert float(listed.evaluate("list => parseFloat(getComputedStyle(list).paddingRight)")) > 0


def test_chinese_is_marked_and_wraps(page_stores: Stores, chromium: Browser) -> None:
    texts = (CHINESE[0], CHINESE[1] * 20, CHINESE[2])
    for ann in open_item(page_stores, texts, "zh", chromium):
        body = ann.page.locator('.body[lang="zh"]').filter(has_text="智能体")
        assert body.inner_text() == texts[1]
        assert body.evaluate("box => box.scrollWidth <= box.clientWidth")


def test_code_keeps_its_lines_and_scrolls_by_keyboard(page_stores: Stores, chromium: Browser) -> None:
    long_line = "value = " + " + ".join(f"term_{number}" for number in range(40))
    texts = (CODE[0], f"```python\ndef f():\n    {long_line}\n```", CODE[2])
    for ann in open_item(page_stores, texts, "en", chromium):
        code = ann.page.locator(".body pre")
        assert code.inner_text().rstrip("\n") == f"def f():\n    {long_line}"
        assert code.evaluate("block => block.scrollWidth > block.clientWidth")
        code.focus()
        expect(code).to_be_focused()
        assert ann.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_boxes_scroll_with_each_other(page_stores: Stores, chromium: Browser) -> None:
    texts = ("Prompt", "line\n\n" * 100, "line\n\n" * 100)
    for ann in open_item(page_stores, texts, "en", chromium):
        boxes = ann.page.locator(".body")
        ann.press("ArrowDown", "PageDown")
        for _ in range(2):
            expect(boxes.nth(0)).not_to_have_js_property("scrollTop", 0)
        top = boxes.nth(0).evaluate("box => box.scrollTop")
        expect(boxes.nth(1)).to_have_js_property("scrollTop", top)


def test_long_prompt_scrolls_by_keyboard(page_stores: Stores, chromium: Browser) -> None:
    for ann in open_item(page_stores, ("prompt " * 2000, "yes", "no"), "en", chromium):
        prompt = ann.page.locator(".prompt")
        prompt.focus()
        ann.press("PageDown")
        expect(prompt).not_to_have_js_property("scrollTop", 0)


def test_page_at_200_percent_zoom_stacks_and_does_not_scroll_sideways(page_stores: Stores, chromium: Browser) -> None:
    """Zoom to 200 % halves the window in CSS pixels (WCAG 1.4.10 asks for 400 %, which is 320 pixels)."""
    store = page_stores(criteria=["helpful", "correct"])
    store.add_items(new_items(1))
    for width, height in ((640, 400), (320, 256)):
        with served(store) as address:
            ann = Person(chromium, address, viewport={"width": width, "height": height})
            ann.log_in(store.add_annotator(f"{width}"))
            assert ann.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            lefts = {box.bounding_box()["x"] for box in ann.page.locator(".answer").all()}  # type: ignore[index]
            assert len(lefts) == 1
            ann.context.close()


def test_progress_is_announced_to_a_screen_reader(page_stores: Stores, chromium: Browser) -> None:
    store = page_stores()
    store.add_items(new_items(2))
    with served(store) as address:
        ann = Person(chromium, address)
        ann.log_in(store.add_annotator("Ann"))
        said = ann.page.locator('[aria-live="polite"]')
        ann.press("2")
        expect(said).to_have_text("Which comes next?")
        expect(ann.page.get_by_role("button", name="Answer 2: 1st", pressed=True)).to_be_visible()
        ann.press("1", "3", "4")
        expect(said).to_contain_text("2 › 1 › 3 › 4")
        with ann.until_next():
            ann.press("Enter")
        expect(ann.page.locator("#item-heading")).to_be_focused()
        expect(said).to_contain_text("Which is best?")
        ann.context.close()
