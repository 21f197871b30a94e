"""Collected issues: the first ones are shown, the others counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_cli.data.issues import MAX_SHOWN_ISSUES, IssueCollector
from rlhf_cli.errors import DataError, Issue
from tests.support.datasets import file_issues


def test_load_fifty_invalid_rows_shows_twenty_and_counts_others(jsonl: Callable[..., Path]) -> None:
    issues = file_issues(jsonl(*[{"prompt": "a", "completion": ""}] * 50))
    assert len(issues) == MAX_SHOWN_ISSUES + 1
    assert {issue.code for issue in issues[:-1]} == {"data.empty-completion"}
    assert issues[-1] == Issue("data.more-issues", "30 more issues not shown.")


def test_collector_merge_keeps_count_of_issues_not_shown() -> None:
    first, second = IssueCollector(), IssueCollector()
    for number in range(MAX_SHOWN_ISSUES):
        first.add("data.no-rows", "no rows.", f"{number}")
        second.add("data.no-rows", "no rows.", f"{number}")
    second.add("data.no-rows", "no rows.", "last")
    first.merge(second)
    assert (first.count, len(first.shown)) == (2 * MAX_SHOWN_ISSUES + 1, MAX_SHOWN_ISSUES)
    with pytest.raises(DataError) as raised:
        first.raise_if_any()
    assert raised.value.issues[-1].message.startswith(f"{MAX_SHOWN_ISSUES + 1} more")


def test_collector_without_issues_raises_nothing() -> None:
    IssueCollector().raise_if_any()
