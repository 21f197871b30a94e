"""Columns: the recipe's mapping, and what is suggested for a dataset with other columns."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_cli.data.rows import PromptRow, SftRow
from rlhf_cli.errors import Issue
from rlhf_cli.stages import DatasetKind
from tests.support.datasets import conversion_issues, convert_rows

SFT_COLUMNS = "`prompt` and `completion`, or `messages`, or `text`"


def column_issues(kind: DatasetKind, columns: tuple[str, ...], mapping: dict[str, str] | None = None) -> list[Issue]:
    """Return the issues of three rows with these columns."""
    return conversion_issues(kind, [dict.fromkeys(columns, "x")] * 3, mapping)


def test_convert_mapped_columns_uses_our_names() -> None:
    row = {"instruction": "Hi?", "prompt": "not this", "output": "Yes."}
    rows, _ = convert_rows("sft", [row], {"prompt": "instruction", "completion": "output"})
    assert rows == [SftRow("Hi?", "Yes.")]


def test_convert_mapping_to_other_names_keeps_columns_under_them() -> None:
    rows, _ = convert_rows(
        "prompts", [{"q": "Hi?", "key": 3, "p": 4}], {"prompt": "q", "answer": "key", "prompt_id": "p"}
    )
    assert rows == [PromptRow("Hi?", {"answer": 3, "prompt_id": 4})]


@pytest.mark.parametrize(
    ("kind", "mapping", "columns", "message", "hint"),
    [
        (
            "sft",
            {"prmpt": "q", "completion": "a"},
            ("q", "a"),
            "columns: 'q' is mapped to 'prmpt', which is not a column of sft rows.",
            "Did you mean prompt?",
        ),
        (
            "sft",
            {"prompt": "q", "completion": "a", "tag": "t"},
            ("q", "a", "t"),
            "columns: 't' is mapped to 'tag', which is not a column of sft rows.",
            f"Map columns to {SFT_COLUMNS}.",
        ),
        (
            "prompts",
            {"prmpt": "prompt"},
            ("prompt",),
            "columns: 'prompt' is mapped to 'prmpt', which is not a column of prompts rows.",
            "Did you mean prompt?",
        ),
        (
            "preferences",
            {"prompts": "q", "chosen": "c", "rejected": "r"},
            ("q", "c", "r"),
            "columns: 'q' is mapped to 'prompts', which is not a column of preferences rows.",
            "Did you mean prompt?",
        ),
        (
            "sft",
            {"prompt": "instructions"},
            ("instruction", "completion"),
            "columns: column 'instructions' not found; found instruction, completion.",
            "Did you mean instruction?",
        ),
    ],
)
def test_convert_unknown_column_in_mapping_adds_issue(
    kind: DatasetKind, mapping: dict[str, str], columns: tuple[str, ...], message: str, hint: str
) -> None:
    assert column_issues(kind, columns, mapping) == [Issue("data.unknown-column", message, "x.jsonl", hint)]


MAPPING_HINT = "Map the columns in the recipe: `columns: {%s}`."
EITHER_HINT = (
    "Set `format: instruction` on the source to read conversations, or map the columns to use their text unchanged: "
    "`columns: {%s}`."
)


@pytest.mark.parametrize(
    ("kind", "columns", "hint"),
    [
        ("sft", ("instruction", "output"), EITHER_HINT % "prompt: instruction, completion: output"),
        ("preferences", ("question", "chosen", "loser"), MAPPING_HINT % "prompt: question, rejected: loser"),
        ("prompts", ("query",), EITHER_HINT % "prompt: query"),
        ("pretrain", ("id", "story"), MAPPING_HINT % "text: story"),
        ("sft", ("a", "b"), MAPPING_HINT % "prompt: …, completion: …"),
        (
            "sft",
            ("prompt", "chosen", "rejected"),
            "Move the source to data.preferences; it has the columns of preferences rows.",
        ),
        ("preferences", ("messages",), "Move the source to data.sft; it has the columns of sft rows."),
    ],
)
def test_convert_wrong_columns_adds_one_issue_with_suggestion(
    kind: DatasetKind, columns: tuple[str, ...], hint: str
) -> None:
    (issue,) = column_issues(kind, columns)
    assert (issue.code, issue.location, issue.hint) == ("data.wrong-columns", "x.jsonl", hint)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("pretrain", "`text`"),
        ("sft", SFT_COLUMNS),
        (
            "preferences",
            "`prompt`, `chosen` and `rejected`, or `chosen` and `rejected` that start with the same prompt",
        ),
        ("prompts", "`prompt`, or `messages`"),
    ],
)
def test_convert_wrong_columns_names_found_and_expected_ones(kind: DatasetKind, expected: str) -> None:
    (issue,) = column_issues(kind, ("a", "b"))
    assert issue.message == f"columns: found a, b; expected {expected} for {kind} rows."


@pytest.mark.parametrize("name", ["prompts", "completions"])
def test_convert_column_named_like_reward_argument_adds_issue(name: str) -> None:
    row: dict[str, Any] = {"prompt": "a", name: "b"}
    message = f"columns: {name} is reserved for an argument of reward functions."
    hint = f"Rename it, for example with `columns: {{{name}_column: {name}}}`."
    assert conversion_issues("prompts", [row]) == [Issue("data.reserved-column", message, "x.jsonl", hint)]
