"""Columns: which ones each kind of row needs, the recipe's mapping to our names, and what to say where none fits."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Literal

from rlhf_cli.data.reading import Faults, Raw

Kind = Literal["pretrain", "sft", "preferences", "prompts"]

FORMS: dict[Kind, tuple[tuple[str, ...], ...]] = {  # the columns that a form needs; the first that fits is taken
    "pretrain": (("text",),),
    "sft": (("prompt", "completion"), ("messages",), ("text",)),
    "preferences": (("chosen", "rejected"),),
    "prompts": (("chosen", "rejected"), ("messages",), ("prompt",)),
}
NEEDED: dict[Kind, str] = {
    "pretrain": "`text`",
    "sft": "`prompt` and `completion`, or `messages`, or `text`",
    "preferences": "`prompt`, `chosen` and `rejected`, or the prompt as the beginning of both",
    "prompts": "`prompt`, or `messages`",
}
OTHER_NAMES = {  # what others call our columns
    "prompt": ("instruction", "question", "query", "input", "request"),
    "completion": ("output", "answer", "response", "target"),
    "chosen": ("preferred", "chosen_response", "response_chosen", "winner", "response1", "response_a"),
    "rejected": ("dispreferred", "rejected_response", "response_rejected", "loser", "response2", "response_b"),
    "messages": ("conversations", "conversation", "dialog", "turns"),
    "text": ("content", "document", "story", "story_text"),
}


def rename(
    raws: Sequence[Raw], columns: Mapping[str, str], found: list[str], name: str, faults: Faults
) -> tuple[list[Raw], list[str]] | None:
    """The rows and columns under our names; None, and the faults told, where a named column does not exist."""
    missing = [theirs for theirs in columns.values() if theirs not in found]
    for theirs in missing:
        close = difflib.get_close_matches(theirs, found, 1)
        mend = f"Did you mean {close[0]}?" if close else ""
        faults.add(f"`columns` names the column {theirs!r}; found: {', '.join(found)}.", name, mend)
    if missing:
        return None
    gone = {*columns.values(), *columns}
    kept = [column for column in found if column not in gone]
    renamed = []
    for where, fields in raws:
        row = {column: value for column, value in fields.items() if column not in gone}
        row.update({ours: fields[theirs] for ours, theirs in columns.items() if theirs in fields})
        renamed.append(Raw(where, row))
    return renamed, [*kept, *columns]


def add_wrong_columns(kind: Kind, found: Sequence[str], name: str, faults: Faults) -> None:
    faults.add(
        f"wrong columns for {kind} rows: found {', '.join(found) or 'none'}; needed {NEEDED[kind]}.",
        name,
        _mend_columns(kind, found),
    )


def _mend_columns(kind: Kind, found: Sequence[str]) -> str:
    """A mapping that would do, or the section where such data belongs."""
    for other, forms in FORMS.items():
        if other != kind and other != "prompts" and any(set(form) <= set(found) for form in forms):
            return f"These are {other} rows: they belong under data.{other}."
    for form in FORMS[kind]:
        wanted = ("prompt", *form) if form == ("chosen", "rejected") and "prompt" not in found else form
        mapping = {}
        for column in wanted:
            names = [other for other in OTHER_NAMES[column] if other in found]
            if column not in found:
                mapping[column] = names[0] if names else difflib.get_close_matches(column, found, 1)
        if all(isinstance(theirs, str) for theirs in mapping.values()):
            pairs = ", ".join(f"{ours}: {theirs}" for ours, theirs in mapping.items())
            return f"Map them in the recipe: `columns: {{{pairs}}}`."
    return "Map them in the recipe, as in `columns: {prompt: instruction}`: our name, then the data's."
