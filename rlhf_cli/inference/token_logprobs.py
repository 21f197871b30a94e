"""Log-probabilities and entropies of chosen tokens straight from hidden states; logits exist a chunk at a time.

N tokens over a vocabulary of V are N·V float32 logits, and as many numbers again for their softmax and its gradient:
3 GB for 8,192 tokens and V = 32,000. Here some rows are projected, reduced to a number or two a token, and dropped.
With a frozen output layer their gradient is taken on the spot: d log p / d hidden is a row of H numbers, known up to
the factor that the loss puts on the token, so that backward multiplies, and computes no logits again (as fused linear
cross-entropy does for a loss: Hsu et al. 2024, "Liger Kernel", arXiv:2410.10989, section 3.2). An output layer that
is trained, or that is no plain linear one, is checkpointed instead: its logits are computed again in backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf_cli.ppo import algorithm

CHUNK_LOGITS = {"cpu": 2**22, "cuda": 2**26}  # alive at a time: 16 MiB, 256 MiB in float32; a CPU's cache is smaller


class TokenScores(NamedTuple):
    """Of N tokens, in nats, float32."""

    logprobs: Tensor  # (N,)
    entropy: Tensor  # (N,) of the whole distribution; (0,) where it was not asked for


def token_scores(
    head: nn.Module, vocab_size: int, hidden: Tensor, tokens: Tensor, temperature: float, *, with_entropy: bool
) -> TokenScores:
    """log softmax(head(hidden) / temperature) at `tokens`, differentiable: hidden (N, H), tokens (N,).

    The head's weights get gradients where they want them. A backward pass has to run with the same adapter active.
    """
    rows = max(1, CHUNK_LOGITS.get(hidden.device.type, CHUNK_LOGITS["cuda"]) // vocab_size)
    if type(head) is nn.Linear and not any(p.requires_grad for p in head.parameters()):
        return TokenScores(*_FrozenHead.apply(hidden, head.weight, head.bias, tokens, temperature, with_entropy, rows))
    parts: list[tuple[Tensor, Tensor]] = []
    for some, chosen in zip(hidden.split(rows), tokens.split(rows), strict=True):
        if torch.is_grad_enabled():
            part = checkpoint(_scored, head, some, chosen, temperature, with_entropy, use_reentrant=False)
        else:
            part = _scored(head, some, chosen, temperature, with_entropy)
        parts.append(part)
    return TokenScores(torch.cat([p for p, _ in parts]), torch.cat([e for _, e in parts]))


def _scored(
    head: Callable[[Tensor], Tensor], hidden: Tensor, tokens: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    logits = head(hidden).float() / temperature  # (n, V)
    logprobs = -nn.functional.cross_entropy(logits, tokens, reduction="none")
    return logprobs, algorithm.entropy(logits, 1.0) if with_entropy else logprobs[:0]


class _FrozenHead(torch.autograd.Function):
    """Outputs (N,) and their gradients for `hidden`, (N, H) each, in one sweep over the chunks."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        temperature: float,
        with_entropy: bool,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0]
        count = len(tokens)
        logprobs = torch.empty(count, dtype=torch.float32, device=hidden.device)
        entropy = torch.empty(count if with_entropy else 0, dtype=torch.float32, device=hidden.device)
        grad_hidden = [torch.empty_like(hidden) for _ in range((1 + with_entropy) * wanted)]  # d output / d hidden
        for start in range(0, count, rows):
            part = slice(start, start + rows)
            logits = nn.functional.linear(hidden[part], weight, bias).float().div_(temperature)  # (n, V)
            log_p = torch.log_softmax(logits, dim=-1)
            del logits
            logprobs[part] = log_p.gather(1, tokens[part, None])[:, 0]
            if not (with_entropy or wanted):
                continue
            p = log_p.exp()
            if with_entropy:
                finite = log_p.clamp_(min=torch.finfo(log_p.dtype).min)  # a token with p = 0 adds nothing
                entropy[part] = -(p * finite).sum(dim=-1)
                if wanted:
                    entropy_weight = p * (finite + entropy[part, None])
                    grad_hidden[1][part] = entropy_weight.to(weight.dtype) @ weight / -temperature
            if wanted:
                grad_hidden[0][part] = (weight[tokens[part]] - p.to(weight.dtype) @ weight) / temperature
        ctx.save_for_backward(*grad_hidden)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden = ctx.saved_tensors
        total: Tensor | None = None
        for slope, gradient in zip(grad_hidden, gradients[: len(grad_hidden)], strict=True):
            own = slope * gradient[:, None].to(slope.dtype)
            total = own if total is None else total + own
        return total, None, None, None, None, None, None
