"""Snapshots of feedback for the tests of formats: items and judgments of every kind, with every field filled."""

from __future__ import annotations

from typing import Any

from rlhf_cli.data.rows import Text
from rlhf_cli.feedback.types import (
    Annotator,
    Answer,
    Completion,
    Decision,
    Item,
    Judgment,
    Snapshot,
    Source,
    TaskKind,
    Tiers,
)

GUIDELINE = "0" * 64
ANNOTATORS = (
    Annotator(1, "Ada Lovelace", "annotator-1"),
    Annotator(2, "Grace Hopper", "annotator-2"),
    Annotator(3, "gpt-4", "model-1", source="ai"),
)


def make_item(item_id: int, prompt: Text, texts: list[Any], **fields: Any) -> Item:
    """Return an item whose completions have the ids `10 * item_id` and following."""
    completions = tuple(Completion(10 * item_id + n, text, f"run-{n}") for n, text in enumerate(texts))
    return Item(item_id, f"key-{item_id}", prompt, completions, **fields)


def make_judgment(
    judgment_id: int,
    item_id: int,
    tiers: Tiers,
    *,
    annotator: int = 1,
    task: TaskKind = "rank",
    source: Source = "human",
    order: tuple[int, ...] = (),
    **answer: Any,
) -> Judgment:
    """Return a judgment, whose tiers hold ids of completions."""
    created = f"2026-11-25T10:00:{judgment_id:02}.000+00:00"
    return Judgment(
        judgment_id, item_id, annotator, task, Answer(tiers, **answer), order, source=source, created=created
    )


def full_snapshot() -> Snapshot:
    """Return items and judgments that use every field."""
    chat: Text = [{"role": "user", "content": "قل مرحبا"}]
    replies: list[Text] = [[{"role": "assistant", "content": text}] for text in ("مرحبا", "=1+1")]
    items = [
        make_item(1, "Say hi.", ["Hi", "", "'Hey", "@x"], language="en", field="greetings", is_random=False),
        make_item(2, chat, replies, kind="gold", answer=((20,), (21,)), explanation="-polite", extra={"n": [1, {}]}),
        make_item(3, "+ plus", ["a\r\nb", "\tc"], extra={"topic": "=cmd"}),
        make_item(4, "No judgment", ["x", "y"], extra={"author": ["Ada Lovelace", "somebody"]}),
    ]
    judgments = [
        make_judgment(1, 1, ((11,), (10, 12), (13,)), order=(13, 10, 11, 12), seconds=2.5, rationale="=better"),
        make_judgment(2, 1, ((12,), (10, 11), (13,)), annotator=2, task="best-worst"),
        make_judgment(3, 1, ((10,), (11,), (12,), (13,)), annotator=3, source="ai", criteria={10: {"kind, of": 4}}),
        make_judgment(4, 2, ((21,), (20,)), task="pair", strength=3, flags={0: ("unsafe",), 21: ("false", "broken")}),
        make_judgment(5, 2, ((20, 21),), annotator=2, task="pair", strength=0, all_bad=True),
        make_judgment(6, 3, (), skip_reason="not my language"),
        make_judgment(7, 3, ((31,), (30,)), annotator=2, task="pair", rationale="two\nlines"),
        make_judgment(8, 3, (), annotator=3, source="ai", all_bad=True),
    ]
    return Snapshot(items, ANNOTATORS, judgments, [Decision(1, 2, ((10,), (11, 12, 13)), "final")])
