"""Conversations: read and check their turns, and find the common beginning of two completions."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from typing import Any

import orjson

from rlhf_cli.data.batches import Fields
from rlhf_cli.data.issues import RowError, empty_field_error, type_name
from rlhf_cli.data.rows import Message
from rlhf_cli.formatting import did_you_mean

ROLES = ("system", "user", "assistant")
ROLE_SYNONYMS = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "developer": "system",
}
MESSAGE_HINT = 'Write each message as {"role": "user", "content": "…"}.'
SHAREGPT_HINT = "Set `format: sharegpt` on the source, and map its column: `columns: {conversations: …}`."
UNUSED_KEYS = ("tool_calls", "function_call", "tool_call_id", "reasoning_content", "reasoning", "thinking")
_MESSAGES_AS_TEXT = re.compile(r"""\s*(\[\s*)?\{\s*(['"])(role|content|from|value)\2\s*:""")
_SECOND_KEYS = {"role": "content", "content": "role", "from": "value", "value": "from"}


def may_be_messages(text: str) -> bool:
    """Return whether a text starts as messages do, so that only `parse_messages` can tell."""
    return _MESSAGES_AS_TEXT.match(text) is not None


def parse_messages(text: str) -> list[Any] | None:
    """Return the messages that a text holds as JSON or as a Python literal, as in CSV files; None for other text.

    Raises:
        RowError: The text has the beginning and the keys of messages, but cannot be parsed.
    """
    match = _MESSAGES_AS_TEXT.match(text)
    if match is None or f"{match[2]}{_SECOND_KEYS[match[3]]}{match[2]}" not in text:
        return None
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            if match[1] is None:
                return None
            message = "text: found the beginning of a list of messages that cannot be parsed, expected JSON."
            raise RowError("data.conversation-as-text", message, "Write the messages as JSON.") from None
    messages = value if isinstance(value, list) else [value]
    is_message = messages and isinstance(messages[0], dict) and {match[3], _SECOND_KEYS[match[3]]} <= messages[0].keys()
    return messages if is_message else None


def read_messages(value: Any, field: str, *, may_end_empty: bool = False) -> list[Message]:
    """Return `value` as messages with known roles and text in them, without further keys. Raise RowError otherwise.

    Args:
        value: The value of the field.
        field: Its name.
        may_end_empty: Whether the last message may be empty.
    """
    if not isinstance(value, list):
        message = f"{field}: found {type_name(value)}, expected a list of messages."
        raise RowError("data.wrong-type", message, MESSAGE_HINT)
    if not value:
        raise empty_field_error(field, f"{field}: found an empty list, expected messages.")
    messages: list[Message] = []
    for index, turn in enumerate(value):
        # Most turns have these two keys and a known role: they are used without a copy.
        if type(turn) is not dict or len(turn) != 2 or turn.get("role") not in ROLES:
            turn = _read_turn(turn, f"{field}[{index}]")
        content = turn.get("content")
        if type(content) is not str or not content or content.isspace():
            turn = _read_turn(turn, f"{field}[{index}]")
            may_be_empty = may_end_empty and index == len(value) - 1
            if not turn["content"].strip() and not may_be_empty:
                raise empty_field_error(field, f"{field}[{index}].content: empty text.")
        messages.append(turn)
    return messages


def without_message_keys(fields: Fields, keys: Collection[str]) -> Fields:
    """Return a row whose messages lack these keys."""
    return {
        column: [
            {key: item for key, item in turn.items() if key not in keys} if isinstance(turn, dict) else turn
            for turn in value
        ]
        if isinstance(value, list)
        else value
        for column, value in fields.items()
    }


def _read_turn(turn: Any, name: str) -> Message:
    """Return a turn without further keys; its text may be empty."""
    if not isinstance(turn, dict):
        message = f"{name}: found {type_name(turn)}, expected a message {{role, content}}."
        raise RowError("data.wrong-type", message, MESSAGE_HINT)
    _check_keys(turn, name)
    content = turn["content"]
    if isinstance(content, list):
        content = _join_parts(content, name)
    for key, value in (("role", turn["role"]), ("content", content)):
        if not isinstance(value, str):
            message = f"{name}.{key}: found {type_name(value)}, expected text."
            raise RowError("data.wrong-type", message, MESSAGE_HINT)
    role = turn["role"]
    if role not in ROLES:
        synonym = ROLE_SYNONYMS.get(role.lower())
        hint = f"Did you mean {synonym}?" if synonym else did_you_mean(role, ROLES)
        message = f"{name}.role: unknown role {role!r}; expected {', '.join(ROLES[:-1])} or {ROLES[-1]}."
        raise RowError("data.unknown-role", message, hint)
    return Message(role=role, content=content)


def _check_keys(turn: dict[str, Any], name: str) -> None:
    """Raise RowError unless a turn has role and content, and no other value that would change what it means."""
    for key in UNUSED_KEYS:
        if turn.get(key):
            message = f"{name}.{key}: not supported; the model would be trained as if it were not there."
            hint = f"Write it into the content, or set `ignore_columns: [{key}]` on the source."
            raise RowError("data.unused-column", message, hint)
    if turn.keys() >= {"from", "value"}:
        raise RowError("data.missing-field", f"{name}: found from and value, expected role and content.", SHAREGPT_HINT)
    for key in ("role", "content"):
        if key not in turn:
            raise RowError("data.missing-field", f"{name}.{key}: missing field.", MESSAGE_HINT)


def _join_parts(parts: list[Any], name: str) -> str:
    """Return the text of a message whose content is a list of parts. Raise RowError if one is no text."""
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            found = part.get("type") if isinstance(part, dict) else type_name(part)
            message = f"{name}.content: found a part of type {found}, expected text."
            raise RowError("data.wrong-type", message, "Remove the row; only text can be trained on.")
    return "".join(part["text"] for part in parts)


def check_order(messages: list[Message], field: str) -> None:
    """Raise RowError unless user and assistant alternate, starting with the user, after an optional system message."""
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    skipped = len(messages) - len(turns)
    for index, turn in enumerate(turns):
        expected = ("user", "assistant")[index % 2]
        if turn["role"] != expected:
            raise RowError(
                "data.roles-out-of-order",
                f"{field}: turn {skipped + index + 1} is {turn['role']}, expected {expected}.",
                "Start with at most one system message; then alternate user and assistant.",
                dropped_as="roles out of order",
            )


def split_last_turn(messages: list[Message], field: str) -> tuple[list[Message], list[Message]]:
    """Return a conversation as its prompt and its last assistant turn."""
    check_order(messages, field)
    if messages[-1]["role"] != "assistant":
        raise _last_turn_error(field, "assistant")
    return messages[:-1], messages[-1:]


def check_prompt(prompt: list[Message], field: str) -> None:
    """Raise RowError unless the prompt ends with a user turn, which a completion can follow."""
    check_order(prompt, field)
    if not prompt or prompt[-1]["role"] != "user":
        raise _last_turn_error(field, "user")


def check_completion(prompt: list[Message], completion: list[Message], field: str) -> None:
    """Raise RowError unless the completion follows the prompt, and starts and ends with an assistant turn."""
    if not completion or completion[0]["role"] != "assistant" or completion[-1]["role"] != "assistant":
        raise RowError(
            "data.roles-out-of-order",
            f"{field}: must start and end with an assistant turn.",
            "Remove the other turns, or the row.",
            dropped_as="no closing assistant turn",
        )
    check_order([*prompt, *completion], field)


def _last_turn_error(field: str, role: str) -> RowError:
    return RowError(
        "data.roles-out-of-order",
        f"{field}: must end with {'an' if role == 'assistant' else 'a'} {role} turn.",
        "Remove the turns after it, or the row.",
        dropped_as=f"no closing {role} turn",
    )


def count_common_turns(chosen: list[Message], rejected: list[Message]) -> int:
    """Return the number of leading turns that both have in common. At least one turn is left in each."""
    common = 0
    while common < min(len(chosen), len(rejected)) - 1 and chosen[common] == rejected[common]:
        common += 1
    return common


def common_prefix_length(chosen: str, rejected: str) -> int:
    """Return the length of the common prefix in characters, shortened to a boundary between words.

    Text other than white space is left in both. One space before the first word of a completion belongs to the
    completion, as in most tokenizers; line breaks belong to the prompt.
    """
    common = 0
    too_long = min(len(chosen), len(rejected)) + 1
    while too_long - common > 1:  # bisection: completions may have thousands of characters
        middle = (common + too_long) // 2
        if chosen[common:middle] == rejected[common:middle]:
            common = middle
        else:
            too_long = middle
    while common and not _is_boundary(chosen, rejected, common):
        common -= 1
    if common and chosen[common - 1] == " ":
        common -= 1
    return common


def _is_boundary(chosen: str, rejected: str, position: int) -> bool:
    """Return whether both texts can be split at `position`, up to which they are equal."""
    if not chosen[position:].strip() or not rejected[position:].strip():
        return False
    return chosen[position - 1].isspace() or (chosen[position].isspace() and rejected[position].isspace())
