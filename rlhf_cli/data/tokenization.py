"""Rows to the token columns that TRL's trainers take; what is cut or dropped is counted. Imports no trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rlhf_cli.data import chat_template
from rlhf_cli.data.rows import PreferenceRow, PromptRow, SftRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
CHUNK = 1000  # rows tokenised at once
IGNORED = -100  # a label outside the loss


class Columns(NamedTuple):
    """Token columns in parts of CHUNK rows, and how many rows were cut or dropped, by reason."""

    parts: list[dict[str, list[Any]]]
    counts: dict[str, int]

    @property
    def kept(self) -> int:
        """How many rows there are."""
        return sum(len(next(iter(part.values()))) for part in self.parts)

    def sequences(self) -> Iterator[list[int]]:
        """The token ids of each row that was kept; of a pair, of both answers with their prompt."""
        for part in self.parts:
            for name in ("input_ids", "chosen_ids", "rejected_ids"):
                yield from part.get(name, [])

    def lengths(self) -> list[int]:
        """Tokens of each of these."""
        return [len(ids) for ids in self.sequences()]


class FittingPrompts(NamedTuple):
    """Prompts that are not too long, their token ids, and how many were dropped, by reason."""

    rows: list[PromptRow]
    ids: list[list[int]]
    counts: dict[str, int]

    @property
    def kept(self) -> int:
        """How many prompts there are."""
        return len(self.rows)

    def sequences(self) -> Iterator[list[int]]:
        """The token ids of each prompt."""
        return iter(self.ids)

    def lengths(self) -> list[int]:
        """Tokens of each prompt."""
        return [len(ids) for ids in self.ids]


def sft_columns(tokenizer: PreTrainedTokenizerBase, rows: list[SftRow], max_length: int) -> Columns:
    """Columns `input_ids` and `labels`.

    A row over `max_length` tokens loses the end of its completion; one whose prompt alone fills it is dropped.
    """
    parts = []
    counts = {f"truncated to {max_length:,} tokens": 0, f"dropped: prompt of {max_length:,} tokens or more": 0}
    truncated, dropped = counts
    for chunk in _chunks(rows):
        part: dict[str, list[Any]] = {"input_ids": [], "labels": []}
        for prompt, completion in chat_template.encode_pairs(tokenizer, [(r.prompt, r.completion) for r in chunk]):
            if len(prompt) >= max_length:
                counts[dropped] += 1
                continue
            counts[truncated] += len(prompt) + len(completion) > max_length
            part["input_ids"].append((prompt + completion)[:max_length])
            part["labels"].append(([IGNORED] * len(prompt) + completion)[:max_length])
        parts.append(part)
    return Columns(parts, counts)


def first(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[SftRow] | Sequence[PreferenceRow], max_length: int
) -> chat_template.Encoded:
    """The first row that is kept, cut as it is: what follows its prompt is under the loss, or is the chosen answer."""
    for row in rows:
        if isinstance(row, SftRow):
            prompt, completion = chat_template.encode_pairs(tokenizer, [(row.prompt, row.completion)])[0]
            if len(prompt) < max_length:
                return chat_template.Encoded(prompt, completion[: max_length - len(prompt)])
        else:
            pairs = chat_template.encode_pairs(tokenizer, [(row.prompt, row.chosen), (row.prompt, row.rejected)])
            if max(len(pair.prompt_ids) + len(pair.completion_ids) for pair in pairs) <= max_length:
                return pairs[0]
    raise AssertionError("no row is kept")


def fitting_prompts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[PromptRow], longest: int) -> FittingPrompts:
    """The prompts that have a token, and at most `longest`."""
    ids = chat_template.encode_prompts(tokenizer, [row.prompt for row in rows])
    kept = [(row, tokens) for row, tokens in zip(rows, ids, strict=True) if 0 < len(tokens) <= longest]
    counts = {f"dropped: empty, or over {longest:,} tokens": len(ids) - len(kept)}
    return FittingPrompts([row for row, _ in kept], [tokens for _, tokens in kept], counts)


def preference_columns(tokenizer: PreTrainedTokenizerBase, rows: list[PreferenceRow], max_length: int) -> Columns:
    """Columns `chosen_ids` and `rejected_ids`, and `margin` where the rows have one.

    A pair with an answer that goes over `max_length` tokens is dropped: cut short, it would be judged on less than
    the person saw.
    """
    reason = f"dropped: over {max_length:,} tokens"
    parts, dropped = [], 0
    for chunk in _chunks(rows):
        chosen = chat_template.encode_pairs(tokenizer, [(row.prompt, row.chosen) for row in chunk])
        rejected = chat_template.encode_pairs(tokenizer, [(row.prompt, row.rejected) for row in chunk])
        part: dict[str, list[Any]] = {"chosen_ids": [], "rejected_ids": []}
        if rows[0].margin is not None:  # all rows have one, or none
            part["margin"] = []
        for row, better, worse in zip(chunk, chosen, rejected, strict=True):
            pair = [better.prompt_ids + better.completion_ids, worse.prompt_ids + worse.completion_ids]
            if max(map(len, pair)) > max_length:
                dropped += 1
                continue
            part["chosen_ids"].append(pair[0])
            part["rejected_ids"].append(pair[1])
            if "margin" in part:
                part["margin"].append(row.margin)
        parts.append(part)
    return Columns(parts, {reason: dropped})


def _chunks(rows: Sequence[T], size: int = CHUNK) -> Iterator[list[T]]:
    """`rows` in lists of at most `size`."""
    remaining = iter(rows)
    while part := list(islice(remaining, size)):
        yield part
