"""Assign prompts to training or held-out rows by their hash, so that the assignment never changes."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np

from rlhf_cli.data.rows import SftRow, TextRow


class PromptSplit(NamedTuple):
    """Which rows of a source are trained on and which are held out.

    Attributes:
        hashes: The hash of each row's prompt, (rows,) uint64; see `prompt_hash`.
        train: Indices of the rows to train on, ascending.
        held_out: Indices of the rows that are held out, ascending.
    """

    hashes: np.ndarray
    train: np.ndarray
    held_out: np.ndarray


def prompt_key(row: Any) -> str:
    """Return a text that two rows share if they ask the same: the user turns, apart from white space.

    A question as text, as messages, and after a system turn has one key. Otherwise, a model that was trained on one of
    these forms would be evaluated on another. A row without a prompt is represented by its text or its completions.
    """
    if isinstance(row, TextRow):
        return normalize_whitespace(row.text)
    if not isinstance(row.prompt, str):
        parts = [turn["content"] for turn in row.prompt if turn["role"] == "user"]
    elif row.prompt:
        parts = [row.prompt]
    elif isinstance(row, SftRow):
        parts = [str(row.completion)]
    else:
        parts = [str(row.chosen), str(row.rejected)]
    return "\0".join(map(normalize_whitespace, parts))


def normalize_whitespace(text: str) -> str:
    """Return `text` with one space between words."""
    if text.isprintable() and "  " not in text and text.strip() == text:
        return text  # most texts: this test is faster than splitting
    return " ".join(text.split())


def prompt_hash(key: str) -> bytes:
    """Return a number below 2^64, in 8 bytes, for a prompt's key.

    It decides whether the prompt is held out and stands for it in comparisons: two of a million prompts have the same
    number in 1 of 40 million datasets. Another salt would move prompts between training and held-out rows.
    """
    return sha256(b"held out\n" + key.encode()).digest()[:8]


def select_shortest(rows: Sequence[Any], count: int) -> list[Any]:
    """Return the `count` shortest rows, in their order. Rows that repeat a prompt come after all others."""
    by_length = sorted(range(len(rows)), key=lambda index: len(str(rows[index])))
    of_prompt: dict[str, int] = {}
    for index in by_length:
        of_prompt.setdefault(prompt_key(rows[index]), index)
    chosen = list(dict.fromkeys([*of_prompt.values(), *by_length]))[:count]
    return [rows[index] for index in sorted(chosen)]


def split_by_hash(hashes: np.ndarray, fraction: float) -> PromptSplit:
    """Hold out the rows of a fraction of the prompts, chosen by hash only.

    Neither the seed nor added rows can therefore leak training prompts into evaluation, and the fraction is
    approximate. If there are two prompts or more, both sides get one, which moves a prompt only in tiny datasets.

    Args:
        hashes: The hash of each row's prompt, (rows,) uint64.
        fraction: The fraction of the prompts to hold out, from 0 to below 1.
    """
    is_held_out = hashes < np.uint64(Fraction(str(fraction)) * 2**64)  # (rows,)
    if fraction > 0 and len(hashes):
        lowest, highest = hashes.min(), hashes.max()
        if not is_held_out.any() and lowest < highest:
            is_held_out = hashes == lowest
        elif is_held_out.all():
            is_held_out = hashes != highest
    return PromptSplit(hashes, np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out))


def drop_repeated_prompts(splits: Sequence[PromptSplit]) -> list[PromptSplit]:
    """Keep one row of each prompt over all sources. A held-out row has priority over one to train on."""
    sides = [split.hashes[split.held_out] for split in splits] + [split.hashes[split.train] for split in splits]
    hashes = np.concatenate(sides)
    is_first = np.zeros(len(hashes), bool)
    is_first[np.unique(hashes, return_index=True)[1]] = True
    masks = np.split(is_first, np.cumsum([len(side) for side in sides])[:-1])
    return [
        split._replace(train=split.train[keep_train], held_out=split.held_out[keep_held_out])
        for split, keep_held_out, keep_train in zip(splits, masks[: len(splits)], masks[len(splits) :], strict=True)
    ]


def drop_held_out_prompts(splits: Sequence[PromptSplit]) -> list[PromptSplit]:
    """Drop rows to train on whose prompt is held out in any source or split."""
    held_out = np.concatenate([split.hashes[split.held_out] for split in splits])
    return [split._replace(train=split.train[~np.isin(split.hashes[split.train], held_out)]) for split in splits]
