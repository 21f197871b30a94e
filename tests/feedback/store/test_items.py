"""Items are added once and read back unchanged, whatever text they hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlhf_cli.errors import DataError
from rlhf_cli.feedback.types import Answer, Completion, Item, NewCompletion, NewItem
from tests.support.feedback_store import Stores, agreeing, judge, new_item, new_items, ranking
from tests.support.issues import raises_issue

TEXTS = {
    "lone surrogate": "a\ud800b\udfff",
    "NUL": "a\0b",
    "bidi overrides": "\u202eevil\u202c \u2067x\u2069",
    "control characters": "".join(map(chr, range(32))) + "\x7f\x85\u2028\ufeff\uffff",
    "beyond the basic plane": "𝔘𝔫𝔦 👩‍👩‍👧",
    "quotes": "\"'`\\ %s {x} :name --",
    "new lines": "\r\n\r\n\n",
    "html": "<script>alert(1)</script>",
    "spaces": "  ",
}


def test_added_item_is_read_back_unchanged(stores: Stores) -> None:
    store = stores()
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    texts = ("one", [{"role": "assistant", "content": "two"}], "three")
    new = NewItem(
        prompt,  # type: ignore[arg-type]
        tuple(NewCompletion(text, f"run {index}") for index, text in enumerate(texts)),  # type: ignore[arg-type]
        kind="gold",
        language="de",
        field="law",
        answer=((2,), (0, 1)),
        explanation="because",
        is_random=False,
        extra={"row": 3, "list": [1.5, None, {"x": True}]},
    )
    result = store.add_items([new])
    assert (result.added, result.existing) == (1, 0)
    item = store.item(result.ids[0])
    one, two, three = (completion.id for completion in item.completions)
    expected = Item(
        id=result.ids[0],
        prompt_key=item.prompt_key,
        prompt=prompt,  # type: ignore[arg-type]
        completions=(
            Completion(one, "one", "run 0"),
            Completion(two, texts[1], "run 1"),  # type: ignore[arg-type]
            Completion(three, "three", "run 2"),
        ),
        kind="gold",
        language="de",
        field="law",
        answer=((three,), (one, two)),
        explanation="because",
        is_random=False,
        extra={"row": 3, "list": [1.5, None, {"x": True}]},
    )
    assert item == expected
    assert store.snapshot().items == [expected]


def test_items_are_added_once(stores: Stores) -> None:
    store = stores()
    first = store.add_items(new_items(3))
    again = store.add_items([new_item(2), new_item(3), new_item(3)])
    assert (first.added, first.existing, again.added, again.existing) == (3, 0, 1, 2)
    assert again.ids == (first.ids[2], again.ids[1], again.ids[1])
    differing = [new_item(0, kind="gold"), new_item(0, completions=3), replace(new_item(0), prompt="other")]
    assert store.add_items(differing).added == 3
    assert store.add_items([]).ids == ()


def test_many_items_keep_their_order_and_completions(stores: Stores) -> None:
    store = stores()
    items = new_items(1200, completions=3)
    result = store.add_items(iter(items))
    assert (result.added, len(set(result.ids))) == (1200, 1200)
    stored = {item.id: item for item in store.snapshot().items}
    for number, new in zip(result.ids, items, strict=True):
        assert stored[number].prompt == new.prompt
        assert [c.text for c in stored[number].completions] == [c.text for c in new.completions]


def test_corrected_answer_of_gold_item_replaces_the_old_one(stores: Stores) -> None:
    store = stores()
    result = store.add_items([new_item(kind="gold", completions=2)])
    corrected = new_item(kind="gold", completions=2, answer=((1,), (0,)), explanation="corrected")
    assert store.add_items([corrected]).existing == 1
    item = store.item(result.ids[0])
    first, second = (completion.id for completion in item.completions)
    assert (item.answer, item.explanation) == (((second,), (first,)), "corrected")


def test_prompt_key_is_the_same_for_text_and_conversation(stores: Stores) -> None:
    store = stores()
    completions = new_item().completions
    conversation = [{"role": "system", "content": "s"}, {"role": "user", "content": "why  not"}]
    items = [NewItem(prompt, completions) for prompt in ("why not", conversation, "other")]  # type: ignore[arg-type]
    store.add_items(items)
    keys = [item.prompt_key for item in store.snapshot().items]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("item", "settings"),
    [
        (new_item(completions=1), {}),
        (new_item(completions=3), {"task": "pair"}),
        (new_item(kind="gold", answer=()), {}),
        (new_item(kind="qualification", answer=((0,), (1,), (2,), (4,))), {}),
        (new_item(language="x" * 101), {}),
        (new_item(field="x" * 101), {}),
    ],
)
def test_invalid_item_is_refused(stores: Stores, item: NewItem, settings: dict[str, str]) -> None:
    store = stores(**settings)
    with raises_issue("feedback.invalid-item", error=DataError):
        store.add_items([new_item(1, completions=2), item])
    assert store.snapshot().items == []


# --- text that databases and encodings stumble over -----------------------------------------------------------------


def test_text_survives_unchanged_in_every_column(stores: Stores) -> None:
    store = stores(overlap=1)
    for name, text in TEXTS.items():
        item = NewItem(
            text or "x",
            (NewCompletion(text, text), NewCompletion([{"role": "assistant", "content": text}], text)),
            language=text,
            field=text,
            extra={text: text},
        )
        (item_id,) = store.add_items([item]).ids
        found = store.item(item_id)
        read = NewItem(
            found.prompt,
            tuple(NewCompletion(completion.text, completion.source) for completion in found.completions),
            language=found.language,
            field=found.field,
            extra=found.extra,
        )
        assert read == item, name
        annotator = store.add_annotator(f"Ann {text}", languages=[text], fields=[text]).annotator
        (assignment,) = store.assign(annotator.id)
        assert assignment.item.id == item_id, name
        answer = ranking(assignment.order, rationale=text)
        store.submit(annotator.id, assignment.id, answer, f"{text} key")
        assert store.guideline(store.set_guideline(text)) is not None
    snapshot = store.snapshot()
    assert [judgment.answer.rationale for judgment in snapshot.judgments] == [*TEXTS.values()]
    assert [annotator.name for annotator in snapshot.annotators] == [f"Ann {text}" for text in TEXTS.values()]
    assert [*snapshot.guidelines.values()] == [*TEXTS.values()]
    assert len(store.digest()) == 64


def test_composed_and_decomposed_text_are_different_items(stores: Stores) -> None:
    store = stores()
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    store.add_items([replace(new_item(), prompt=composed), replace(new_item(), prompt=decomposed)])
    assert [item.prompt for item in store.snapshot().items] == [composed, decomposed]
    store.add_annotator(composed)
    store.add_annotator(decomposed)
    assert [annotator.name for annotator in store.annotators()] == [composed, decomposed]


def test_completions_of_five_megabytes_survive(stores: Stores) -> None:
    store = stores(overlap=1)
    texts = ["x" * 5_000_000, "語\ud800" * 1_000_000]
    store.add_items([NewItem("p", tuple(map(NewCompletion, texts)))])
    annotator = store.add_annotator("Ann").annotator.id
    (assignment,) = store.assign(annotator)
    by_id = {completion.id: completion.text for completion in assignment.item.completions}
    assert [by_id[number] for number in sorted(by_id)] == texts
    store.submit(annotator, assignment.id, ranking(assignment.order, rationale=texts[1]), "key")
    assert store.snapshot().judgments[0].answer.rationale == texts[1]


# --- guideline ------------------------------------------------------------------------------------------------------


def test_guideline_versions_are_kept_and_recorded_with_judgments(stores: Stores) -> None:
    store = stores(overlap=1)
    store.add_items(new_items(3))
    annotator = store.add_annotator("Ann").annotator.id
    assert store.guideline() is None
    judge(store, annotator)
    first = store.set_guideline("one")
    (assignment,) = store.assign(annotator)
    assert assignment.guideline == first
    second = store.set_guideline("two")
    assert store.set_guideline("two") == second
    (shown,) = store.assign(annotator)
    assert (shown.id, shown.guideline) == (assignment.id, second)
    store.submit(annotator, shown.id, agreeing(shown), "key")
    assert store.set_guideline("one") == first
    judge(store, annotator)
    snapshot = store.snapshot()
    assert [judgment.guideline for judgment in snapshot.judgments] == ["", second, first]
    assert snapshot.guidelines == {first: "one", second: "two"}
    current, earlier = store.guideline(), store.guideline(second)
    assert current is not None
    assert earlier is not None
    assert (current.text, earlier.text) == ("one", "two")
    # From `printf one | sha256sum`.
    assert first == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"


def test_answer_records_of_all_bad_and_flags_survive(stores: Stores) -> None:
    store = stores()
    store.add_items([new_item()])
    annotator = store.add_annotator("Ann").annotator.id
    (assignment,) = store.assign(annotator)
    answer = Answer((), all_bad=True, flags={assignment.order[0]: ("private",)})
    store.submit(annotator, assignment.id, answer, "key")
    assert store.snapshot().judgments[0].answer == answer
