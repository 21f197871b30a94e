"""Use only some raw rows of a source: those with given values of their columns, and older ones less often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from rlhf_cli.data.batches import Batch, Fields
from rlhf_cli.data.issues import IssueCollector
from rlhf_cli.recipe.schema import Source

DATE_COLUMN = "judged"  # of preference data from human feedback; ISO 8601
SECONDS_PER_DAY = 86_400.0

ReadBatches = Callable[[], Iterator[Batch]]


def filter_rows(
    source: Source, read: ReadBatches, issues: IssueCollector, counts: Counter[str], *, thin: bool
) -> Iterator[Batch]:
    """Yield the rows that the source uses, and count the others.

    Args:
        source: The source, with `only` and `half_life_days`.
        read: Returns the batches from the start. With `half_life_days`, it is called twice.
        issues: Where issues are added.
        counts: Where the rows that are not used are counted, by reason.
        thin: Whether older rows are used less often.
    """
    batches = _select(read(), source, issues, counts) if source.only else read()
    if source.half_life_days is None or not thin:
        yield from batches
        return
    # The age of a row counts from the newest one that is used, so that it does not depend on when the stage runs.
    dates = [_date(row) for batch in _select(read(), source, None, Counter()) for row in batch.rows]
    newest = max((date for date in dates if date is not None), default=None)
    half_life = source.half_life_days * SECONDS_PER_DAY
    for batch in batches:
        kept = []
        for index, row in enumerate(batch.rows):
            date = _date(row)
            if date is None or newest is None:
                message = f"{DATE_COLUMN}: missing or not a time, which half_life_days needs."
                hint = "Write it as 2026-01-31T12:00:00Z, or remove half_life_days."
                issues.add("data.missing-field", message, f"{batch.prefix}{batch.numbers[index]}", hint)
            elif _uniform(row) < 0.5 ** ((newest - date).total_seconds() / half_life):
                kept.append(index)
            else:
                counts["dropped: by age (half_life_days)"] += 1
        yield _subset(batch, kept)


def _select(
    batches: Iterable[Batch], source: Source, issues: IssueCollector | None, counts: Counter[str]
) -> Iterator[Batch]:
    """Yield the rows with the values of `only`. Add an issue for each of its columns that no row has."""
    missing = set(source.only)
    prefix = source.name
    for batch in batches:
        missing.difference_update(*(row.keys() for row in batch.rows))
        kept = [index for index, row in enumerate(batch.rows) if _has_values(row, source.only)]
        if len(kept) < len(batch.rows):
            counts["dropped: other values than those of `only`"] += len(batch.rows) - len(kept)
        yield _subset(batch, kept)
    for column in sorted(missing) if issues is not None else ():
        assert issues is not None
        issues.add("data.unknown-column", f"only: no row has the column {column!r}.", prefix, "Check its name.")


def _has_values(row: Fields, only: dict[str, list[str]]) -> bool:
    """Return whether each column has one of its values; a column with a list, whether one of its items is."""
    for column, wanted in only.items():
        value: Any = row.get(column)
        if not any(str(item) in wanted for item in (value if isinstance(value, list) else [value])):
            return False
    return True


def _date(row: Fields) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(row.get(DATE_COLUMN)))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _uniform(row: Fields) -> float:
    """Return a number from 0 to below 1 that depends on the row only."""
    content = repr(sorted(row.items())).encode("utf-8", "surrogatepass")
    return int.from_bytes(sha256(content).digest()[:8], "big") / 2**64


def _subset(batch: Batch, kept: list[int]) -> Batch:
    if len(kept) == len(batch.rows):
        return batch
    return Batch(batch.prefix, [batch.numbers[index] for index in kept], [batch.rows[index] for index in kept])
