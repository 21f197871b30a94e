"""Compute log-probabilities and entropies of chosen tokens from hidden states, with one chunk of logits at a time.

N tokens with a vocabulary of V take N·V float32 logits, and as many numbers again for their softmax and its gradient:
3 GB for 8,192 tokens and V = 32,000. Here a few rows are projected, reduced to one or two numbers per token, and freed.
With a frozen output layer their gradient is computed in the forward pass: d log p / d hidden is a row of H numbers,
known up to the factor that the loss puts on the token. So the backward pass multiplies and does not compute logits
again (as fused linear cross-entropy does for a loss: Hsu et al. 2024, "Liger Kernel", arXiv:2410.10989, section 3.2).
An output layer that is trained, or is not a plain linear layer, is checkpointed instead: the backward pass computes its
logits again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = {"cpu": 2**22, "cuda": 2**26}  # at a time: 16 MiB, 256 MiB in float32; a CPU has a smaller cache


class TokenScores(NamedTuple):
    """Scores of N tokens, in nats, float32."""

    logprobs: Tensor  # (N,)
    entropy: Tensor  # (N,) of the whole distribution; (0,) if not requested


def chunked_token_scores(
    head: nn.Module, vocab_size: int, hidden: Tensor, tokens: Tensor, temperature: float, *, with_entropy: bool
) -> TokenScores:
    """Return log softmax(head(hidden) / temperature) at `tokens`, differentiable.

    The head's weights get gradients if they require them. Run the backward pass with the same adapter active.

    Args:
        head: The output layer, from hidden states (…, H) to logits (…, V).
        vocab_size: V.
        hidden: Hidden states that predict the tokens, (N, H).
        tokens: Token ids (N,).
        temperature: Divides the logits.
        with_entropy: Whether to compute entropies.
    """
    chunk_rows = max(1, CHUNK_LOGITS.get(hidden.device.type, CHUNK_LOGITS["cuda"]) // vocab_size)
    if type(head) is nn.Linear and not any(p.requires_grad for p in head.parameters()):
        return TokenScores(
            *_FrozenHead.apply(hidden, head.weight, head.bias, tokens, temperature, with_entropy, chunk_rows)
        )
    chunks: list[tuple[Tensor, Tensor]] = []
    for chunk_hidden, chunk_tokens in zip(hidden.split(chunk_rows), tokens.split(chunk_rows), strict=True):
        arguments = (head, chunk_hidden, chunk_tokens, temperature, with_entropy)
        if torch.is_grad_enabled():
            chunks.append(checkpoint(_score_chunk, *arguments, use_reentrant=False))
        else:
            chunks.append(_score_chunk(*arguments))
    return TokenScores(
        logprobs=torch.cat([logprobs for logprobs, _ in chunks]),
        entropy=torch.cat([entropy for _, entropy in chunks]),
    )


def _score_chunk(
    head: Callable[[Tensor], Tensor], hidden: Tensor, tokens: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities (n,) and entropies (n,), or (0,) if not requested, of one chunk."""
    logits = head(hidden).float() / temperature  # (n, V)
    logprobs = -nn.functional.cross_entropy(logits, tokens, reduction="none")
    if not with_entropy:
        return logprobs, logprobs[:0]
    log_p = torch.log_softmax(logits, dim=-1)
    # A token with p = 0 adds 0; 0 · −inf would be NaN.
    return logprobs, -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(dim=-1)


class _FrozenHead(torch.autograd.Function):
    """Compute the outputs (N,) and their gradients with respect to `hidden`, (N, H) each, in one pass over chunks."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        temperature: float,
        with_entropy: bool,
        chunk_rows: int,
    ) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and entropies; keep d output / d hidden if it is needed."""
        needs_grad = ctx.needs_input_grad[0]
        count = len(tokens)
        logprobs = torch.empty(count, dtype=torch.float32, device=hidden.device)
        entropy = torch.empty(count if with_entropy else 0, dtype=torch.float32, device=hidden.device)
        output_count = 2 if with_entropy else 1
        grad_hidden = [torch.empty_like(hidden) for _ in range(output_count)] if needs_grad else []
        for start in range(0, count, chunk_rows):
            chunk = slice(start, start + chunk_rows)
            logits = nn.functional.linear(hidden[chunk], weight, bias).float().div_(temperature)  # (n, V)
            log_p = torch.log_softmax(logits, dim=-1)
            del logits
            logprobs[chunk] = log_p.gather(1, tokens[chunk, None])[:, 0]
            if not (with_entropy or needs_grad):
                continue
            p = log_p.exp()
            if with_entropy:
                finite = log_p.clamp_(min=torch.finfo(log_p.dtype).min)  # a token with p = 0 adds 0, not NaN
                entropy[chunk] = -(p * finite).sum(dim=-1)
                if needs_grad:
                    entropy_weight = p * (finite + entropy[chunk, None])
                    grad_hidden[1][chunk] = entropy_weight.to(weight.dtype) @ weight / -temperature
            if needs_grad:
                # In float32: in bfloat16 a probability above 0.998 rounds to 1, and the difference to 0.
                one_hot_minus_p = p.neg_()
                one_hot_minus_p.scatter_add_(1, tokens[chunk, None], torch.ones_like(one_hot_minus_p[:, :1]))
                grad_hidden[0][chunk] = one_hot_minus_p.to(weight.dtype) @ weight / temperature
        ctx.save_for_backward(*grad_hidden)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of `hidden`: the kept rows times the gradients of the outputs."""
        saved = ctx.saved_tensors  # of the log-probabilities and, if requested, of the entropies
        total: Tensor | None = None
        for grad_hidden, gradient in zip(saved, gradients[: len(saved)], strict=True):
            product = grad_hidden * gradient[:, None].to(grad_hidden.dtype)
            total = product if total is None else total + product
        return total, None, None, None, None, None, None
