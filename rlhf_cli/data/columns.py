"""Columns: which ones each kind of row needs, the recipe's mapping to our names, and what to say where none fits."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from rlhf_cli.data.readers import Fields, IssueCollector

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


def renamed_columns(
    kind: Kind, columns: Mapping[str, str], found: Sequence[str], name: str, issues: IssueCollector
) -> list[str] | None:
    """The columns under our names; None, and the issues told, where `columns` names what there is not."""
    misspelt = list(_misspelt(kind, columns, found))
    for ours, meant in misspelt:
        hint = f"Did you mean {meant}?" if meant else f"Needed are {NEEDED[kind]}."
        issues.add(f"`columns` maps {columns[ours]!r} to {ours!r}, which {kind} rows do not have.", name, hint)
    missing = [theirs for theirs in columns.values() if theirs not in found]
    for theirs in missing:
        close = difflib.get_close_matches(theirs, found, 1)
        hint = f"Did you mean {close[0]}?" if close else ""
        issues.add(f"`columns` names the column {theirs!r}; found: {', '.join(found)}.", name, hint)
    if missing or misspelt:
        return None
    gone = {*columns.values(), *columns}
    return [*(column for column in found if column not in gone), *columns]


def renamed(fields: Fields, columns: Mapping[str, str]) -> Fields:
    """A row under our names. A column of ours that another one is mapped to gives way."""
    gone = {*columns.values(), *columns}
    row = {column: value for column, value in fields.items() if column not in gone}
    row.update({ours: fields[theirs] for ours, theirs in columns.items() if theirs in fields})
    return row


def _misspelt(kind: Kind, columns: Mapping[str, str], found: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The names for us in `columns` that mean none of ours, and the nearest one that is not there.

    Preferences and prompts may have further columns, under any name that is not nearly one of ours.
    """
    known = dict.fromkeys(column for form in FORMS[kind] for column in form)
    if kind == "preferences":
        known |= {"prompt": None, "margin": None}
    lacking = [column for column in known if column not in columns and column not in found]
    lacking += [theirs for theirs in columns.values() if theirs in known and theirs not in columns]  # renamed away
    for ours in columns:
        if ours not in known:
            close = difflib.get_close_matches(ours, lacking, 1, 0.75)
            if close or kind in ("pretrain", "sft"):
                yield ours, close[0] if close else ""


def add_wrong_columns(kind: Kind, found: Sequence[str], name: str, issues: IssueCollector) -> None:
    issues.add(
        f"wrong columns for {kind} rows: found {', '.join(found) or 'none'}; needed {NEEDED[kind]}.",
        name,
        _mend_columns(kind, found),
    )


def _mend_columns(kind: Kind, found: Sequence[str]) -> str:
    """A mapping that would do, or the section where such data belongs."""
    for other, forms in FORMS.items():
        if other != kind and other != "prompts" and any(set(form) <= set(found) for form in forms):
            return f"These are {other} rows: they belong under data.{other}."
    forms = FORMS[kind] if kind != "prompts" else FORMS[kind][::-1]  # a prompt alone is what prompts are
    guesses = [_guess(("prompt", *form) if form == ("chosen", "rejected") else form, found) for form in forms]
    mapping = next((guess for guess in guesses if "…" not in guess.values()), guesses[0])
    pairs = ", ".join(f"{ours}: {theirs}" for ours, theirs in mapping.items())
    return f"Map them in the recipe, our name to the data's: `columns: {{{pairs}}}`."


def _guess(wanted: Sequence[str], found: Sequence[str]) -> dict[str, str]:
    """For each of our columns that is not there, the one that may be meant, or …"""
    mapping = {}
    for column in wanted:
        if column not in found:
            known = [other for other in OTHER_NAMES[column] if other in found]
            mapping[column] = (known or difflib.get_close_matches(column, found, 1) or ["…"])[0]
    return mapping
