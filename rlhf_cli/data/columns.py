"""Decide from the columns of a dataset how its rows are read: its format, the recipe's mapping, and unused columns."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from rlhf_cli.data import column_hints as hints
from rlhf_cli.data.batches import Fields
from rlhf_cli.data.dataset_kinds import CONVERTED, KINDS, PAIR, Format
from rlhf_cli.data.issues import IssueCollector
from rlhf_cli.data.published import FORMATS, PublishedFormat
from rlhf_cli.formatting import did_you_mean
from rlhf_cli.recipe.schema import Source
from rlhf_cli.stages import DatasetKind

MIN_SIMILARITY = 0.75  # of a target in `columns` to one of our columns, so that it is taken for a misspelling


@dataclass(frozen=True)
class ColumnPlan:
    """How the rows of a dataset are read.

    Attributes:
        row_format: The format of the rows, after `published` has converted them.
        columns: All columns under our names, after `published` has converted the rows.
        published: The published format that the source names, or None.
        unused: Columns under our names that must be empty, because prompt and completion are read without them.
    """

    row_format: Format
    columns: list[str]
    published: PublishedFormat | None
    unused: list[str]


def plan_columns(
    kind: DatasetKind, source: Source, found: Sequence[str], empty: Collection[str], issues: IssueCollector
) -> ColumnPlan | None:
    """Return how a dataset's rows are read, or None if an issue was added.

    Args:
        kind: The dataset kind.
        source: The source, which may name a format, map columns and ignore some.
        found: The dataset's columns.
        empty: Those that have no value in any row. A format of other columns is preferred.
        issues: Where an issue is added.
    """
    published = FORMATS[source.format] if source.format != "auto" else None
    if published is not None and kind not in published.required:
        issues.add("data.wrong-format", *hints.wrong_format(kind, published, source.name))
        return None
    known = KINDS[kind].known if published is None else [*published.columns, *KINDS[kind].optional]
    columns = _map_columns(kind, source, known, found, issues) if source.columns else list(found)
    if columns is None:
        return None
    columns = [column for column in columns if column not in ignored_columns(kind, source)]
    # All rejected completions may be empty.
    filled = [column for column in columns if column in PAIR or source.columns.get(column, column) not in empty]
    if published is None:
        row_format = _find_format(kind, filled) or _find_format(kind, columns)
        expected = f"{KINDS[kind].expected} for {kind} rows"
    else:
        row_format = CONVERTED[kind] if published.fits(kind, columns) else None
        expected = f"{published.describe(kind)} for {kind} rows of `format: {published.name}`"
    if row_format is None:
        message = f"columns: found {', '.join(columns) or 'none'}; expected {expected}."
        issues.add("data.wrong-columns", message, source.name, hints.columns_hint(kind, columns))
        return None
    used = {*row_format, *KINDS[kind].optional} if published is None else {*published.columns}
    unused = hints.find_unused(kind, columns, used, source)
    if published is not None:
        others = [column for column in columns if kind == "prompts" or column not in published.columns]
        columns = list(dict.fromkeys(["prompt", *row_format, *others]))
    else:
        columns = [column for column in columns if column in (*filled, *row_format)]
    reserved = next((column for column in KINDS[kind].reserved if column in columns), None)
    if reserved is not None:
        message = f"columns: {reserved} is reserved for an argument of reward functions."
        hint = f"Rename it, for example with `columns: {{{reserved}_column: {reserved}}}`."
        issues.add("data.reserved-column", message, source.name, hint)
        return None
    return ColumnPlan(row_format, columns, published, unused)


def ignored_columns(kind: DatasetKind, source: Source) -> set[str]:
    """Return our columns that the source ignores and does not map. Rewards may still need others that it ignores."""
    return {*source.ignore_columns}.intersection(KINDS[kind].known).difference(source.columns)


def _find_format(kind: DatasetKind, columns: Collection[str]) -> Format | None:
    """Return the first format of a kind whose columns a dataset has, or None."""
    return next((known for known in KINDS[kind].formats if set(known) <= set(columns)), None)


def rename_columns(fields: Fields, mapping: Mapping[str, str]) -> Fields:
    """Return a row under our names. A mapped column replaces one that already has our name."""
    replaced = {*mapping.values(), *mapping}
    row = {column: value for column, value in fields.items() if column not in replaced}
    row.update({ours: fields[theirs] for ours, theirs in mapping.items() if theirs in fields})
    return row


def _map_columns(
    kind: DatasetKind, source: Source, known: Sequence[str], found: Sequence[str], issues: IssueCollector
) -> list[str] | None:
    """Return the dataset's columns under our names, or None if the mapping is wrong and issues were added."""
    mapping = source.columns
    issues_before = issues.count
    for ours, suggestion in _find_unknown_targets(kind, mapping, known, found).items():
        message = f"columns: {mapping[ours]!r} is mapped to {ours!r}, which is not a column of {kind} rows."
        hint = f"Did you mean {suggestion}?" if suggestion else f"Map columns to {KINDS[kind].expected}."
        issues.add("data.unknown-column", message, source.name, hint)
    for theirs in mapping.values():
        if theirs not in found:
            message = f"columns: column {theirs!r} not found; found {', '.join(found)}."
            issues.add("data.unknown-column", message, source.name, did_you_mean(theirs, found))
    if issues.count > issues_before:
        return None
    replaced = {*mapping.values(), *mapping}
    return [*(column for column in found if column not in replaced), *mapping]


def _find_unknown_targets(
    kind: DatasetKind, mapping: Mapping[str, str], known: Sequence[str], found: Sequence[str]
) -> dict[str, str]:
    """Return the keys of `mapping` that are not our columns, each with the missing column that it may stand for, or "".

    If the kind keeps other columns, a key may be any name that is not similar to a missing column of ours.
    """
    missing = [column for column in known if column not in mapping and column not in found]
    missing += [theirs for theirs in mapping.values() if theirs in known and theirs not in mapping]  # renamed away
    unknown = {}
    for ours in mapping:
        if ours not in known:
            similar = difflib.get_close_matches(ours, missing, 1, MIN_SIMILARITY)
            if similar or not KINDS[kind].keeps_other_columns:
                unknown[ours] = similar[0] if similar else ""
    return unknown
