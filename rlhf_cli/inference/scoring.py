"""What the models say about sequences: log-probabilities, entropies, values and reward scores.

Old, new and reference log-probabilities come from the same two functions, `token_hidden` and `token_scores`, so that
the first minibatch's ratio is 1. Batches are right-padded, so that positions count from each row's first token without
more ado: causal attention never looks at what stands to the right, and a padded row scores as it does alone, without
a mask. Micro-batches hold rows
of like length up to a budget of tokens; the LM head sees response positions alone, as one flat list without padding.

Shapes: b rows of a micro-batch, T its width, N its response tokens in all (row after row), H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_cli import distributed
from rlhf_cli.inference import token_logprobs as logprob_head
from rlhf_cli.models.heads import score_index
from rlhf_cli.models.multi_adapter import MultiAdapterModel


class MicroBatch(NamedTuple):
    """Some rows, right-padded, and where their response tokens are predicted."""

    rows: list[int]  # indices into the caller's sequences
    input_ids: Tensor  # (b, T)
    row_of: Tensor  # (N,) which of the b rows
    column_of: Tensor  # (N,) the position whose hidden state predicts the token: one before it
    tokens: Tensor  # (N,) the response's token ids


class PolicyScore(NamedTuple):
    """Of one sequence's response, a number a token; empty what was not asked for."""

    logprobs: Tensor  # (R_i,) nats
    entropy: Tensor  # (R_i,) nats
    values: Tensor  # (R_i,)


def pack(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices in groups of like length, longest first: rows × longest row ≤ max_tokens, or a single row."""
    groups: list[list[int]] = []
    room = 0  # rows that still fit the last group
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not room:
            groups.append([])
            room = max(1, max_tokens // lengths[index])
        groups[-1].append(index)
        room -= 1
    return groups


def split_groups(groups: Sequence[list[int]], count: int) -> list[list[int]]:
    """The groups, the largest of them halved until there are `count`; there are as many rows at least."""
    assert count <= sum(map(len, groups))
    cut = [*groups]
    while len(cut) < count:
        at = max(range(len(cut)), key=lambda i: len(cut[i]))
        half = (len(cut[at]) + 1) // 2
        cut[at : at + 1] = [cut[at][:half], cut[at][half:]]
    return cut


def micro_batches(
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    *,
    pad_id: int,
    max_tokens: int,
    bank: MultiAdapterModel,
) -> Iterator[MicroBatch]:
    """Prompt + response of every row, in micro-batches of at most `max_tokens` tokens, padding counted.

    For a base that is split over processes, which have equally many rows, they are equally many everywhere.
    """
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    groups, device = pack(lengths, max_tokens), bank.device
    if bank.sharded:
        groups = split_groups(groups, max(distributed.all_gather_object(len(groups))))
    for rows in groups:
        width = lengths[rows[0]]
        ids = torch.tensor([prompts[i] + responses[i] + [pad_id] * (width - lengths[i]) for i in rows])
        columns = torch.arange(width)
        length = torch.tensor([lengths[i] for i in rows])[:, None]
        start = torch.tensor([len(prompts[i]) for i in rows])[:, None]
        row_of, token_at = ((columns >= start) & (columns < length)).nonzero(as_tuple=True)
        yield MicroBatch(
            rows,
            ids.to(device),
            row_of.to(device),
            (token_at - 1).to(device),
            ids[row_of, token_at].to(device),
        )


def token_hidden(bank: MultiAdapterModel, role: str, batch: MicroBatch) -> Tensor:
    """The hidden states that predict the response tokens: -> (N, H)."""
    hidden = bank.hidden(role, batch.input_ids)  # (b, T, H)
    return hidden[batch.row_of, batch.column_of]


def token_scores(
    bank: MultiAdapterModel, role: str, hidden: Tensor, tokens: Tensor, temperature: float, *, with_entropy: bool
) -> logprob_head.TokenScores:
    """Log-probability and entropy of the tokens under softmax(logits / temperature): hidden (N, H), tokens (N,)."""
    output_head = bank.output_head(role)
    with bank.use(role):
        return logprob_head.token_scores(
            output_head, bank.vocab_size, hidden, tokens, temperature, with_entropy=with_entropy
        )


@torch.no_grad()
def policy_scores(
    bank: MultiAdapterModel,
    role: str,
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    *,
    pad_id: int,
    temperature: float,
    max_tokens: int,
    with_entropy: bool = True,
    value_head: str | None = None,
) -> list[PolicyScore]:
    """What `role` says of each response token, by sequence; with the head of a critic that shares its trunk."""
    found: list[PolicyScore | None] = [None] * len(prompts)
    for batch in micro_batches(prompts, responses, pad_id=pad_id, max_tokens=max_tokens, bank=bank):
        hidden = token_hidden(bank, role, batch)  # (N, H)
        scores = token_scores(bank, role, hidden, batch.tokens, temperature, with_entropy=with_entropy)
        values = hidden[:0, 0] if value_head is None else bank.heads[value_head](hidden)
        sizes = [len(responses[i]) for i in batch.rows]
        parts = [x.split(sizes) if len(x) else [x] * len(sizes) for x in (*scores, values)]
        for row, *own in zip(batch.rows, *parts, strict=True):
            found[row] = PolicyScore(*own)
    return [score for score in found if score is not None]


def token_logprobs(
    bank: MultiAdapterModel, role: str, prompts: Sequence[list[int]], responses: Sequence[list[int]], **options: Any
) -> list[Tensor]:
    """`policy_scores` for the log-probabilities alone: one (len(response),) float32 tensor a sequence."""
    scores = policy_scores(bank, role, prompts, responses, with_entropy=False, **options)
    return [score.logprobs for score in scores]


@torch.no_grad()
def token_values(
    bank: MultiAdapterModel,
    trunk: str,
    value_head: str,
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    *,
    pad_id: int,
    max_tokens: int,
) -> list[Tensor]:
    """The value before each response token, (len(response),) float32: `value_head` on role `trunk`'s hidden states."""
    found: list[Tensor | None] = [None] * len(prompts)
    for batch in micro_batches(prompts, responses, pad_id=pad_id, max_tokens=max_tokens, bank=bank):
        values = bank.heads[value_head](token_hidden(bank, trunk, batch))  # (N,)
        for row, own in zip(batch.rows, values.split([len(responses[i]) for i in batch.rows]), strict=True):
            found[row] = own
    return [values for values in found if values is not None]


@torch.no_grad()
def final_scores(
    bank: MultiAdapterModel, role: str, sequences: list[list[int]], *, pad_id: int, max_tokens: int
) -> Tensor:
    """The reward model's score of each sequence, (N,) float32, read where transformers' scorer reads it."""
    scores = torch.empty(len(sequences), dtype=torch.float32, device=bank.device)
    for batch in micro_batches([[]] * len(sequences), sequences, pad_id=pad_id, max_tokens=max_tokens, bank=bank):
        hidden = bank.hidden(role, batch.input_ids)  # (b, T, H)
        last = score_index(batch.input_ids, pad_id)  # (b,)
        scores[batch.rows] = bank.heads[role](hidden[torch.arange(len(batch.rows), device=bank.device), last])
    return scores


def pad(parts: Sequence[Tensor]) -> Tensor:
    """Ragged rows as one (B, R) tensor, 0 behind each row's end."""
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
