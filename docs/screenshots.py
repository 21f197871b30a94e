"""Make the screenshots of docs/annotation.md: every page, light and dark, on a desktop and on a phone.

python docs/screenshots.py           write docs/images/annotation/
python docs/screenshots.py DIR       write them elsewhere
"""

from __future__ import annotations

import io
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from PIL import Image
from playwright.sync_api import Browser, Page

from rlhf_cli.feedback.store import Assignment, Store
from rlhf_cli.feedback.types import Answer, NewCompletion, NewItem

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from tests.support.browser import DESKTOP, PHONE, Person, running_chromium, served  # noqa: E402 - not installed
from tests.support.feedback_store import Stores  # noqa: E402

OUT = DOCS / "images" / "annotation"
PROFILES: dict[str, dict[str, Any]] = {
    "1280": {"viewport": DESKTOP},
    "390": {"viewport": PHONE, "has_touch": True, "is_mobile": True},
}
VARIANTS = [(scheme, size) for scheme in ("light", "dark") for size in PROFILES]
COLORS = 128  # of a file; more makes it three times as large and looks the same
DAYS = 21
GUIDELINE = """# How to compare answers

Put the answer first that you would rather have received yourself.

1. **Correct** comes before everything else.
2. **Helpful**: it answers what was asked, and nothing that was not.
3. **Short**, if nothing is lost by it.

Flag what is unsafe or false. A flag stands beside your ranking: do not rank anything lower for it alone.
"""
CHANGED = GUIDELINE.replace(
    "3. **Short**, if nothing is lost by it.", "3. **Short**: of two equally good answers, the shorter one wins."
)

OPINIONS = (
    ((0, 1, 3, 2), "It says how, step by step. The one that says no is wrong: the box is not needed."),
    ((1, 0, 3, 2), "Kind, honest about the risk, and it offers the label at once."),
    ((0, 1, 2, 3), "The long one never answers the question, so it is worse than a wrong answer."),
)
TOPICS = ["lamp", "chair", "desk", "shelf", "carpet", "mirror", "sofa", "bed", "vase", "clock"]


class Shot(NamedTuple):
    """One page: how to open it, and how to bring it into the state that is shown."""

    name: str
    prompt: str
    keys: Callable[[Page], None]
    settings: Mapping[str, Any] = MappingProxyType({})


def press(*keys: str) -> Callable[[Page], None]:
    """Return the step that presses keys."""

    def step(page: Page) -> None:
        for key in keys:
            page.keyboard.press(key)

    return step


def write_why(page: Page) -> None:
    """Rank, and say why."""
    press("2", "1", "4", "3", "Backspace", "3", "r")(page)
    page.keyboard.type("The second answers the question and says how; the third is wrong.")


def pass_test(page: Page) -> None:
    """Answer the item of the qualification test."""
    press("1", "2", "3", "4", "Enter")(page)
    page.locator("#outcome h2").wait_for()


ITEMS = json.loads((DOCS / "screenshots.json").read_text(encoding="utf-8"))
CRITERIA = {"task": "best-worst", "criteria": ["helpful", "correct", "tone"]}
SHOTS = [
    Shot("item", "return", press("2", "1")),
    Shot("code", "code", press("1", "=", "2")),
    Shot("arabic", "arabic", press("1")),
    Shot("chinese", "chinese", press("1")),
    Shot("pair", "return", press("1", "1"), {"task": "pair"}),
    Shot("criteria", "return", press("2", "3", "4", "5"), CRITERIA),
    Shot("why", "return", write_why),
    Shot("flag", "return", press("f", "3", "f")),
    Shot("skip", "return", press("s")),
    Shot("keys", "return", press("?")),
    Shot("qualification", "code", pass_test, {"qualification": {"path": "q.jsonl", "min_accuracy": 0.2}}),
    Shot("guideline", "return", press()),
    Shot("guideline-changed", "return", press()),
    Shot("done", "", press()),
]


def new_item(name: str, *, pair: bool = False, **fields: Any) -> NewItem:
    """Return one of the items."""
    texts = ITEMS[name]["completions"][: 2 if pair else 4]
    completions = tuple(NewCompletion(text, "shop/sft") for text in texts)
    return NewItem(ITEMS[name]["prompt"], completions, language=ITEMS[name]["language"], **fields)


@contextmanager
def project(shot: Shot) -> Iterator[Store]:
    """Yield a store in the state that a picture needs."""
    with tempfile.TemporaryDirectory() as folder, Stores(f"{folder}/feedback.db").closing() as stores:
        store = stores(project="furniture-shop", **shot.settings)
        store.set_guideline(GUIDELINE)
        is_test = "qualification" in shot.settings
        if is_test:
            answer = ((0,), (1,), (3,), (2,))
            explanation = (
                "`dict.fromkeys` and the loop are right. Sorting loses the order that the question asks to keep."
            )
            store.add_items([new_item(shot.prompt, kind="qualification", answer=answer, explanation=explanation)])
        elif shot.prompt:
            store.add_items([new_item(shot.prompt, pair=shot.settings.get("task") == "pair")])
        yield store


def take(browser: Browser, shot: Shot, out: Path) -> None:
    """Take the pictures of one page of an annotator, each of a new project, so that all show the same."""
    for scheme, size in VARIANTS:
        with project(shot) as store, served(store) as address:
            person = Person(browser, address, color_scheme=scheme, **PROFILES[size])
            wait_for_submit(person)
            person.log_in(store.add_annotator("Amal"))
            if shot.prompt:
                person.page.locator("#guideline[open]").wait_for()
            if shot.prompt and shot.name != "guideline":
                person.press("Enter")
            if shot.name == "guideline-changed":
                store.set_guideline(CHANGED)
                person.page.reload()
                person.page.locator("#guideline[open] ins").wait_for()
            shot.keys(person.page)
            save(person.page, out / f"{shot.name}-{scheme}-{size}.png")
            person.context.close()


def wait_for_submit(person: Person) -> None:
    """Keep complete items on the page, however long the picture takes."""
    for name in ("annotator-001", "annotator-007"):  # the pseudonyms of the annotator and of the owner
        person.context.add_init_script(f"localStorage.setItem('rlhf:furniture-shop:{name}:wait', 'true')")


def save(page: Page, path: Path, *, whole: bool = False) -> None:
    """Save a picture of the window, or of the whole page, with few colors."""
    image = Image.open(io.BytesIO(page.screenshot(full_page=whole))).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.quantize(COLORS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)


@contextmanager
def round_of_feedback() -> Iterator[Store]:
    """Yield a store in which six people judged for three weeks, one of them carelessly."""
    generator = random.Random(0)
    settings = {"overlap": 2, "max_overlap": 3, "repeats": 0.05, "gold": {"path": "gold.jsonl", "share": 0.1}}
    with tempfile.TemporaryDirectory() as folder, Stores(f"{folder}/feedback.db").closing() as stores:
        store = stores(project="furniture-shop", **settings)
        people = [store.add_annotator(name).annotator for name in ("Amal", "Ben", "Chiara", "Dmitri", "Emeka", "Fen")]
        store.add_items([new_item("return")])
        for person, (ranks, rationale) in zip(people, OPINIONS, strict=False):
            (assignment,) = store.assign(person.id)
            order = sorted(assignment.order)
            tiers = tuple((order[rank],) for rank in ranks)
            flags = {order[2]: ("false",)} if ranks[-1] == 2 else {}
            store.submit(person.id, assignment.id, Answer(tiers, flags=flags, rationale=rationale), "first")  # type: ignore[arg-type]
        store.add_items([new_item("code"), *(question(number) for number in range(150))])
        noise = dict(zip((person.id for person in people), (0.04, 0.06, 0.05, 0.1, 0.07, 0.6), strict=True))
        for round_number in range(52):
            stores.clock.now += DAYS * 86_400 / 52
            for person in people:
                for assignment in store.assign(person.id):
                    improvement = 0.5 if round_number > 26 else 1.0  # the guideline became clearer
                    answer = simulate(assignment, noise[person.id] * improvement, generator)
                    store.submit(person.id, assignment.id, answer, f"{assignment.id}")
        yield store


def question(number: int) -> NewItem:
    """Return a short item; one of fifteen is a gold item."""
    topic = TOPICS[number % len(TOPICS)]
    texts = (
        f"Yes, the {topic} is in stock, and arrives on Friday.",
        f"Yes, the {topic} is in stock.",
        f"Perhaps. Ask again about the {topic}, please, as the {topic} is a {topic}.",
        "No idea.",
    )
    completions = tuple(NewCompletion(text, "shop/sft") for text in texts)
    prompt = f"Is the {topic} number {number} in stock?"
    if number % 15 == 0:
        return NewItem(prompt, completions, "gold", "en", answer=((0,), (1,), (2,), (3,)))
    return NewItem(prompt, completions, language="en")


def simulate(assignment: Assignment, noise: float, generator: random.Random) -> Answer:
    """Return the true order, with neighbors exchanged with the probability `noise`."""
    order = sorted(assignment.order)
    for index in range(len(order) - 1):
        if generator.random() < noise:
            order[index], order[index + 1] = order[index + 1], order[index]
    reasons = ("It says how, step by step.", "Right, and short.", "The others do not answer the question.", "")
    seconds = generator.lognormvariate(3.2, 0.4) * (0.25 if noise > 0.25 else 1)
    return Answer(tuple((number,) for number in order), rationale=generator.choice(reasons), seconds=seconds)


def take_owner(browser: Browser, out: Path) -> None:
    """Take the pictures of the log-in, the overview and a disagreement."""
    with round_of_feedback() as store, served(store) as address:
        store.add_annotator("owner", role="owner")
        for scheme, size in VARIANTS:
            person = Person(browser, address, color_scheme=scheme, **PROFILES[size])
            wait_for_submit(person)
            page = person.page
            page.goto(f"{address}/login#{'k3vQ' * 10}")
            save(page, out / f"login-{scheme}-{size}.png")
            person.log_in(store.renew_invite("owner"), then="**/overview")
            save(page, out / f"overview-{scheme}-{size}.png", whole=True)
            page.goto(f"{address}/disagreements")
            save(page, out / f"disagreements-{scheme}-{size}.png")
            page.locator(".disputes a").filter(has_text="return").click()
            page.locator(".judgments").wait_for()
            press("a")(page)
            save(page, out / f"disagreement-{scheme}-{size}.png")
            person.context.close()


def main() -> None:
    """Take all pictures."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    with running_chromium() as browser:
        for shot in SHOTS:
            take(browser, shot, out)
        take_owner(browser, out)
    print(f"{len(list(out.glob('*.png')))} pictures in {out}")


if __name__ == "__main__":
    main()
