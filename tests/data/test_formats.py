"""Demonstrations, prompts and texts of every format, and the rows that cannot be parsed."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_cli.data.issues import FILL_IN_HINT
from rlhf_cli.data.rows import Message, PromptRow, SftRow, TextRow
from rlhf_cli.errors import Issue
from rlhf_cli.stages import DatasetKind
from tests.support.datasets import conversion_issues, convert_row, convert_rows

SYSTEM: Message = {"role": "system", "content": "Be kind."}
USER: Message = {"role": "user", "content": "Hi?"}
USER_2: Message = {"role": "user", "content": "And now?"}
YES: Message = {"role": "assistant", "content": "Yes."}
NO: Message = {"role": "assistant", "content": "No."}
DEMONSTRATION = {"prompt": "a", "completion": "b"}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "2+2=", "completion": "4"}, SftRow("2+2=", "4")),
        ({"prompt": [SYSTEM, USER], "completion": [YES]}, SftRow([SYSTEM, USER], [YES])),
        ({"messages": [USER, NO, USER_2, YES]}, SftRow([USER, NO, USER_2], [YES])),
        # user turns, and assistant turns other than the last, are not under the loss
        ({"prompt": [SYSTEM, USER], "completion": [NO, USER_2, YES]}, SftRow([SYSTEM, USER, NO, USER_2], [YES])),
        ({"text": " Once upon a time. "}, SftRow("", " Once upon a time. ")),
    ],
)
def test_convert_demonstration_of_each_format_splits_prompt_and_completion(
    row: dict[str, Any], expected: SftRow
) -> None:
    assert convert_row("sft", row) == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Hi?", "answer": 4}, PromptRow("Hi?", {"answer": 4})),
        ({"prompt": [SYSTEM, USER]}, PromptRow([SYSTEM, USER], {})),
        ({"messages": [USER, NO, USER_2]}, PromptRow([USER, NO, USER_2], {})),
        ({"messages": [USER, NO]}, PromptRow([USER], {})),
        ({"prompt": "Hi?", "completion": "Yes."}, PromptRow("Hi?", {"completion": "Yes."})),
        ({"prompt": "Hi?", "chosen": "Yes.", "rejected": ""}, PromptRow("Hi?", {})),
        ({"chosen": "Is it? Yes", "rejected": "Is it? No"}, PromptRow("Is it?", {})),
        ({"chosen": [USER, YES], "rejected": [USER, NO]}, PromptRow([USER], {})),
        ({"prompt": "Hi?", "chosen": [USER, YES], "rejected": [USER, NO], "n": 1}, PromptRow([USER], {"n": 1})),
        (
            {"chosen": "\n\nHuman: Hi?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Hi?\n\nAssistant: No."},
            PromptRow([USER], {}),
        ),
    ],
)
def test_convert_row_of_any_kind_yields_its_prompt(row: dict[str, Any], expected: PromptRow) -> None:
    assert convert_row("prompts", row) == expected


def test_convert_pretraining_row_ignores_other_columns() -> None:
    assert convert_row("pretrain", {"text": "Once.", "id": 3}) == TextRow("Once.")


def test_convert_pairs_keeps_margin_and_other_columns_of_all_rows() -> None:
    rows, _ = convert_rows("preferences", [{**PAIR, "margin": 2, "topic": "sky"}, {**PAIR, "margin": "0.5", "by": 7}])
    assert [row.margin for row in rows] == [2.0, 0.5]
    assert [row.extra for row in rows] == [{"topic": "sky", "by": None}, {"topic": None, "by": 7}]


@pytest.mark.parametrize("margin", [float("nan"), "much", True, [1]])
def test_convert_margin_that_is_not_a_finite_number_adds_issue(margin: Any) -> None:
    message = f"margin: found {margin!r}, expected a finite number."
    issue = Issue("data.invalid-margin", message, "x.jsonl:1", "Write a number, or null on all rows.")
    assert conversion_issues("preferences", [{**PAIR, "margin": margin}]) == [issue]


@pytest.mark.parametrize(
    ("kind", "row", "code", "message", "hint"),
    [
        ("sft", {"completion": "a"}, "data.missing-field", "prompt: missing field.", FILL_IN_HINT),
        (
            "sft",
            {"prompt": "a", "completion": None},
            "data.empty-completion",
            "completion: found null, expected a value.",
            FILL_IN_HINT,
        ),
        (
            "sft",
            {"prompt": "a", "completion": 4},
            "data.wrong-type",
            "completion: found a number, expected text.",
            "Write it in quotes, or remove the row.",
        ),
        (
            "sft",
            {"prompt": "a", "completion": " \n"},
            "data.empty-completion",
            "completion: empty text.",
            FILL_IN_HINT,
        ),
        ("sft", {"prompt": "", "completion": "a"}, "data.empty-field", "prompt: empty text.", FILL_IN_HINT),
        (
            "sft",
            {"prompt": "a", "completion": [YES]},
            "data.mixed-formats",
            "completion: found a conversation, expected text as in the row's other fields.",
            "Use the same format for all fields.",
        ),
        (
            "sft",
            {"prompt": [USER], "completion": [USER]},
            "data.roles-out-of-order",
            "completion: must start and end with an assistant turn.",
            "Remove the other turns, or the row.",
        ),
        (
            "sft",
            {"prompt": [USER, YES], "completion": [YES]},
            "data.roles-out-of-order",
            "prompt: must end with a user turn.",
            "Remove the turns after it, or the row.",
        ),
        (
            "preferences",
            {"prompt": "a", "chosen": "b"},
            "data.missing-field",
            "rejected: missing field.",
            FILL_IN_HINT,
        ),
    ],
)
def test_convert_invalid_row_adds_issue_with_line(
    kind: DatasetKind, row: dict[str, Any], code: str, message: str, hint: str
) -> None:
    valid = PAIR if kind == "preferences" else DEMONSTRATION
    issues = conversion_issues(kind, [row, valid])
    assert issues[0] == Issue(code, message, "x.jsonl:1", hint)


def test_convert_prompt_ending_with_assistant_turn_adds_issue() -> None:
    (issue,) = conversion_issues("prompts", [{"prompt": [USER, YES]}])
    assert (issue.code, issue.location) == ("data.roles-out-of-order", "x.jsonl:1")


def test_convert_texts_without_common_beginning_adds_issue() -> None:
    message = "chosen, rejected: no common beginning that could be the prompt."
    issue = Issue("data.no-common-prompt", message, "x.jsonl:1", "Add a column `prompt` with the prompt.")
    assert conversion_issues("prompts", [{"chosen": "Yes", "rejected": "No"}]) == [issue]


def test_convert_row_without_prompt_beside_one_with_prompt_adds_issue() -> None:
    without = {"chosen": "Is it? Yes", "rejected": "Is it? No"}
    for kind in ("preferences", "prompts"):
        (issue,) = conversion_issues(kind, [PAIR, without])
        assert (issue.code, issue.location) == ("data.missing-field", "x.jsonl:2")
