"""Turns: reading and checking them, taking transcripts apart, and finding what two answers have in common."""

from __future__ import annotations

import difflib
import re
from typing import Any

from rlhf_cli.data.readers import type_name
from rlhf_cli.data.rows import Message

ROLES = ("system", "user", "assistant")
OTHER_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "developer": "system"}
MESSAGE = 'A message is {"role": "user", "content": "…"}.'
LAST_TURN = "Take out what stands behind it, or the row."
FILL_IN = "Fill it in, or take the row out."
TRANSCRIPT = "\n\nHuman:"  # how an HH-RLHF transcript begins
_TURN = re.compile(r"\n\n(Human|Assistant):")


class RowIssue(Exception):
    """A row that cannot be used. `drop_as` names the reason where such a row of somebody else's data is dropped."""

    def __init__(self, message: str, hint: str = "", *, drop_as: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.drop_as = drop_as


class UnusableRow(Exception):
    """A row that is dropped and counted under this reason, wherever it comes from."""


def read_messages(value: Any, field: str) -> list[Message]:
    """`value` as turns with known roles and text in them; further keys of a turn are left out."""
    if not isinstance(value, list):
        raise RowIssue(f"`{field}` must be a list of messages, found {type_name(value)}.", MESSAGE)
    if not value:
        raise RowIssue(f"`{field}` is an empty list.", FILL_IN, drop_as=f"empty {field}")
    messages: list[Message] = []
    for index, turn in enumerate(value):
        if type(turn) is not dict or len(turn) != 2 or turn.get("role") not in ROLES:  # most are just so
            turn = _read_turn(turn, f"{field}[{index}]")
        content = turn.get("content")
        if type(content) is not str or not content or content.isspace():
            turn = _read_turn(turn, f"{field}[{index}]")
            raise RowIssue(f"`{field}[{index}].content` is empty.", FILL_IN, drop_as=f"empty {field}")
        messages.append(turn)
    return messages


def _read_turn(turn: Any, name: str) -> Message:
    """A turn, and no more than that; its text may be empty."""
    if not isinstance(turn, dict):
        raise RowIssue(f"`{name}` must be a message {{role, content}}, found {type_name(turn)}.", MESSAGE)
    for key in ("role", "content"):
        if not isinstance(turn.get(key), str):
            raise RowIssue(
                f"`{name}.{key}` must be text, found {type_name(turn[key]) if key in turn else 'none'}.",
                MESSAGE,
            )
    if turn["role"] not in ROLES:
        meant = OTHER_ROLES.get(turn["role"].lower()) or next(
            iter(difflib.get_close_matches(turn["role"], ROLES, 1)), ""
        )
        hint = f"Did you mean {meant}?" if meant else ""
        raise RowIssue(f"`{name}.role` is {turn['role']!r}; roles are {', '.join(ROLES)}.", hint)
    return Message(role=turn["role"], content=turn["content"])


def check_order(messages: list[Message], field: str) -> None:
    """A system message at most at the beginning, then user and assistant in turns, the user first."""
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    before = len(messages) - len(turns)
    for index, turn in enumerate(turns):
        expected = ("user", "assistant")[index % 2]
        if turn["role"] != expected:
            raise RowIssue(
                f"`{field}` has roles out of order: turn {before + index + 1} is {turn['role']}, expected {expected}.",
                "A system message may stand first; then user and assistant take turns.",
                drop_as="roles out of order",
            )


def split_last_answer(messages: list[Message], field: str) -> tuple[list[Message], list[Message]]:
    """A conversation as the prompt and its last assistant turn."""
    check_order(messages, field)
    if messages[-1]["role"] != "assistant":
        raise RowIssue(f"`{field}` must end with an assistant turn.", LAST_TURN, drop_as="no closing assistant turn")
    return messages[:-1], messages[-1:]


def check_prompt(prompt: list[Message], field: str) -> None:
    """A prompt is what an assistant's answer can follow: it ends with a user turn."""
    check_order(prompt, field)
    if not prompt or prompt[-1]["role"] != "user":
        raise RowIssue(f"`{field}` must end with a user turn.", LAST_TURN, drop_as="no closing user turn")


def check_answer(prompt: list[Message], answer: list[Message], field: str) -> None:
    """An answer goes on from the prompt with an assistant turn, and ends with one."""
    if not answer or answer[0]["role"] != "assistant" or answer[-1]["role"] != "assistant":
        message = f"`{field}` must begin and end with an assistant turn."
        raise RowIssue(message, LAST_TURN, drop_as="no closing assistant turn")
    check_order([*prompt, *answer], field)


def common_turns(chosen: list[Message], rejected: list[Message]) -> int:
    """The number of leading turns that both share, with at least one turn left to each."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    return shared


def common_text(chosen: str, rejected: str) -> int:
    """The length, in characters, of the shared beginning, cut back so that no word is cut in two.

    Both keep something to say. One space before the first word of an answer belongs to the answer, as tokenizers
    have it; line breaks belong to the prompt.
    """
    shared, beyond = 0, min(len(chosen), len(rejected)) + 1
    while beyond - shared > 1:  # halving: answers may be thousands of characters long
        middle = (shared + beyond) // 2
        if chosen[shared:middle] == rejected[shared:middle]:
            shared = middle
        else:
            beyond = middle
    while shared and not _is_boundary(chosen, rejected, shared):
        shared -= 1
    if shared and chosen[shared - 1] == " ":
        shared -= 1
    return shared


def _is_boundary(chosen: str, rejected: str, at: int) -> bool:
    if not chosen[at:].strip() or not rejected[at:].strip():
        return False
    return chosen[at - 1].isspace() or (chosen[at].isspace() and rejected[at].isspace())


def read_transcript(text: str) -> list[Message]:
    """An HH-RLHF transcript as turns. Turns of one speaker in a row become one.

    Its published rows have flaws that nobody can hint there, so that they are dropped and not refused.
    """
    assert text.startswith(TRANSCRIPT)
    parts = _TURN.split(text)[1:]
    messages: list[Message] = []
    for speaker, said in zip(parts[::2], parts[1::2], strict=True):
        if not said.strip():
            raise UnusableRow("transcript with an empty turn")
        role = "user" if speaker == "Human" else "assistant"
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += "\n\n" + said.strip()
        else:
            messages.append(Message(role=role, content=said.strip()))
    if messages[-1]["role"] != "assistant":
        raise UnusableRow("transcript without a closing answer")
    return messages
