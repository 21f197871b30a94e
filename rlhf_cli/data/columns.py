"""The columns of each dataset kind, the recipe's mapping to them, and the issue of a dataset with other columns."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf_cli.data.batches import Fields
from rlhf_cli.data.issues import IssueCollector
from rlhf_cli.formatting import did_you_mean
from rlhf_cli.stages import DatasetKind

Format = tuple[str, ...]  # the columns that a format needs

PAIR: Format = ("chosen", "rejected")
MESSAGES: Format = ("messages",)
MIN_SIMILARITY = 0.75  # of a target in `columns` to one of our columns, so that it is taken for a misspelling


@dataclass(frozen=True)
class KindSpec:
    """What the data of a dataset kind may look like.

    Attributes:
        expected: The columns, in words.
        formats: The known formats. The first one whose columns a dataset has is used.
        optional: Further columns with a meaning of their own.
        keeps_other_columns: Whether rows keep their other columns, under any name.
        accepts_other_kinds: Whether rows of other kinds can be used, so that a format does not identify this kind.
        reserved: Names that a column must not have.
        reads_text_files: Whether a paragraph of a .txt file can be a row.
        unique_prompts: Whether each prompt is used once, however many rows have it.
        suggested: The formats to map to, in order of preference, for a dataset with other columns.
    """

    expected: str
    formats: tuple[Format, ...]
    suggested: tuple[Format, ...]
    optional: tuple[str, ...] = ()
    keeps_other_columns: bool = False
    accepts_other_kinds: bool = False
    reserved: tuple[str, ...] = ()
    reads_text_files: bool = False
    unique_prompts: bool = False

    @property
    def known(self) -> list[str]:
        """All columns with a meaning."""
        return list(dict.fromkeys([*(column for row_format in self.formats for column in row_format), *self.optional]))


KINDS: Mapping[DatasetKind, KindSpec] = {
    "pretrain": KindSpec(expected="`text`", formats=(("text",),), suggested=(("text",),), reads_text_files=True),
    "sft": KindSpec(
        expected="`prompt` and `completion`, or `messages`, or `text`",
        formats=(("prompt", "completion"), MESSAGES, ("text",)),
        suggested=(("prompt", "completion"), MESSAGES, ("text",)),
    ),
    "preferences": KindSpec(
        expected="`prompt`, `chosen` and `rejected`, or `chosen` and `rejected` that start with the same prompt",
        formats=(PAIR,),
        suggested=(("prompt", *PAIR),),
        optional=("prompt", "margin"),
        keeps_other_columns=True,
    ),
    "prompts": KindSpec(
        expected="`prompt`, or `messages`",
        formats=(PAIR, MESSAGES, ("prompt",)),
        suggested=(("prompt",), MESSAGES, ("prompt", *PAIR)),
        optional=("prompt",),
        keeps_other_columns=True,
        accepts_other_kinds=True,
        reserved=("prompts", "completions"),  # arguments of every reward function
        unique_prompts=True,
    ),
}
COLUMN_SYNONYMS = {  # names that other datasets use for our columns
    "prompt": ("instruction", "question", "query", "input", "request"),
    "completion": ("output", "answer", "response", "target"),
    "chosen": ("preferred", "chosen_response", "response_chosen", "winner", "response1", "response_a"),
    "rejected": ("dispreferred", "rejected_response", "response_rejected", "loser", "response2", "response_b"),
    "messages": ("conversations", "conversation", "dialog", "turns"),
    "text": ("content", "document", "story", "story_text"),
}


def plan_columns(
    kind: DatasetKind, mapping: Mapping[str, str], found: Sequence[str], source: str, issues: IssueCollector
) -> tuple[Format, list[str]] | None:
    """Return the format of a dataset and its columns under our names, or None if an issue was added.

    Args:
        kind: The dataset kind.
        mapping: Our column names, each with the dataset's.
        found: The dataset's columns.
        source: Path or Hub id of the dataset, the location of an issue.
        issues: Where an issue is added.
    """
    columns = _map_columns(kind, mapping, found, source, issues) if mapping else list(found)
    if columns is None:
        return None
    row_format = next((known for known in KINDS[kind].formats if set(known) <= set(columns)), None)
    if row_format is None:
        message = f"columns: found {', '.join(columns) or 'none'}; expected {KINDS[kind].expected} for {kind} rows."
        issues.add("data.wrong-columns", message, source, _columns_hint(kind, columns))
        return None
    reserved = next((column for column in KINDS[kind].reserved if column in columns), None)
    if reserved is not None:
        message = f"columns: {reserved} is reserved for an argument of reward functions."
        hint = f"Rename it, for example with `columns: {{{reserved}_column: {reserved}}}`."
        issues.add("data.reserved-column", message, source, hint)
        return None
    return row_format, columns


def rename_columns(fields: Fields, mapping: Mapping[str, str]) -> Fields:
    """Return a row under our names. A mapped column replaces one that already has our name."""
    replaced = {*mapping.values(), *mapping}
    row = {column: value for column, value in fields.items() if column not in replaced}
    row.update({ours: fields[theirs] for ours, theirs in mapping.items() if theirs in fields})
    return row


def _map_columns(
    kind: DatasetKind, mapping: Mapping[str, str], found: Sequence[str], source: str, issues: IssueCollector
) -> list[str] | None:
    """Return the dataset's columns under our names, or None if the mapping is wrong and issues were added."""
    issues_before = issues.count
    for ours, suggestion in _find_unknown_targets(kind, mapping, found).items():
        message = f"columns: {mapping[ours]!r} is mapped to {ours!r}, which is not a column of {kind} rows."
        hint = f"Did you mean {suggestion}?" if suggestion else f"Map columns to {KINDS[kind].expected}."
        issues.add("data.unknown-column", message, source, hint)
    for theirs in mapping.values():
        if theirs not in found:
            message = f"columns: column {theirs!r} not found; found {', '.join(found)}."
            issues.add("data.unknown-column", message, source, did_you_mean(theirs, found))
    if issues.count > issues_before:
        return None
    replaced = {*mapping.values(), *mapping}
    return [*(column for column in found if column not in replaced), *mapping]


def _find_unknown_targets(kind: DatasetKind, mapping: Mapping[str, str], found: Sequence[str]) -> dict[str, str]:
    """Return the keys of `mapping` that are not our columns, each with the missing column that it may stand for, or "".

    If the kind keeps other columns, a key may be any name that is not similar to a missing column of ours.
    """
    known = KINDS[kind].known
    missing = [column for column in known if column not in mapping and column not in found]
    missing += [theirs for theirs in mapping.values() if theirs in known and theirs not in mapping]  # renamed away
    unknown = {}
    for ours in mapping:
        if ours not in known:
            similar = difflib.get_close_matches(ours, missing, 1, MIN_SIMILARITY)
            if similar or not KINDS[kind].keeps_other_columns:
                unknown[ours] = similar[0] if similar else ""
    return unknown


def _columns_hint(kind: DatasetKind, found: Sequence[str]) -> str:
    """Return a hint with the section to which such data belongs, or a mapping to our columns."""
    for other, columns in KINDS.items():
        is_of_other = any(set(row_format) <= set(found) for row_format in columns.formats)
        if other != kind and not columns.accepts_other_kinds and is_of_other:
            return f"Move the source to data.{other}; it has the columns of {other} rows."
    guesses = [_guess_mapping(row_format, found) for row_format in KINDS[kind].suggested]
    mapping = next((guess for guess in guesses if "…" not in guess.values()), guesses[0])
    pairs = ", ".join(f"{ours}: {theirs}" for ours, theirs in mapping.items())
    return f"Map the columns in the recipe: `columns: {{{pairs}}}`."


def _guess_mapping(row_format: Format, found: Sequence[str]) -> dict[str, str]:
    """Return each column of `row_format` that was not found, with the column that may stand for it, or `…`."""
    mapping = {}
    for column in row_format:
        if column not in found:
            synonyms = [name for name in COLUMN_SYNONYMS[column] if name in found]
            similar = difflib.get_close_matches(column, found, 1)
            mapping[column] = (synonyms or similar or ["…"])[0]
    return mapping
