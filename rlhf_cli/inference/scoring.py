"""Score token sequences with a role's model: log-probabilities, entropies, values and reward scores.

Old, new and reference log-probabilities all come from `token_hidden` and `token_scores`, so that the ratio of the first
minibatch is 1. The LM head is applied to response positions only, as one flat list without padding.

Shapes: B sequences, R_i response tokens of sequence i; b rows of a micro-batch, T its width, N its response tokens; H
hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rlhf_cli.inference.batching import MicroBatch, PaddedBatch, micro_batches
from rlhf_cli.inference.token_logprobs import TokenScores, chunked_token_scores
from rlhf_cli.models.heads import score_index
from rlhf_cli.models.multi_adapter import MultiAdapterModel


class PolicyScore(NamedTuple):
    """Scores of one response, per token."""

    logprobs: Tensor  # (R_i,) nats
    entropy: Tensor  # (R_i,) nats
    values: Tensor  # (R_i,), or (0,) without a value head


def token_hidden(model: MultiAdapterModel, role: str, batch: MicroBatch) -> Tensor:
    """Return the hidden states that predict the response tokens: -> (N, H)."""
    hidden = model.hidden_states(role, batch.input_ids)  # (b, T, H)
    return hidden[batch.token_rows, batch.token_positions]


def token_scores(
    model: MultiAdapterModel, role: str, hidden: Tensor, tokens: Tensor, temperature: float, *, with_entropy: bool
) -> TokenScores:
    """Return log-probability and entropy of tokens under softmax(logits / temperature).

    Args:
        model: The model.
        role: The role whose output head is applied.
        hidden: Hidden states that predict the tokens, (N, H).
        tokens: Token ids (N,).
        temperature: Divides the logits.
        with_entropy: Whether to compute entropies; otherwise `entropy` is (0,).
    """
    output_head = model.output_head(role)
    with model.use(role):
        return chunked_token_scores(
            output_head, model.vocab_size, hidden, tokens, temperature, with_entropy=with_entropy
        )


@torch.no_grad()
def policy_scores(
    model: MultiAdapterModel,
    role: str,
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    *,
    pad_id: int,
    temperature: float,
    max_tokens: int,
    value_head: str | None = None,
) -> list[PolicyScore]:
    """Return log-probabilities, entropies and values of each response.

    Args:
        model: The model.
        role: The policy.
        prompts: Token ids of the B prompts.
        responses: Token ids of the B responses.
        pad_id: The id to pad with.
        temperature: Divides the logits.
        max_tokens: Tokens of a forward pass, padding included.
        value_head: Name of the head of a critic that shares the policy's hidden states, or None for no values.
    """
    scores: dict[int, PolicyScore] = {}
    for batch in micro_batches(prompts, responses, pad_id=pad_id, max_tokens=max_tokens, model=model):
        hidden = token_hidden(model, role, batch)  # (N, H)
        tokens = token_scores(model, role, hidden, batch.tokens, temperature, with_entropy=True)
        logprobs = _split_by_row(tokens.logprobs, batch, responses)
        entropies = _split_by_row(tokens.entropy, batch, responses)
        values: Sequence[Tensor] = [hidden.new_empty(0) for _ in batch.rows]
        if value_head is not None:
            values = _split_by_row(model.heads[value_head](hidden), batch, responses)
        for row, *row_scores in zip(batch.rows, logprobs, entropies, values, strict=True):
            scores[row] = PolicyScore(*row_scores)
    return [scores[i] for i in range(len(prompts))]


@torch.no_grad()
def token_logprobs(
    model: MultiAdapterModel,
    role: str,
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    *,
    pad_id: int,
    temperature: float,
    max_tokens: int,
) -> list[Tensor]:
    """Return the log-probabilities of each response's tokens, (R_i,) float32 in nats. Arguments: `policy_scores`."""
    logprobs: dict[int, Tensor] = {}
    for batch in micro_batches(prompts, responses, pad_id=pad_id, max_tokens=max_tokens, model=model):
        hidden = token_hidden(model, role, batch)  # (N, H)
        tokens = token_scores(model, role, hidden, batch.tokens, temperature, with_entropy=False)
        logprobs |= zip(batch.rows, _split_by_row(tokens.logprobs, batch, responses), strict=True)
    return [logprobs[i] for i in range(len(prompts))]


@torch.no_grad()
def token_values(
    model: MultiAdapterModel,
    trunk: str,
    value_head: str,
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    *,
    pad_id: int,
    max_tokens: int,
) -> list[Tensor]:
    """Return the value before each response token, (R_i,) float32: `value_head` on the hidden states of `trunk`."""
    values: dict[int, Tensor] = {}
    for batch in micro_batches(prompts, responses, pad_id=pad_id, max_tokens=max_tokens, model=model):
        batch_values = model.heads[value_head](token_hidden(model, trunk, batch))  # (N,)
        values |= zip(batch.rows, _split_by_row(batch_values, batch, responses), strict=True)
    return [values[i] for i in range(len(prompts))]


@torch.no_grad()
def final_scores(
    model: MultiAdapterModel, role: str, sequences: list[list[int]], *, pad_id: int, max_tokens: int
) -> Tensor:
    """Return a reward model's score of each sequence, (B,) float32."""
    batches = micro_batches([[]] * len(sequences), sequences, pad_id=pad_id, max_tokens=max_tokens, model=model)
    return read_scores(partial(model.hidden_states, role), model.heads[role], batches, pad_id=pad_id)


@torch.no_grad()
def read_scores(
    hidden_states: Callable[[Tensor], Tensor],
    head: nn.Module,
    batches: Iterable[MicroBatch | PaddedBatch],
    *,
    pad_id: int,
) -> Tensor:
    """Return the score of each of B sequences, (B,) float32, read where transformers' scorer reads it.

    Every score of a reward model comes from here: a head in the dtype of a 16-bit model would round the scores, and
    small margins to ties.

    Args:
        hidden_states: Returns the hidden states of a batch, (b, T) -> (b, T, H).
        head: Maps a hidden state to its score, in float32.
        batches: Right-padded batches that cover all sequences.
        pad_id: The id that they are padded with.
    """
    rows: list[int] = []
    scores: list[Tensor] = []  # (b,) each
    for batch in batches:
        hidden = hidden_states(batch.input_ids)  # (b, T, H)
        last = score_index(batch.input_ids, pad_id)  # (b,)
        rows += batch.rows
        scores.append(head(hidden[torch.arange(len(last), device=hidden.device), last]))
    found = torch.cat(scores)
    return torch.empty_like(found).index_copy_(0, torch.tensor(rows, device=found.device), found)


def _split_by_row(values: Tensor, batch: MicroBatch, responses: Sequence[list[int]]) -> Sequence[Tensor]:
    """Split values of a batch's response tokens, (N,), into one tensor (R_i,) per row."""
    return values.split([len(responses[i]) for i in batch.rows])
