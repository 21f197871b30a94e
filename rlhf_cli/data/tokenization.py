"""Tokenize rows into the columns of TRL's trainers, and count truncated and dropped rows. Imports no trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rlhf_cli.data import chat_template
from rlhf_cli.data.rows import PreferenceRow, PromptRow, SftRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
CHUNK_ROWS = 1000  # rows tokenized at a time, which bounds the memory of the texts
IGNORE_INDEX = -100  # label of a token that is not under the loss
SEQUENCE_COLUMNS = ("input_ids", "chosen_ids", "rejected_ids")


class TokenColumns(NamedTuple):
    """Tokenized rows as columns.

    Attributes:
        parts: The columns, in parts of at most `CHUNK_ROWS` rows.
        counts: Numbers of truncated and dropped rows, by reason.
        dropped: Indices of the dropped rows, of preferences.
    """

    parts: list[dict[str, list[Any]]]
    counts: dict[str, int]
    dropped: frozenset[int] = frozenset()

    @property
    def kept(self) -> int:
        """Number of rows that were not dropped."""
        return sum(len(next(iter(part.values()))) for part in self.parts)

    def sequences(self) -> Iterator[list[int]]:
        """Yield the token ids of each row; of a pair, of both completions with their prompt."""
        for part in self.parts:
            for name in SEQUENCE_COLUMNS:
                yield from part.get(name, [])

    def lengths(self) -> list[int]:
        """Return the length of each sequence in tokens."""
        return [len(ids) for ids in self.sequences()]


class TokenizedPrompts(NamedTuple):
    """Prompts within the length limit.

    Attributes:
        rows: The prompts.
        ids: Their token ids.
        counts: Number of dropped prompts, by reason.
    """

    rows: list[PromptRow]
    ids: list[list[int]]
    counts: dict[str, int]

    @property
    def kept(self) -> int:
        """Number of prompts that were not dropped."""
        return len(self.rows)

    def sequences(self) -> Iterator[list[int]]:
        """Yield the token ids of each prompt."""
        return iter(self.ids)

    def lengths(self) -> list[int]:
        """Return the length of each prompt in tokens."""
        return [len(ids) for ids in self.ids]


def sft_columns(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[SftRow], max_length: int, *, chunk_rows: int = CHUNK_ROWS
) -> TokenColumns:
    """Return demonstrations as the columns `input_ids` and `labels`.

    A row of more than `max_length` tokens loses the end of its completion. A row whose prompt has `max_length` tokens
    or more is dropped.
    """
    truncated = f"truncated to {max_length:,} tokens"
    dropped = f"dropped: prompt of {max_length:,} tokens or more"
    counts = {truncated: 0, dropped: 0}
    parts = []
    for chunk in _chunks(rows, chunk_rows):
        part: dict[str, list[Any]] = {"input_ids": [], "labels": []}
        for prompt, completion in chat_template.encode_pairs(tokenizer, [(r.prompt, r.completion) for r in chunk]):
            if len(prompt) >= max_length:
                counts[dropped] += 1
                continue
            if len(prompt) + len(completion) > max_length:
                counts[truncated] += 1
            part["input_ids"].append((prompt + completion)[:max_length])
            part["labels"].append(([IGNORE_INDEX] * len(prompt) + completion)[:max_length])
        parts.append(part)
    return TokenColumns(parts, counts)


def preference_columns(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[PreferenceRow], max_length: int, *, chunk_rows: int = CHUNK_ROWS
) -> TokenColumns:
    """Return pairs as the columns `chosen_ids` and `rejected_ids`, and `margin` if the rows have one.

    A pair with a sequence of more than `max_length` tokens is dropped: a truncated completion would be judged on less
    than the annotator saw.
    """
    dropped: set[int] = set()
    parts = []
    index = -1
    for chunk in _chunks(rows, chunk_rows):
        chosen = chat_template.encode_pairs(tokenizer, [(row.prompt, row.chosen) for row in chunk])
        rejected = chat_template.encode_pairs(tokenizer, [(row.prompt, row.rejected) for row in chunk])
        part: dict[str, list[Any]] = {"chosen_ids": [], "rejected_ids": []}
        if rows[0].margin is not None:  # then all rows have one
            part["margin"] = []
        for row, better, worse in zip(chunk, chosen, rejected, strict=True):
            index += 1
            chosen_ids = better.prompt_ids + better.completion_ids
            rejected_ids = worse.prompt_ids + worse.completion_ids
            if max(len(chosen_ids), len(rejected_ids)) > max_length:
                dropped.add(index)
                continue
            part["chosen_ids"].append(chosen_ids)
            part["rejected_ids"].append(rejected_ids)
            if "margin" in part:
                part["margin"].append(row.margin)
        parts.append(part)
    return TokenColumns(parts, {f"dropped: over {max_length:,} tokens": len(dropped)}, frozenset(dropped))


def fitting_prompts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[PromptRow], max_length: int) -> TokenizedPrompts:
    """Return the prompts that have at least one token and at most `max_length`."""
    ids = chat_template.encode_prompts(tokenizer, [row.prompt for row in rows])
    kept = [(row, tokens) for row, tokens in zip(rows, ids, strict=True) if 0 < len(tokens) <= max_length]
    counts = {f"dropped: empty, or over {max_length:,} tokens": len(ids) - len(kept)}
    return TokenizedPrompts([row for row, _ in kept], [tokens for _, tokens in kept], counts)


def first_example(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[SftRow] | Sequence[PreferenceRow], max_length: int
) -> chat_template.Encoded:
    """Return the first row that is not dropped, truncated as in training; of a pair, its chosen completion."""
    for row in rows:
        if isinstance(row, SftRow):
            prompt, completion = chat_template.encode_pairs(tokenizer, [(row.prompt, row.completion)])[0]
            if len(prompt) < max_length:
                return chat_template.Encoded(prompt, completion[: max_length - len(prompt)])
        else:
            pairs = chat_template.encode_pairs(tokenizer, [(row.prompt, row.chosen), (row.prompt, row.rejected)])
            if max(len(pair.prompt_ids) + len(pair.completion_ids) for pair in pairs) <= max_length:
                return pairs[0]
    raise AssertionError("every row is dropped")


def _chunks(rows: Sequence[T], size: int) -> Iterator[list[T]]:
    """Yield `rows` in lists of at most `size`."""
    remaining = iter(rows)
    while chunk := list(islice(remaining, size)):
        yield chunk
