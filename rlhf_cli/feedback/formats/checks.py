"""Check that the store accepts an imported row, so that an issue has the row's file and line."""

from __future__ import annotations

import re
from datetime import datetime

from rlhf_cli.data.issues import RowError
from rlhf_cli.errors import DataError
from rlhf_cli.feedback.formats.format import ParsedRow
from rlhf_cli.feedback.types import MAX_NAME, WHOLE_ITEM, NewJudgment

MAX_TIME = 40  # characters of a time
_SHA256 = re.compile("[0-9a-f]{64}")
_HINT = "Correct it, or remove the row."


def check_row(row: ParsedRow) -> None:
    """Raise RowError if the store would refuse the item or a judgment."""
    for name, value in (("language", row.item.language), ("field", row.item.field)):
        if len(value) > MAX_NAME:
            message = f"{name}: found {len(value)} characters, expected at most {MAX_NAME}."
            raise RowError("feedback.invalid-item", message, "Shorten it.")
    for judgment in row.judgments:
        _check_judgment(judgment, len(row.item.completions))


def _check_judgment(judgment: NewJudgment, count: int) -> None:
    from rlhf_cli.feedback.store.content import check_answer

    if not 0 < len(judgment.annotator.strip()) <= MAX_NAME:
        message = f"annotator: found {judgment.annotator[:MAX_NAME]!r}, expected 1 to {MAX_NAME} characters."
        raise RowError("feedback.invalid-annotator", message, _HINT)
    if judgment.guideline and not _SHA256.fullmatch(judgment.guideline):
        message = f"guideline: found {judgment.guideline[:MAX_NAME]!r}, expected the SHA-256 of a text."
        raise RowError("feedback.invalid-answer", message, _HINT)
    if judgment.created and not _is_time(judgment.created):
        message = f"created: found {judgment.created[:MAX_NAME]!r}, expected a time such as 2026-11-25T10:00:00Z."
        raise RowError("feedback.invalid-answer", message, _HINT)
    try:
        check_answer(judgment.answer, judgment.task, range(count), whole=WHOLE_ITEM)
    except DataError as error:
        raise RowError(error.issues[0].code, error.issues[0].message, _HINT) from None


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return len(text) <= MAX_TIME
