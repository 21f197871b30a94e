"""Datasets for the data tests: rows, sources without held-out rows, and the issues of sources that cannot be loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.data import sources
from rlhf_cli.data.batches import Batch
from rlhf_cli.data.column_hints import is_filled
from rlhf_cli.data.converter import RowConverter
from rlhf_cli.data.issues import IssueCollector
from rlhf_cli.data.rows import Split
from rlhf_cli.errors import DataError, Issue, RecipeError
from rlhf_cli.recipe.schema import Source
from rlhf_cli.stages import DatasetKind


def find_no_run(ref: str) -> Path:
    """Raise RecipeError, as for a run reference without a run."""
    raise RecipeError("recipe.run-not-found", f"run not found: {ref}.")


def load_sources(given: Sequence[Source], kind: DatasetKind = "sft", **options: Any) -> Split[Any]:
    """Load sources with seed 0 and without runs, unless `options` say otherwise."""
    return sources.load(given, kind, **{"seed": 0, "find": find_no_run, **options})


def load_file(path: Path, kind: DatasetKind = "sft", **fields: Any) -> Split[Any]:
    """Load a file or directory as the only source. Nothing is held out unless `fields` of the source say so."""
    return load_sources([Source(path=str(path), **{"eval_fraction": 0, **fields})], kind)


def count_file(path: Path, kind: DatasetKind, **fields: Any) -> dict[str, int]:
    """Return the counts of `sources.count`, and assert that they are those of `sources.load`."""
    source = Source(path=str(path), **fields)
    counts = sources.count([source], kind, find=find_no_run)
    assert counts == load_sources([source], kind).counts
    return counts


def file_issues(path: Path, kind: DatasetKind = "sft", **fields: Any) -> list[Issue]:
    """Return the issues of a source that cannot be loaded, and assert that `sources.count` raises the same."""
    with pytest.raises(DataError) as loading:
        load_file(path, kind, **fields)
    with pytest.raises(DataError) as counting:
        sources.count([Source(path=str(path), **{"eval_fraction": 0, **fields})], kind, find=find_no_run)
    assert counting.value.issues == loading.value.issues
    return list(loading.value.issues)


def convert_rows(
    kind: DatasetKind,
    rows: Sequence[dict[str, Any]],
    columns: dict[str, str] | None = None,
    *,
    editable: bool = True,
    **fields: Any,
) -> tuple[list[Any], dict[str, int]]:
    """Return raw rows, of the lines of `x.jsonl`, as typed rows, and the counts of dropped rows.

    Args:
        kind: The dataset kind.
        rows: The raw rows.
        columns: The source's mapping of columns.
        editable: Whether the source is a file, not a Hub dataset.
        fields: Further fields of the source.
    """
    issues = IssueCollector()
    found = list(dict.fromkeys(column for row in rows for column in row))
    fields["path" if editable else "hub"] = "x.jsonl"
    source = Source(columns=columns or {}, **fields)
    empty = [column for column in found if not any(is_filled(row.get(column)) for row in rows)]
    converter = RowConverter(kind, source, found, issues, empty=empty)
    converted = converter.rows(Batch("x.jsonl:", range(1, len(rows) + 1), list(rows)))
    converter.finish()
    issues.raise_if_any()
    assert converter.counts.pop("read") == len(rows)
    return converted, dict(converter.counts)


def convert_row(kind: DatasetKind, row: dict[str, Any], **fields: Any) -> Any:
    """Return one raw row as a typed row."""
    (converted,), counts = convert_rows(kind, [row], **fields)
    assert counts == {}
    return converted


def conversion_issues(
    kind: DatasetKind, rows: Sequence[dict[str, Any]], columns: dict[str, str] | None = None, **fields: Any
) -> list[Issue]:
    """Return the issues of raw rows that cannot be converted."""
    with pytest.raises(DataError) as raised:
        convert_rows(kind, rows, columns, **fields)
    return list(raised.value.issues)


def make_demonstrations(count: int, start: int = 0) -> list[dict[str, str]]:
    """Return demonstrations with different prompts `p<number>`."""
    return [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(start, start + count)]


def sorted_prompts(rows: Sequence[Any]) -> list[str]:
    """Return the prompts of typed rows, in the order of their numbers if they are `make_demonstrations`."""
    return sorted((row.prompt for row in rows), key=lambda prompt: (len(prompt), prompt))
