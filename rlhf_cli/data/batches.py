"""Raw rows in batches, with the location of each row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

Fields = dict[str, Any]  # a raw row: column to value


class Batch(NamedTuple):
    """Some raw rows of a file or a Hub dataset.

    Attributes:
        prefix: What the location of each row starts with, such as `rows.jsonl:`.
        numbers: The line or row number of each row.
        rows: The rows.
    """

    prefix: str
    numbers: range | list[int]
    rows: list[Fields]


def number_rows(prefix: str, chunks: Iterable[list[Fields]]) -> Iterator[Batch]:
    """Yield lists of rows as batches with the rows' numbers, from 1."""
    number = 1
    for rows in chunks:
        yield Batch(prefix, range(number, number + len(rows)), rows)
        number += len(rows)


def slice_batches(batches: Iterable[Batch], start: int, stop: int | None) -> Iterator[Batch]:
    """Yield the rows from `start` to before `stop`, as `rows[start:stop]` does. Read no further batch after `stop`."""
    position = 0
    for batch in batches:
        inside = slice(max(start - position, 0), None if stop is None else stop - position)
        position += len(batch.rows)
        if position > start:
            yield Batch(batch.prefix, batch.numbers[inside], batch.rows[inside])
        if stop is not None and position >= stop:
            return
