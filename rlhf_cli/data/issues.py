"""Collect what is wrong with a dataset, so that all issues are reported at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from rlhf_cli.errors import DataError, Issue

MAX_SHOWN_ISSUES = 20
FILL_IN_HINT = "Fill it in, or remove the row."
COMPLETION_FIELDS = ("completion", "chosen", "rejected")

_TYPE_NAMES = {
    str: "text",
    bool: "true/false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


class RowError(Exception):
    """Raised for a row that cannot be used.

    It is lighter than an `Issue`: a Hub dataset may have many such rows, which are counted and never shown.

    Args:
        code: The code of the issue.
        message: What is wrong with the row.
        hint: What to do, as an imperative sentence.
        dropped_as: Why the row is dropped if its dataset cannot be edited. Empty if the row is an issue in any dataset.
    """

    def __init__(self, code: str, message: str, hint: str = "", *, dropped_as: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint
        self.dropped_as = dropped_as


class DroppedRowError(Exception):
    """Raised for a row that is dropped, in any dataset. The message is the reason under which it is counted."""


class IssueCollector:
    """The first `MAX_SHOWN_ISSUES` issues of a dataset, and the number of all.

    Attributes:
        shown: The first issues.
        count: The number of all issues.
        skipped: The number of rows that were skipped, by the code of their issue.
        shown_skipped: The issues of the first of these rows.

    Args:
        skips_rows: Whether an invalid row is skipped and not an issue.
    """

    def __init__(self, *, skips_rows: bool = False) -> None:
        self.shown: list[Issue] = []
        self.count = 0
        self.skipped: Counter[str] = Counter()
        self.shown_skipped: list[Issue] = []
        self._skips_rows = skips_rows

    def add(self, code: str, message: str, location: str, hint: str = "") -> None:
        """Add an issue."""
        self.count += 1
        if len(self.shown) < MAX_SHOWN_ISSUES:
            self.shown.append(Issue(code, message, location, hint))

    def add_row_error(self, error: RowError, location: str) -> None:
        """Add the error of the row at `location`, or count the row as skipped."""
        if not self._skips_rows:
            self.add(error.code, str(error), location, error.hint)
            return
        if self.skipped.total() < MAX_SHOWN_ISSUES:
            self.shown_skipped.append(Issue(error.code, str(error), location))
        self.skipped[error.code] += 1

    def extend(self, issues: Iterable[Issue]) -> None:
        """Add the issues of an error that was raised."""
        for issue in issues:
            self.add(issue.code, issue.message, issue.location, issue.hint)

    def merge(self, other: IssueCollector) -> None:
        """Add the issues of `other`, including those that it only counted."""
        self.count += other.count
        self.shown += other.shown[: MAX_SHOWN_ISSUES - len(self.shown)]

    def raise_if_any(self) -> None:
        """Raise a DataError with the shown issues and the number of the others, if there is any issue."""
        if not self.count:
            return
        rest = self.count - len(self.shown)
        summary = [Issue("data.more-issues", f"{rest} more issue{'s' if rest > 1 else ''} not shown.")] if rest else []
        raise DataError([*self.shown, *summary])


def type_name(value: Any) -> str:
    """Return how a message names the type of a JSON value, such as `a list`."""
    return _TYPE_NAMES.get(type(value), f"a {type(value).__name__}")


def empty_field_error(field: str, message: str) -> RowError:
    """Return the error of a row whose `field` is null or empty, or has an empty message."""
    code = "data.empty-completion" if field in COMPLETION_FIELDS else "data.empty-field"
    return RowError(code, message, FILL_IN_HINT, dropped_as=f"empty {field}")
