"""Form right-padded batches of token sequences within a budget of tokens.

Batches are padded on the right, so that positions count from the first token of each row. Causal attention never looks
to the right, so a padded row gets the same scores as by itself, without a mask. Rows of similar length share a
batch, so that little of it is padding.

Shapes: b rows of a batch, T its width, N its response tokens, row after row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_cli import distributed
from rlhf_cli.models.multi_adapter import MultiAdapterModel


class PaddedBatch(NamedTuple):
    """A right-padded batch of sequences."""

    rows: list[int]  # indices into the caller's sequences
    input_ids: Tensor  # (b, T)
    attention_mask: Tensor  # (b, T) int64, 1 on a row's own tokens


class MicroBatch(NamedTuple):
    """A right-padded batch of prompts with responses, and the positions that predict the response tokens."""

    rows: list[int]  # indices into the caller's prompts and responses
    input_ids: Tensor  # (b, T)
    token_rows: Tensor  # (N,) the batch row of each response token
    token_positions: Tensor  # (N,) the position whose hidden state predicts it: one before its own
    tokens: Tensor  # (N,) the ids of the response tokens


def pack(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group the indices of rows of similar length, the longest first.

    Args:
        lengths: Tokens of each row.
        max_tokens: Tokens of a group, padding included: rows × longest row ≤ max_tokens, unless it is a single row.
    """
    groups: list[list[int]] = []
    room = 0  # rows that still fit into the last group
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not room:
            groups.append([])
            room = max(1, max_tokens // lengths[index])
        groups[-1].append(index)
        room -= 1
    return groups


def split_groups(groups: Sequence[list[int]], count: int) -> list[list[int]]:
    """Return `count` groups with the same rows, by halving the largest group repeatedly."""
    assert count <= sum(map(len, groups)), "fewer rows than groups"
    split = [*groups]
    while len(split) < count:
        largest = max(range(len(split)), key=lambda i: len(split[i]))
        rows = split[largest]
        half = (len(rows) + 1) // 2
        split[largest : largest + 1] = [rows[:half], rows[half:]]
    return split


def pad_ids(sequences: Sequence[list[int]], pad_id: int) -> Tensor:
    """Pad token ids on the right with `pad_id`: -> (b, T), on the CPU."""
    width = max(map(len, sequences))
    return torch.tensor([ids + [pad_id] * (width - len(ids)) for ids in sequences])


def pad_tensors(rows: Sequence[Tensor]) -> Tensor:
    """Pad 1-D tensors on the right with 0: -> (B, R)."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def length_mask(lengths: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Return the mask of right-padded rows, True on a row's own tokens: -> (B, R), R the longest length."""
    columns = torch.arange(max(lengths), device=device)  # (R,)
    return columns < torch.tensor(lengths, device=device)[:, None]


def padded_batches(
    sequences: Sequence[list[int]], *, pad_id: int, max_tokens: int, device: torch.device
) -> Iterator[PaddedBatch]:
    """Yield right-padded batches that cover all sequences, the longest first.

    Args:
        sequences: Token ids, none empty.
        pad_id: The id to pad with.
        max_tokens: Tokens of a batch, padding included; a batch has at least one row.
        device: The device of the tensors.
    """
    for rows in pack([len(ids) for ids in sequences], max_tokens):
        batch = [sequences[i] for i in rows]
        mask = length_mask([len(ids) for ids in batch]).long()
        yield PaddedBatch(rows, pad_ids(batch, pad_id).to(device), mask.to(device))


def micro_batches(
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    *,
    pad_id: int,
    max_tokens: int,
    model: MultiAdapterModel,
) -> Iterator[MicroBatch]:
    """Yield micro-batches that cover every row's prompt and response, the longest first, on the model's device.

    If the model is sharded, every process yields the same number of micro-batches; all must have the same number of
    rows.

    Args:
        prompts: Token ids of the prompts; may be empty lists.
        responses: Token ids of the responses.
        pad_id: The id to pad with.
        max_tokens: Tokens of a micro-batch, padding included; a micro-batch has at least one row.
        model: Decides the device and the number of micro-batches.
    """
    sequences = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    groups = pack([len(ids) for ids in sequences], max_tokens)
    if model.sharded:
        groups = split_groups(groups, max(distributed.all_gather_object(len(groups))))
    for rows in groups:
        ids = pad_ids([sequences[i] for i in rows], pad_id)  # (b, T)
        is_token = length_mask([len(sequences[i]) for i in rows])  # (b, T)
        first_response = torch.tensor([len(prompts[i]) for i in rows])[:, None]  # (b, 1)
        is_response = is_token & (torch.arange(ids.shape[1]) >= first_response)
        token_rows, positions = is_response.nonzero(as_tuple=True)
        yield MicroBatch(
            rows=rows,
            input_ids=ids.to(model.device),
            token_rows=token_rows.to(model.device),
            token_positions=(positions - 1).to(model.device),
            tokens=ids[token_rows, positions].to(model.device),
        )
