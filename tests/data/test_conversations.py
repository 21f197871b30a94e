"""Conversations: messages that cannot be read, turns out of order, and common beginnings."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from rlhf_cli.data.conversations import MESSAGE_HINT, SHAREGPT_HINT
from rlhf_cli.data.issues import FILL_IN_HINT
from rlhf_cli.data.rows import Message, PreferenceRow, PromptRow, SftRow
from rlhf_cli.errors import Issue
from tests.support.datasets import conversion_issues, convert_row

SYSTEM: Message = {"role": "system", "content": "Be kind."}
USER: Message = {"role": "user", "content": "Hi?"}
YES: Message = {"role": "assistant", "content": "Yes."}
ORDER_HINT = "Start with at most one system message; then alternate user and assistant."
LAST_TURN_HINT = "Remove the turns after it, or the row."


@pytest.mark.parametrize(
    ("messages", "code", "message", "hint"),
    [
        ("Hi?", "wrong-type", "messages: found text, expected a list of messages.", MESSAGE_HINT),
        ([], "empty-field", "messages: found an empty list, expected messages.", FILL_IN_HINT),
        (["Hi?"], "wrong-type", "messages[0]: found text, expected a message {role, content}.", MESSAGE_HINT),
        (
            [{"from": "human", "value": "Hi?"}],
            "missing-field",
            "messages[0]: found from and value, expected role and content.",
            SHAREGPT_HINT,
        ),
        ([{"content": "Hi?"}], "missing-field", "messages[0].role: missing field.", MESSAGE_HINT),
        (
            [USER, {"role": "assistant", "content": None}],
            "wrong-type",
            "messages[1].content: found null, expected text.",
            MESSAGE_HINT,
        ),
        (
            [USER, {"role": "gpt", "content": "Yes."}],
            "unknown-role",
            "messages[1].role: unknown role 'gpt'; expected system, user or assistant.",
            "Did you mean assistant?",
        ),
        (
            [{"role": "usr", "content": "Hi?"}, YES],
            "unknown-role",
            "messages[0].role: unknown role 'usr'; expected system, user or assistant.",
            "Did you mean user?",
        ),
        ([USER, {"role": "assistant", "content": ""}], "empty-field", "messages[1].content: empty text.", FILL_IN_HINT),
        ([USER, USER, YES], "roles-out-of-order", "messages: turn 2 is user, expected assistant.", ORDER_HINT),
        ([USER, SYSTEM, YES], "roles-out-of-order", "messages: turn 2 is system, expected assistant.", ORDER_HINT),
        ([YES], "roles-out-of-order", "messages: turn 1 is assistant, expected user.", ORDER_HINT),
        ([USER], "roles-out-of-order", "messages: must end with an assistant turn.", LAST_TURN_HINT),
    ],
)
def test_convert_invalid_messages_adds_issue(messages: Any, code: str, message: str, hint: str) -> None:
    assert conversion_issues("sft", [{"messages": messages}]) == [Issue(f"data.{code}", message, "x.jsonl:1", hint)]


def test_convert_message_with_further_keys_drops_them() -> None:
    row = {"messages": [{**USER, "name": "Ann"}, {**YES, "tool_calls": []}]}
    assert convert_row("sft", row) == SftRow([USER], [YES])


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("The sky is blue.", "The sky is black.", "The sky is"),  # not "The sky is bl"
        ("Q?\n\nYes", "Q?\n\nNo", "Q?\n\n"),
        ("Q? Yes", "Q? Yes, of course", "Q?"),  # text is left in both
        ("Q? Yes", "Q? Yes and no", "Q?"),
        ("one two", "one\ttwo", "one"),
        ("Hi", "Ho", ""),
    ],
)
def test_convert_texts_with_common_beginning_splits_between_words(chosen: str, rejected: str, prompt: str) -> None:
    row = convert_row("preferences", {"chosen": chosen, "rejected": rejected})
    assert row == PreferenceRow(prompt, chosen[len(prompt) :], rejected[len(prompt) :], None, {})


PARTS = [{"type": "text", "text": "Ye"}, {"type": "text", "text": "s.", "image_url": None}]


def test_convert_content_in_text_parts_joins_them() -> None:
    row = {"messages": [USER, {"role": "assistant", "content": PARTS}]}
    assert convert_row("sft", row) == SftRow([USER], [YES])


def test_convert_content_with_an_image_adds_issue() -> None:
    image = {"type": "image_url", "image_url": {"url": "a.png"}}
    (issue,) = conversion_issues("sft", [{"messages": [{"role": "user", "content": [*PARTS, image]}, YES]}])
    assert (issue.code, issue.location) == ("data.wrong-type", "x.jsonl:1")


@pytest.mark.parametrize("as_text", [json.dumps, str])
def test_convert_messages_written_as_text_reads_them(as_text: Callable[[Any], str]) -> None:
    assert convert_row("sft", {"messages": as_text([USER, YES])}) == SftRow([USER], [YES])
    row = {"prompt": as_text([USER]), "completion": as_text([YES])}
    assert convert_row("sft", row) == SftRow([USER], [YES])
    assert convert_row("prompts", {"prompt": as_text([USER])}) == PromptRow([USER], {})
    pair = {"chosen": as_text([USER, YES]), "rejected": as_text([USER, {**YES, "content": "No."}])}
    assert convert_row("preferences", pair).prompt == [USER]


def test_convert_text_that_starts_like_messages_and_is_none_uses_it_unchanged() -> None:
    for text in ('{"value": 3}', "[1, 2]", '[{"name": "a", "role": "b"}]', "{", "[role]: be kind"):
        assert convert_row("sft", {"prompt": "JSON?", "completion": text}) == SftRow("JSON?", text)


def test_convert_messages_as_text_that_cannot_be_parsed_adds_issue() -> None:
    text = "[{'content': 'Hi?', 'role': 'user'}\n {'content': 'Yes.', 'role': 'assistant'}]"  # of numpy
    (issue,) = conversion_issues("sft", [{"prompt": "a", "completion": text}])
    assert (issue.code, issue.location) == ("data.conversation-as-text", "x.jsonl:1")


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([USER, YES]),
        str([USER, YES]),
        "Human: Hi?\n\nAssistant: Yes.",
        "<|prompter|>Hi?<|endoftext|><|assistant|>Yes.<|endoftext|>",
        "### Human: Hi?### Assistant: Yes.",
    ],
)
def test_convert_text_that_is_a_conversation_adds_issue(text: str) -> None:
    (issue,) = conversion_issues("sft", [{"text": text}])
    assert (issue.code, issue.location) == ("data.conversation-as-text", "x.jsonl:1")
