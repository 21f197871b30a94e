"""Import items and judgments into a store: all rows are checked first, then stored in batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from rlhf_cli.data.issues import IssueCollector
from rlhf_cli.errors import DataError
from rlhf_cli.feedback.formats.format import ParsedRow
from rlhf_cli.feedback.formats.reading import FeedbackSource

if TYPE_CHECKING:
    from rlhf_cli.feedback.store import Store

BATCH_ROWS = 500
BATCH_CHARACTERS = 2**24  # of text; a few completions of 5 MB fill a batch


class ImportResult(NamedTuple):
    """What an import did.

    Attributes:
        items_added: Items that the store did not have.
        items_existing: Items that it had.
        judgments_added: Judgments that the store did not have.
        judgments_existing: Judgments that it had.
        skipped: Rows and judgments that were skipped, by reason.
    """

    items_added: int
    items_existing: int
    judgments_added: int
    judgments_existing: int
    skipped: Mapping[str, int]


def import_rows(store: Store, source: FeedbackSource, *, skip_invalid: bool) -> ImportResult:
    """Import all rows of a source. An import that was interrupted can be repeated: nothing is stored twice.

    Args:
        store: The store.
        source: The rows.
        skip_invalid: Whether invalid rows are skipped and counted, instead of being issues.

    Raises:
        DataError: A row cannot be used; nothing was stored then. Or there is no row to import.
    """
    issues = IssueCollector(skips_rows=skip_invalid)
    skipped: Counter[str] = Counter()
    pairs_only = store.settings.task == "pair"
    if not sum(1 for _ in source.read(issues, skipped, pairs_only=pairs_only)):
        issues.raise_if_any()
        found = "; ".join(f"{count} skipped: {reason}" for reason, count in skipped.items())
        hint = "Use another file." if found else "Check the path."
        raise DataError("data.no-rows", f"no row can be imported; found {found or 'none'}.", hint=hint)
    issues.raise_if_any()
    skipped.update({f"invalid ({code})": count for code, count in issues.skipped.items()})
    counts: Counter[str] = Counter()
    for batch in _split(source.read(IssueCollector(skips_rows=True), Counter(), pairs_only=pairs_only)):
        judged = [judgment for row in batch for judgment in row.judgments]
        items, judgments = store.import_batch([row.item for row in batch], judged)
        counts.update(items_added=items.added, items_existing=items.existing)
        counts.update(judgments_added=judgments.added, judgments_existing=judgments.existing)
    return ImportResult(
        counts["items_added"],
        counts["items_existing"],
        counts["judgments_added"],
        counts["judgments_existing"],
        dict(skipped),
    )


def _split(rows: Iterator[ParsedRow]) -> Iterator[list[ParsedRow]]:
    """Yield the rows in batches of a limited number of rows and characters."""
    batch: list[ParsedRow] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(len(str(completion.text)) for completion in row.item.completions)
        if len(batch) == BATCH_ROWS or characters > BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
