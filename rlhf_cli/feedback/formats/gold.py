"""Read the files of gold items and of the qualification test: items with a known answer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from rlhf_cli.data.issues import IssueCollector, RowError
from rlhf_cli.data.readers import read_file
from rlhf_cli.errors import DataError, ErrorCollector
from rlhf_cli.feedback.formats.format import RANKING_HINT, ParsedRow, with_extra
from rlhf_cli.feedback.formats.rows import FORMAT, read_item
from rlhf_cli.feedback.types import NewItem
from rlhf_cli.formatting import format_path
from rlhf_cli.recipe.schema import Feedback

SUFFIX = ".jsonl"


def read_gold(path: Path, kind: Literal["gold", "qualification"]) -> list[NewItem]:
    """Return the items of a file, each with its answer.

    A row has `prompt`, `completions` and `answer`: the indices of the completions from 0, best first, with ties in a
    list, such as `[2, [0, 1]]`. `explanation`, `language` and `field` are optional.

    Args:
        path: A .jsonl file.
        kind: The kind of its items.

    Raises:
        DataError: With all issues: the file cannot be read, a row is invalid or has no answer, or two rows are equal.
    """
    key = f"feedback.{kind}.path"
    if not path.is_file():
        message = f"file not found: {format_path(path)}."
        raise DataError("data.file-not-found", message, location=key, hint="Check the path.")
    if path.suffix != SUFFIX:
        message = f"file type: found {path.suffix or 'no suffix'}, expected {SUFFIX}."
        raise DataError("data.unsupported-file-type", message, location=key, hint="Write one object per line.")
    issues = IssueCollector()
    items: list[NewItem] = []
    seen: Counter[str] = Counter()
    for batch in read_file(path, issues, keep_surrogates=True):
        for number, fields in zip(batch.numbers, batch.rows, strict=True):
            try:
                item = read_item(fields, kind)
                _check_answer(item)
                key = repr((item.prompt, item.completions))
                if seen[key]:
                    raise RowError("feedback.invalid-item", "row: found the same item twice.", "Remove one of them.")
            except RowError as error:
                issues.add_row_error(error, f"{batch.prefix}{number}")
            else:
                seen[key] += 1
                items.append(with_extra(ParsedRow(item), FORMAT.other_columns(fields)).item)
    issues.raise_if_any()
    return items


def read_known_items(settings: Feedback) -> list[NewItem]:
    """Return the gold items and the qualification test of a recipe.

    Raises:
        DataError: With all issues of both files.
    """
    items: list[NewItem] = []
    errors = ErrorCollector()
    if settings.gold is not None:
        with errors.collect():
            items += read_gold(Path(settings.gold.path), "gold")
    if settings.qualification is not None:
        with errors.collect():
            items += read_gold(Path(settings.qualification.path), "qualification")
    errors.raise_all()
    return items


def _check_answer(item: NewItem) -> None:
    if not item.answer:
        raise RowError("data.missing-field", "answer: missing field.", RANKING_HINT)
    if len(item.answer) == 1:
        message = "answer: found one tie, which no answer of an annotator can be compared with."
        raise RowError("feedback.invalid-answer", message, RANKING_HINT)
