"""Columns and message keys that would get lost: found by name, unless they are empty or ignored."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_cli.data.rows import Message, PreferenceRow, PromptRow, SftRow
from rlhf_cli.errors import Issue
from rlhf_cli.stages import DatasetKind
from tests.support.datasets import conversion_issues, convert_row, convert_rows

USER: Message = {"role": "user", "content": "Hi?"}
YES: Message = {"role": "assistant", "content": "Yes."}
NO: Message = {"role": "assistant", "content": "No."}
DEMONSTRATION = {"prompt": "a", "completion": "b"}
PAIR = {"chosen": "b", "rejected": "c"}
CHAT = {"messages": [USER, YES]}


@pytest.mark.parametrize(
    ("kind", "row", "column"),
    [
        ("sft", {**DEMONSTRATION, "input": "x"}, "input"),  # Alpaca, mapped
        ("sft", {**DEMONSTRATION, "context": "x"}, "context"),  # Dolly, mapped
        ("sft", {**DEMONSTRATION, "System Prompt": "x"}, "System Prompt"),
        ("sft", {**DEMONSTRATION, "label": False}, "label"),  # KTO
        ("sft", {**DEMONSTRATION, "reasoning_content": "x"}, "reasoning_content"),
        ("sft", {**CHAT, "tools": [{"type": "function"}]}, "tools"),
        ("sft", {"text": "a", "instruction": "b", "output": "c"}, "instruction"),
        ("preferences", {"prompt": "a", **PAIR, "system": "x"}, "system"),  # truthy-dpo
        ("preferences", {"question": "x", **PAIR}, "question"),  # orca_dpo_pairs
        ("preferences", {"instruction": "x", "input": "", **PAIR}, "instruction"),  # LLaMA-Factory
        ("preferences", {"question": "x", "chosen": [USER, YES], "rejected": [USER, NO]}, "question"),
        ("preferences", {"conversations": [{"from": "human", "value": "x"}], **PAIR}, "conversations"),  # LLaMA-Factory
        ("preferences", {"messages": [USER], **PAIR}, "messages"),
        ("prompts", {"prompt": "a", "system": "x"}, "system"),
        ("prompts", {"messages": [USER], "tools": [{}]}, "tools"),
    ],
)
def test_convert_column_that_would_get_lost_adds_one_issue(kind: DatasetKind, row: dict[str, Any], column: str) -> None:
    empty = {**row, column: [] if isinstance(row[column], list) else ""}
    (issue,) = conversion_issues(kind, [empty, row, row])
    assert (issue.code, issue.location) == ("data.unused-column", "x.jsonl:2")
    assert f"`ignore_columns: [{column}]`" in issue.hint
    rows, _ = convert_rows(kind, [empty, row], ignore_columns=[column])
    assert len(rows) == 2


def test_convert_column_that_would_get_lost_names_format_that_reads_it() -> None:
    message = "question: found a value in a column that would be skipped."
    hint = (
        "Set `format: instruction` on the source to read it, or set `ignore_columns: [question]` if it may be skipped."
    )
    issue = Issue("data.unused-column", message, "x.jsonl:1", hint)
    assert conversion_issues("preferences", [{"question": "a", **PAIR}]) == [issue]


def test_convert_mapping_by_position_beside_a_label_adds_issue() -> None:
    row = {"prompt": "a", "response1": "b", "response2": "c", "overall_preference": 2}
    mapping = {"chosen": "response1", "rejected": "response2"}
    (issue,) = conversion_issues("preferences", [row], mapping)
    assert (issue.code, issue.message.split(":")[0]) == ("data.unused-column", "overall_preference")


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("sft", {**DEMONSTRATION, "id": 1, "source": "x", "score": 0.5}, SftRow("a", "b")),
        ("sft", {**CHAT, "prompt": "Hi?", "prompt_id": "x"}, SftRow([USER], [YES])),  # ultrachat_200k
        ("sft", {**CHAT, "prompt": None, "completion": None}, SftRow([USER], [YES])),
        ("prompts", {"prompt": "a", "question": "b", "answer": "c"}, PromptRow("a", {"question": "b", "answer": "c"})),
        (
            "preferences",
            {"prompt": None, "chosen": [USER, YES], "rejected": [USER, NO]},
            PreferenceRow([USER], [YES], [NO], None, {}),
        ),
        (
            "preferences",
            {"prompt": "a", **PAIR, "messages": [USER, YES]},  # UltraFeedback
            PreferenceRow("a", "b", "c", None, {"messages": [USER, YES]}),
        ),
    ],
)
def test_convert_column_without_meaning_adds_no_issue(kind: DatasetKind, row: dict[str, Any], expected: Any) -> None:
    assert convert_row(kind, row) == expected


@pytest.mark.parametrize(
    ("kind", "row", "ignored", "expected"),
    [
        ("preferences", {"prompt": "a", **PAIR, "margin": 2.0}, ["margin"], PreferenceRow("a", "b", "c", None, {})),
        ("sft", {**CHAT, **DEMONSTRATION}, ["prompt", "completion"], SftRow([USER], [YES])),
        ("prompts", {"prompt": "a", "context": "x"}, ["context"], PromptRow("a", {"context": "x"})),
    ],
)
def test_convert_ignored_column_of_ours_is_not_read(
    kind: DatasetKind, row: dict[str, Any], ignored: list[str], expected: Any
) -> None:
    assert convert_rows(kind, [row], ignore_columns=ignored) == ([expected], {})


@pytest.mark.parametrize("key", ["tool_calls", "function_call", "reasoning_content"])
def test_convert_message_key_that_would_get_lost_adds_issue(key: str) -> None:
    row = {"messages": [USER, {**YES, key: [{"name": "search"}]}]}
    (issue,) = conversion_issues("sft", [CHAT, row])
    assert (issue.code, issue.location) == ("data.unused-column", "x.jsonl:2")
    assert convert_row("sft", row, ignore_columns=[key]) == SftRow([USER], [YES])
