"""Preference rows of every format: prompt, chosen and rejected, and the pairs that cannot be used."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_cli.data.rows import Message, PreferenceRow, PromptRow
from rlhf_cli.errors import Issue
from tests.support.datasets import conversion_issues, convert_row, convert_rows

SYSTEM: Message = {"role": "system", "content": "Be kind."}
USER: Message = {"role": "user", "content": "Hi?"}
USER_2: Message = {"role": "user", "content": "And now?"}
YES: Message = {"role": "assistant", "content": "Yes."}
NO: Message = {"role": "assistant", "content": "No."}


def test_convert_text_pair_uses_text_verbatim() -> None:
    row = {"prompt": "\n\nHuman: Hi?\n\nAssistant:", "chosen": " Yes.", "rejected": " No."}
    assert convert_row("preferences", row) == PreferenceRow(row["prompt"], " Yes.", " No.", None, {})


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [SYSTEM, USER], "chosen": [YES], "rejected": [NO]},
        {"prompt": [SYSTEM, USER], "chosen": YES, "rejected": NO},
        {"chosen": [SYSTEM, USER, YES], "rejected": [SYSTEM, USER, NO]},
        {"prompt": "Hi?", "chosen": [SYSTEM, USER, YES], "rejected": [SYSTEM, USER, NO]},  # as in UltraFeedback
    ],
)
def test_convert_conversation_pair_of_each_format_returns_same_row(row: dict[str, Any]) -> None:
    assert convert_row("preferences", row) == PreferenceRow([SYSTEM, USER], [YES], [NO], None, {})


def test_convert_common_turns_of_completions_moves_them_to_prompt() -> None:
    row = {"prompt": [USER], "chosen": [YES, USER_2, YES], "rejected": [YES, USER_2, NO]}
    assert convert_row("preferences", row) == PreferenceRow([USER, YES, USER_2], [YES], [NO], None, {})


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [USER, YES, USER_2, YES], "rejected": [USER, NO, USER_2, YES]},
        {"prompt": [USER], "chosen": [YES, USER_2, YES], "rejected": [NO, USER_2, YES]},
        {"prompt": [USER], "chosen": [YES], "rejected": [NO, USER_2, YES]},
        {"prompt": [USER], "chosen": [YES, USER_2, YES], "rejected": [YES, USER, NO]},
        {"prompt": [USER], "chosen": [YES], "rejected": [YES, USER, NO]},
    ],
)
def test_convert_user_turns_in_completion_adds_issue_or_drops_row(row: dict[str, Any]) -> None:
    name = "rejected" if len(row["chosen"]) == 1 else "chosen"
    message = f"{name}: has user turns after the prompt, which would be scored as part of the completion."
    hint = "End both conversations with the first assistant turn that differs."
    issue = Issue("data.multi-turn-completion", message, "x.jsonl:1", hint)
    assert conversion_issues("preferences", [row]) == [issue]
    assert convert_rows("preferences", [row], editable=False) == ([], {"dropped: user turns in a completion": 1})
    assert convert_row("prompts", row) == PromptRow([USER], {}), "the completions do not matter to a prompt"


def test_convert_transcripts_makes_conversations() -> None:
    start = "\n\nHuman: Hi?\n\nAssistant: No.\n\nHuman: And\n\nnow? \n\nAssistant:"
    row = convert_row("preferences", {"chosen": start + " Yes.", "rejected": start + " No."})
    now: Message = {"role": "user", "content": "And\n\nnow?"}
    assert row == PreferenceRow([USER, NO, now], [YES], [NO], None, {})


def test_convert_malformed_transcripts_drops_and_counts_them() -> None:
    valid = {"chosen": "\n\nHuman: Hi?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Hi?\n\nAssistant: No."}
    rows = [
        valid,
        {**valid, "rejected": "\n\nHuman: Hi?\n\nAssistant: "},
        {**valid, "rejected": "\n\nHuman: Ho?\n\nAssistant: No."},
        {**valid, "rejected": "\n\nHuman: Hi?\n\nAssistant: No.\n\nHuman: Why?"},
    ]
    _, counts = convert_rows("preferences", rows)
    assert counts == {
        "dropped: transcript with an empty turn": 1,
        "dropped: transcripts with different prompts": 1,
        "dropped: transcript without a closing assistant turn": 1,
    }


@pytest.mark.parametrize(
    "equal",
    [
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        {"chosen": [USER, YES], "rejected": [USER, YES]},
    ],
)
def test_convert_equal_completions_drops_and_counts_row(equal: dict[str, Any]) -> None:
    assert convert_rows("preferences", [equal]) == ([], {"dropped: chosen equals rejected": 1})


@pytest.mark.parametrize(
    ("row", "code", "message", "hint"),
    [
        (
            {"prompt": "a", "chosen": [YES], "rejected": [NO]},
            "data.mixed-formats",
            "prompt: found text that does not match any of the opening turns that `chosen` and `rejected` share.",
            "Write the prompt as messages; text is not converted to a conversation.",
        ),
        (
            {"chosen": [USER, YES], "rejected": [USER_2, NO]},
            "data.no-common-prompt",
            "chosen, rejected: differ starting at turn 1; the turns before it must end with a user turn.",
            "Start both with the same prompt, or add a column `prompt`.",
        ),
    ],
)
def test_convert_pair_without_prompt_of_its_format_adds_issue(
    row: dict[str, Any], code: str, message: str, hint: str
) -> None:
    assert conversion_issues("preferences", [row]) == [Issue(code, message, "x.jsonl:1", hint)]


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": [NO]}, "data.mixed-formats"),
        ({"prompt": [USER], "chosen": "b", "rejected": "c"}, "data.mixed-formats"),
        ({"prompt": [USER], "chosen": [USER, YES], "rejected": [USER, NO]}, "data.roles-out-of-order"),
    ],
)
def test_convert_pair_with_unfitting_fields_adds_issue(row: dict[str, Any], code: str) -> None:
    (issue,) = conversion_issues("preferences", [row])
    assert (issue.code, issue.location) == (code, "x.jsonl:1")


HH = "Human: Hi?\n\nAssistant:"
OASST = "<|prompter|>Hi?<|endoftext|><|assistant|>"


@pytest.mark.parametrize("start", [f"\n\n{HH}", HH, f"\n{HH}", OASST, "### Human: Hi?\n### Assistant:"])
@pytest.mark.parametrize("prompt", [{}, {"prompt": "Hi?"}, {"prompt": None}])
def test_convert_transcripts_of_any_style_makes_conversations(start: str, prompt: dict[str, Any]) -> None:
    row = {**prompt, "chosen": f"{start} Yes.", "rejected": f"{start} No."}
    assert convert_row("preferences", row) == PreferenceRow([USER], [YES], [NO], None, {})


def test_convert_transcripts_beside_other_prompt_adds_issue() -> None:
    (issue,) = conversion_issues("preferences", [{"prompt": "Bye?", "chosen": f"{HH} Yes.", "rejected": f"{HH} No."}])
    assert (issue.code, issue.location) == ("data.mixed-formats", "x.jsonl:1")


def test_convert_empty_rejected_completion_keeps_row() -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": ""}
    assert convert_row("preferences", row) == PreferenceRow("a", "b", "", None, {})
    empty: Message = {"role": "assistant", "content": ""}
    pair = {"prompt": [USER], "chosen": [YES], "rejected": [empty]}
    assert convert_row("preferences", pair) == PreferenceRow([USER], [YES], [empty], None, {})
    for field in ({"chosen": ""}, {"rejected": None}):
        (issue,) = conversion_issues("preferences", [{**row, **field}])
        assert issue.code == "data.empty-completion"
