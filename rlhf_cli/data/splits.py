"""What a prompt is known by, and the number that decides on which side of the split it lies: for ever the same."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from rlhf_cli.data.rows import SftRow, TextRow


def key(row: Any) -> str:
    """What rows with the same prompt share. White space does not make a prompt another one."""
    if isinstance(row, TextRow):
        return plain(row.text)
    if isinstance(row.prompt, str):
        if row.prompt:
            return plain(row.prompt)
        # no prompt: the row itself
        parts = [str(row.completion)] if isinstance(row, SftRow) else [str(row.chosen), str(row.rejected)]
    else:
        parts = [text for turn in row.prompt for text in (turn["role"], turn["content"])]
    return "\0".join(map(plain, parts))


def plain(text: str) -> str:
    """`text` with one space between words. Only what holds other white space, or two in a row, is taken apart."""
    if text.isprintable() and "  " not in text and text.strip() == text:
        return text
    return " ".join(text.split())


def draw(key: str) -> bytes:
    """The number below 2^64, in 8 bytes, that `key` has: another salt would move prompts from one side to the other.

    It stands for the prompt, too: of a million prompts two share one in 1 of 40 million data sets.
    """
    return sha256(f"held out\n{key}".encode()).digest()[:8]
