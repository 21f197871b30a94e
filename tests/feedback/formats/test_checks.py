"""Rows that the store would refuse are issues, and a row with any value in any place is read or is an issue."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from rlhf_cli.data.issues import DroppedRowError, RowError
from rlhf_cli.feedback.formats.checks import check_row
from rlhf_cli.feedback.formats.dump import WRITABLE, to_rows
from rlhf_cli.feedback.formats.reading import find_format, read_row
from rlhf_cli.feedback.types import Answer
from tests.support import feedback_datasets as published
from tests.support.feedback_rows import full_snapshot

ODD_VALUES: tuple[Any, ...] = (None, 1, "x", "", [], {}, [None], [{"id": {}}])
DATASETS = {
    "hh-rlhf": published.HH,
    "ultrafeedback": published.ULTRAFEEDBACK,
    "helpsteer2": published.HELPSTEER2,
    "helpsteer3": published.HELPSTEER3,
    "pandalm": published.PANDALM,
    "nectar": published.NECTAR,
    "arena": published.ARENA,
}


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"annotator": " "}, "feedback.invalid-annotator"),
        ({"annotator": "x" * 101}, "feedback.invalid-annotator"),
        ({"guideline": "v1"}, "feedback.invalid-answer"),
        ({"created": "yesterday"}, "feedback.invalid-answer"),
        ({"task": "pair", "answer": Answer(((0,), (1,), (2,), (3,)), strength=4)}, "feedback.invalid-answer"),
    ],
)
def test_check_row_with_judgment_that_the_store_refuses_raises(fields: dict[str, Any], code: str) -> None:
    row = to_rows(full_snapshot())[0]
    check_row(row)
    with pytest.raises(RowError) as raised:
        check_row(row._replace(judgments=(replace(row.judgments[0], **fields),)))
    assert raised.value.code == code


def test_check_row_with_long_field_raises() -> None:
    row = to_rows(full_snapshot())[0]
    with pytest.raises(RowError):
        check_row(row._replace(item=replace(row.item, field="x" * 101)))


@pytest.mark.parametrize("name", [*DATASETS, *WRITABLE])
def test_read_row_with_odd_value_in_any_place_raises_row_errors_only(name: str) -> None:
    if name in DATASETS:
        rows = [DATASETS[name]]
    else:
        write = WRITABLE[name].write
        assert write is not None
        rows = [line for row in to_rows(full_snapshot())[:2] for line in write(row, Counter())]
    refused = 0
    for fields in rows:
        row_format = find_format(fields, "x.jsonl")
        assert row_format.name == name
        for changed in change_each_value(fields):
            try:
                read_row(row_format, changed)
            except (RowError, DroppedRowError):
                refused += 1
    assert refused > 0


def change_each_value(fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield copies of a row, each with an odd value in another place."""
    for path in list_paths(fields):
        for value in ODD_VALUES:
            changed = copy.deepcopy(fields)
            inner: Any = changed
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = value
            yield changed


def list_paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value inside lists and objects."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*before, key)
        yield from list_paths(value[key], (*before, key))
