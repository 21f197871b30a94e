"""Read files and runs as items with their judgments, in the format that their columns or the user tells."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from rlhf_cli.data.batches import Batch, Fields
from rlhf_cli.data.issues import DroppedRowError, IssueCollector, RowError
from rlhf_cli.data.readers import SUFFIXES
from rlhf_cli.data.source_files import FindRun, read_split
from rlhf_cli.errors import DataError, RecipeError
from rlhf_cli.feedback.formats.checks import check_row
from rlhf_cli.feedback.formats.format import FeedbackFormat, ParsedRow, with_extra
from rlhf_cli.feedback.formats.registry import FORMATS
from rlhf_cli.formatting import did_you_mean, format_alternatives
from rlhf_cli.recipe.schema import Source
from rlhf_cli.run_reference import parse_run_reference

HEAD_BATCHES = 10  # whose columns decide the format


@dataclass(frozen=True)
class FeedbackSource:
    """Rows of feedback in a known format.

    Attributes:
        name: The path or the reference to a run, as the user wrote it.
        source: The file, directory or run.
        find: Function from a run reference to the run's directory.
        row_format: The format of the rows.
    """

    name: str
    source: Source
    find: FindRun
    row_format: FeedbackFormat

    def read(self, issues: IssueCollector, skipped: Counter[str], *, pairs_only: bool = False) -> Iterator[ParsedRow]:
        """Yield the items with their judgments.

        Args:
            issues: Where the issues of rows that cannot be used are added.
            skipped: Where rows and judgments that are skipped are counted by reason.
            pairs_only: Whether items must have two completions, as the task `pair` needs.
        """
        for batch in _read_batches(self.source, self.find, issues):
            for number, fields in zip(batch.numbers, batch.rows, strict=True):
                try:
                    rows = read_row(self.row_format, fields)
                    if pairs_only:
                        _check_pairs(rows)
                except DroppedRowError as reason:
                    skipped[str(reason)] += 1
                except RowError as error:
                    issues.add_row_error(error, f"{batch.prefix}{number}")
                else:
                    for row in rows:
                        skipped.update(row.unusable)
                    yield from rows


def open_source(text: str, find: FindRun, format_name: str | None = None) -> FeedbackSource:
    """Return the rows of a file, a directory or a run.

    Args:
        text: The path, or a reference to a run.
        find: Function from a run reference to the run's directory.
        format_name: The format; None: the columns tell.

    Raises:
        RecipeError: The format is unknown, or the run does not exist.
        DataError: The files cannot be found or read, or their columns fit no format, or several.
    """
    if format_name is not None and format_name not in FORMATS:
        hint = did_you_mean(format_name, FORMATS, otherwise=f"The formats are {', '.join(FORMATS)}.")
        raise RecipeError("recipe.usage", f"--format: unknown format {format_name!r}.", hint=hint)
    source, find = _locate(text, find)
    issues = IssueCollector()
    columns: dict[str, None] = {}
    for batch in itertools.islice(_read_batches(source, find, issues), HEAD_BATCHES):
        columns.update(dict.fromkeys(itertools.chain.from_iterable(batch.rows)))
    if not columns:
        issues.raise_if_any()
    return FeedbackSource(text, source, find, find_format(columns, text, format_name))


def _locate(text: str, find: FindRun) -> tuple[Source, FindRun]:
    """Return the source that a path or a reference to a run means. The directory of a run may be given, too."""
    path = Path(text).absolute()
    if (path / "manifest.json").is_file():
        return Source(run=text), lambda _: path
    if path.exists() or parse_run_reference(text) is None or path.suffix in SUFFIXES:
        return Source(path=str(path)), find
    return Source(run=text), find


def find_format(columns: Collection[str], location: str, format_name: str | None = None) -> FeedbackFormat:
    """Return the format that reads most of the required columns.

    Args:
        columns: The columns of the rows.
        location: The location of an issue.
        format_name: The name of the format that the user forces, or None.

    Raises:
        DataError: No format fits, or several do equally well, or the forced one does not fit.
    """
    found = ", ".join(columns) or "none"
    if format_name is not None:
        forced = FORMATS[format_name]
        if forced.fits(columns):
            return forced
        message = f"columns: found {found}; expected {forced.describe()} as in the format {forced.name}."
        raise DataError("data.wrong-columns", message, location=location, hint="Use another --format.")
    fitting = [known for known in FORMATS.values() if known.fits(columns)]
    most = max((len(known.columns) for known in fitting), default=0)
    best = [known for known in fitting if len(known.columns) == most]
    if not best:
        known = "; ".join(f"{known.name}: {known.describe()}" for known in FORMATS.values())
        message = f"columns: found {found}; expected the columns of a known format."
        raise DataError("data.wrong-columns", message, location=location, hint=f"Known formats are {known}.")
    own = [known for known in best if not known.is_training_format]
    if len(own or best) > 1:
        names = format_alternatives([known.name for known in own or best])
        message = f"columns: several formats fit; found {found}."
        raise DataError("data.ambiguous-format", message, location=location, hint=f"Pass --format {names}.")
    return (own or best)[0]


def read_row(row_format: FeedbackFormat, fields: Fields) -> list[ParsedRow]:
    """Return the items of a row with their judgments. Columns that the format does not read are kept with each item.

    Raises:
        RowError: The row cannot be used.
        DroppedRowError: The row is skipped.
    """
    for names in row_format.columns:
        if not any(name in fields for name in names):
            raise RowError(
                "data.missing-field", f"{' or '.join(names)}: missing field.", "Fill it in, or remove the row."
            )
    extra = row_format.other_columns(fields) if row_format.keeps_other_columns else {}
    rows = [with_extra(row, extra) for row in row_format.convert(fields)]
    for row in rows:
        check_row(row)
    return rows


def _check_pairs(rows: list[ParsedRow]) -> None:
    """Raise RowError if an ordinary item has more than two completions."""
    for row in rows:
        if row.item.kind == "item" and len(row.item.completions) > 2:
            message = f"completions: found {len(row.item.completions)}, expected 2 because feedback.task is pair."
            raise RowError("feedback.invalid-item", message, "Set feedback.task to rank, or remove the others.")


def _read_batches(source: Source, find: FindRun, issues: IssueCollector) -> Iterator[Batch]:
    return read_split(source, "train", "preferences", find, issues, keep_surrogates=True)
