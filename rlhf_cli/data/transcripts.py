"""Transcripts: conversations as one text, whose turns start with a mark of their speaker."""

from __future__ import annotations

import re
from typing import Any

from rlhf_cli.data.issues import DroppedRowError
from rlhf_cli.data.rows import Message

_STYLES = {  # the mark that a transcript starts with: the marks of all turns
    "Human:": re.compile(r"(?:^|\n\n)(Human|Assistant):"),  # HH-RLHF, with or without its leading blank line
    "### Human:": re.compile(r"### (Human|Assistant):"),  # openassistant-guanaco
    "<|prompter|>": re.compile(r"<\|(prompter|assistant)\|>"),  # OASST
}
_ASSISTANT_MARKS = {"Human:": "\n\nAssistant:", "### Human:": "### Assistant:", "<|prompter|>": "<|assistant|>"}
TRANSCRIPT_STARTS = tuple(_STYLES)
_END = "<|endoftext|>"  # of a turn in OASST


def is_transcript(text: str) -> bool:
    """Return whether a text is a transcript, perhaps without an answer."""
    return _find_style(text) is not None


def read_transcript(text: str) -> list[Message]:
    """Return the turns of a transcript. Consecutive turns of one speaker are joined.

    Raises:
        DroppedRowError: The text is no transcript, has an empty turn or does not end with an assistant turn. Such rows
            are part of published datasets, which users cannot fix.
    """
    messages = _join_speakers(_split(text))
    if messages[-1]["role"] != "assistant":
        raise DroppedRowError("transcript without a closing assistant turn")
    return messages


def read_prompt(text: Any) -> list[Any]:
    """Return the turns of a transcript that ends with the mark of an answer. Any other value becomes a user turn."""
    if not isinstance(text, str) or not is_transcript(text):
        return [Message(role="user", content=text)]
    messages = _split(text)
    return _join_speakers(messages[:-1] if not messages[-1]["content"] else messages)


def _find_style(text: str) -> str | None:
    """Return the mark with which a transcript starts, or None for other text."""
    stripped = text.lstrip()
    if not stripped.startswith(TRANSCRIPT_STARTS):
        return None
    style = next(mark for mark in TRANSCRIPT_STARTS if stripped.startswith(mark))
    is_marked = style != "Human:" or text.startswith("\n\n")  # a colon after a word is weak evidence
    return style if is_marked or _ASSISTANT_MARKS[style] in text else None


def _split(text: str) -> list[Message]:
    """Return each turn of a transcript, also empty ones."""
    style = _find_style(text)
    if style is None:
        raise DroppedRowError("no transcript")
    parts = _STYLES[style].split(text.lstrip())[1:]
    return [
        Message(role="assistant" if speaker.lower() == "assistant" else "user", content=_clean(content))
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def _clean(content: str) -> str:
    return content.strip().removesuffix(_END).strip()


def _join_speakers(turns: list[Message]) -> list[Message]:
    messages: list[Message] = []
    for turn in turns:
        if not turn["content"]:
            raise DroppedRowError("transcript with an empty turn")
        if messages and messages[-1]["role"] == turn["role"]:
            messages[-1]["content"] += "\n\n" + turn["content"]
        else:
            messages.append(turn)
    return messages
