"""Hints for a dataset with other columns (name a format, map them, move it), and columns that would get lost."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rlhf_cli.data.conversations import UNUSED_KEYS
from rlhf_cli.data.dataset_kinds import KINDS, Format
from rlhf_cli.data.published import FORMATS, PublishedFormat
from rlhf_cli.recipe.schema import Source
from rlhf_cli.stages import DatasetKind

COLUMN_SYNONYMS = {  # names that other datasets use for our columns; none that a label could contradict
    "prompt": ("instruction", "question", "query", "input", "request"),
    "completion": ("output", "answer", "response", "target"),
    "chosen": ("preferred", "chosen_response", "response_chosen", "winner", "response_j"),
    "rejected": ("dispreferred", "rejected_response", "response_rejected", "loser", "response_k"),
    "messages": ("conversations", "conversation", "dialog", "turns"),
    "text": ("content", "document", "story", "story_text"),
}
# Columns that change what a row means, by the kinds that would lose them. Other columns, such as ids, scores and
# sources, are common and harmless.
_CONTEXT = ("system", "system_prompt", "input", "context", "history", "tools", "functions")
_QUESTION = ("instruction", "question", "query")
_LABELS = (
    *("label", "labels", "winner", "choice", "preference", "preferred", "annotator1", "overall_preference"),
    *("preference_strength", "better_response_id", "safer_response_id", "winner_model_a"),
)
_ADVICE: Sequence[tuple[DatasetKind | None, frozenset[str], str]] = (  # for formats that cannot be read row by row
    (
        None,
        frozenset(("message_id", "parent_id", "text", "role")),
        "Use a file of trees of this dataset, such as 2023-04-12_oasst_ready.trees.jsonl.gz, with `format: oasst`.",
    ),
    (
        "preferences",
        frozenset(("prompt", "response", "helpfulness")),
        "Use the file preference/preference.jsonl.gz of this dataset with `format: helpsteer2`.",
    ),
    (
        "preferences",
        frozenset(("prompt", "completion", "label")),
        "Rows of one judged completion are not pairs: write a good and a bad completion of each prompt as `chosen` and "
        "`rejected`. The good ones can be demonstrations: `data.sft` with `format: kto`.",
    ),
)


def wrong_format(kind: DatasetKind, published: PublishedFormat, location: str) -> tuple[str, str, str]:
    """Return message, location and hint for a format that has no rows of this kind."""
    supported = " or ".join(published.required)
    message = f"format: {published.name} has no {kind} rows; expected a format for them."
    return message, location, f"Use the source in {supported} rows, or remove `format`."


def columns_hint(kind: DatasetKind, found: Sequence[str]) -> str:
    """Return a hint with a format, the section to which such data belongs, or a mapping to our columns."""
    for advised_kind, columns, advice in _ADVICE:
        if advised_kind in (None, kind) and columns <= set(found):
            return advice
    mapping = _guess_best_mapping(kind, found)
    pairs = ", ".join(f"{ours}: {theirs}" for ours, theirs in mapping.items())
    is_complete = "…" not in mapping.values() and not set(found) & set(_CONTEXT)
    formats = _fitting_formats(kind, found)
    if formats == ["instruction"] and is_complete and mapping:
        as_text = f"or map the columns to use their text unchanged: `columns: {{{pairs}}}`."
        return f"Set `format: instruction` on the source to read conversations, {as_text}"
    if formats:
        return f"Set {' or '.join(f'`format: {name}`' for name in formats)} on the source."
    for other, spec in KINDS.items():
        is_of_other = any(set(row_format) <= set(found) for row_format in spec.formats)
        if other != kind and not spec.accepts_other_kinds and is_of_other:
            return f"Move the source to data.{other}; it has the columns of {other} rows."
    if kind == "preferences" and "…" in mapping.values():
        return (
            "Write the better completion of each row as `chosen` and the other one as `rejected`. A mapping of columns "
            "cannot follow a label."
        )
    return f"Map the columns in the recipe: `columns: {{{pairs}}}`."


def find_unused(kind: DatasetKind, columns: Sequence[str], used: Collection[str], source: Source) -> list[str]:
    """Return the columns that may change the meaning of a row although no part of it is read from them.

    Args:
        kind: The dataset kind.
        columns: The dataset's columns under our names.
        used: Those that are read.
        source: The source, which may ignore columns.
    """
    names: tuple[str, ...] = ()
    if kind == "sft":
        has_label = any(_normalize(column) in _LABELS for column in used)  # a format reads one of several labels
        names = (*_CONTEXT, *_QUESTION, *UNUSED_KEYS, *(() if has_label else _LABELS))
    elif kind == "preferences":
        names = (*_CONTEXT, *_QUESTION, "conversations", *UNUSED_KEYS, *(_LABELS if "chosen" in source.columns else ()))
        names += () if "prompt" in columns else ("messages",)  # beside a prompt they repeat it, as in UltraFeedback
    elif kind == "prompts":  # rewards may need the others, such as the question that a prompt was made from
        names = _CONTEXT
    ignored = {*used, *source.ignore_columns}
    return [column for column in columns if _normalize(column) in names and column not in ignored]


def unused_column(kind: DatasetKind, column: str, columns: Sequence[str]) -> tuple[str, str]:
    """Return message and hint for a column that may change the meaning of a row and is not read."""
    message = f"{column}: found a value in a column that would be skipped."
    fitting = [name for name in _fitting_formats(kind, columns) if column in FORMATS[name].columns]
    if fitting:
        read = f"Set {' or '.join(f'`format: {name}`' for name in fitting)} on the source to read it"
    elif kind == "preferences" and "prompt" not in columns and _normalize(column) in (*_QUESTION, "messages"):
        read = f"Map it with `columns: {{prompt: {column}}}`"
    else:
        read = "Write it into the rows"
    return message, f"{read}, or set `ignore_columns: [{column}]` if it may be skipped."


def is_filled(value: Any) -> bool:
    """Return whether a field holds something."""
    return not (value is None or (isinstance(value, str | list | dict) and not value))


def _normalize(column: str) -> str:
    return column.strip().lower().replace(" ", "_").replace("-", "_")


def _fitting_formats(kind: DatasetKind, found: Sequence[str]) -> list[str]:
    """Return the published formats that need most of the columns that were found."""
    fitting = [published for published in FORMATS.values() if published.fits(kind, found)]
    most = max((len(published.required[kind]) for published in fitting), default=0)
    return [published.name for published in fitting if len(published.required[kind]) == most]


def _guess_best_mapping(kind: DatasetKind, found: Sequence[str]) -> Mapping[str, str]:
    guesses = [_guess_mapping(row_format, found) for row_format in KINDS[kind].suggested]
    return next((guess for guess in guesses if "…" not in guess.values()), guesses[0])


def _guess_mapping(row_format: Format, found: Sequence[str]) -> dict[str, str]:
    """Return each column of `row_format` that was not found, with the column that may stand for it, or `…`."""
    mapping = {}
    for column in row_format:
        if column not in found:
            synonyms = [name for name in COLUMN_SYNONYMS[column] if name in found]
            if synonyms == ["winner"] and "loser" not in found:  # the name of a label
                synonyms = []
            similar = difflib.get_close_matches(column, found, 1)
            mapping[column] = (synonyms or similar or ["…"])[0]
    return mapping
