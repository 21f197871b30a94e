"""Read CSV rows. A record with too many or too few fields is an issue."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from rlhf_cli.data.batches import Fields
from rlhf_cli.data.issues import IssueCollector, RowError

MAX_CELL = 2**31 - 1  # characters; what a C long holds on every platform. The csv module's default is 131,072
OTHER_DELIMITERS = (";", "\t")  # of spreadsheets in languages with decimal commas, and of text exports


def read_csv(lines: Iterable[str], path: Path, issues: IssueCollector) -> Iterator[tuple[int, Fields]]:
    """Yield each row with its line.

    A comma separates the fields, or a semicolon or a tab if the header has one of them and no comma.

    Args:
        lines: The file's lines with their line breaks.
        path: The file, for the location of issues.
        issues: Where issues are added.
    """
    csv.field_size_limit(MAX_CELL)  # a setting of the process: the module has no other
    remaining = iter(lines)
    before = 0  # lines that precede the header
    for first in remaining:
        if first.strip():
            break
        before += 1
    else:
        return
    reader = csv.reader(_chain(first, remaining), strict=True, delimiter=_find_delimiter(first))
    next_line = before + 1
    header: list[str] = []
    try:
        for record in reader:
            line, next_line = next_line, before + reader.line_num + 1
            if not record:
                continue
            if not header:
                header = record
                if not _check_header(header, f"{path}:{line}", issues):
                    return
            elif len(record) == len(header):
                yield line, dict(zip(header, record, strict=True))
            else:
                message = f"row: found {len(record)} fields, expected {len(header)} as in the header."
                hint = 'Put a field that contains a comma, a quote or a line break in "quotes".'
                issues.add_row_error(RowError("data.invalid-csv", message, hint), f"{path}:{line}")
    except csv.Error as error:
        issues.add("data.invalid-csv", f"invalid CSV: {error}.", f"{path}:{next_line}")


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _find_delimiter(header: str) -> str:
    if "," in header:
        return ","
    return next((delimiter for delimiter in OTHER_DELIMITERS if delimiter in header), ",")


def _check_header(header: list[str], location: str, issues: IssueCollector) -> bool:
    """Return whether the columns have usable names, or add an issue."""
    if len(set(header)) < len(header):
        message = f"header: duplicate column; found {', '.join(header)}."
        issues.add("data.duplicate-key", message, location, "Rename one of them.")
        return False
    padded = next((name for name in header if name.strip() != name), None)
    if padded is not None:
        message = f"header: column {padded!r} starts or ends with a space, as the fields below it may."
        hint = "Remove the spaces beside the commas, also in the rows: text is used verbatim."
        issues.add("data.invalid-csv", message, location, hint)
        return False
    return True
