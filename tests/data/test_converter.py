"""Checks over all rows of a source: equal formats, margins on all rows or none, and dropped rows."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_cli.errors import Issue
from tests.support.datasets import conversion_issues, convert_rows

PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize("first_margin", [1.0, None])
def test_convert_margin_on_some_rows_adds_issue_to_the_others(first_margin: float | None) -> None:
    first: dict[str, Any] = {**PAIR, "margin": first_margin}
    second: dict[str, Any] = PAIR if first_margin else {**PAIR, "margin": 1.0}
    missing, present = (2, 1) if first_margin else (1, 2)
    message = f"margin: missing, although x.jsonl:{present} has one."
    hint = "Set it on all rows or on none."
    issue = Issue("data.missing-margin", message, f"x.jsonl:{missing}", hint)
    assert conversion_issues("preferences", [first, second]) == [issue]


def test_convert_text_and_conversation_rows_adds_issue() -> None:
    conversation = {
        "prompt": [{"role": "user", "content": "Hi?"}],
        "completion": [{"role": "assistant", "content": "Yes."}],
    }
    message = "format: found a conversation, expected text as in x.jsonl:1."
    issue = Issue("data.mixed-formats", message, "x.jsonl:2", "Use the same format for all rows.")
    assert conversion_issues("sft", [{"prompt": "a", "completion": "b"}, conversation]) == [issue]


def test_convert_empty_rows_of_data_that_is_not_editable_drops_and_counts_them() -> None:
    rows, counts = convert_rows(
        "preferences", [PAIR, {**PAIR, "rejected": None}, {**PAIR, "chosen": ""}], editable=False
    )
    assert len(rows) == 1
    assert counts == {"dropped: empty rejected": 1, "dropped: empty chosen": 1}
