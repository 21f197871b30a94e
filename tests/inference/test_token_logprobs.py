"""Test log-probabilities, entropies and their gradients by chunks against plain autograd on all logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from rlhf_cli.inference import token_logprobs
from rlhf_cli.inference.token_logprobs import chunked_token_scores

N, H, V = 23, 16, 40
TEMPERATURE = 0.7


class Drawn(NamedTuple):
    """Random inputs, and the gradients of both outputs."""

    hidden: Tensor  # (N, H)
    tokens: Tensor  # (N,)
    grad_logprobs: Tensor  # (N,)
    grad_entropy: Tensor  # (N,)


@pytest.fixture
def drawn() -> Drawn:
    """Draw inputs."""
    torch.manual_seed(3)
    return Drawn(torch.randn(N, H), torch.randint(0, V, (N,)), torch.randn(N), torch.randn(N))


def plain_scores(layer: nn.Linear, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and entropies from all logits at once."""
    log_p = torch.log_softmax(layer(hidden) / TEMPERATURE, dim=-1)
    return log_p[torch.arange(len(tokens)), tokens], -(log_p.exp() * log_p).sum(dim=-1)


@pytest.mark.parametrize("p", [0.9, 0.99, 0.999, 0.9999])
def test_chunked_token_scores_gradient_of_confident_tokens_in_bfloat16_equals_float64(p: float) -> None:
    """Compare d log p / d hidden for tokens of probability p with float64 on the same rounded inputs."""
    generator = torch.Generator().manual_seed(0)
    vocab, width, rows = 512, 64, 32
    weight = torch.randn(vocab, width, generator=generator).bfloat16()
    tokens = torch.arange(rows)
    # Along a token's own weights its logit is highest; the scale is found by bisection.
    directions = weight[tokens].double()
    low, high = torch.zeros(rows, 1, dtype=torch.float64), torch.full((rows, 1), 10.0, dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        found = (middle * directions @ weight.double().T).softmax(-1)[tokens, tokens][:, None]
        low, high = torch.where(found < p, middle, low), torch.where(found < p, high, middle)
    hidden = (low * directions).bfloat16()

    exact = hidden.double().requires_grad_()
    (exact @ weight.double().T).log_softmax(-1)[tokens, tokens].sum().backward()
    layer = nn.Linear(width, vocab, bias=False).bfloat16().requires_grad_(False)
    layer.weight.copy_(weight)
    rounded = hidden.clone().requires_grad_()
    scores = chunked_token_scores(layer, vocab, rounded, tokens, 1.0, with_entropy=False)
    scores.logprobs.sum().backward()
    assert exact.grad is not None
    assert rounded.grad is not None
    error = (rounded.grad.double() - exact.grad).norm(dim=-1) / exact.grad.norm(dim=-1)  # (rows,)
    # A bfloat16 logit of about 10 is rounded by up to 2^-6, and 1 − p changes by as large a share.
    assert error.median() < 0.05


@pytest.mark.parametrize("chunk", [1, 5 * V, 10**9])
@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_chunked_token_scores_values_and_gradients_equal_whole_logits(
    drawn: Drawn, monkeypatch: pytest.MonkeyPatch, chunk: int, is_trained: bool, bias: bool
) -> None:
    monkeypatch.setitem(token_logprobs.CHUNK_LOGITS, "cpu", chunk)
    layer = nn.Linear(H, V, bias=bias).requires_grad_(is_trained)

    def results(score: Callable[[Tensor], tuple[Tensor, Tensor]]) -> list[Tensor]:
        hidden = drawn.hidden.clone().requires_grad_()
        layer.zero_grad(set_to_none=True)
        logprobs, entropy = score(hidden)
        (logprobs @ drawn.grad_logprobs + entropy @ drawn.grad_entropy).backward()
        gradients = [hidden.grad, *(parameter.grad for parameter in layer.parameters() if is_trained)]
        return [logprobs, entropy, *(gradient.clone() for gradient in gradients if gradient is not None)]

    found = results(lambda x: chunked_token_scores(layer, V, x, drawn.tokens, TEMPERATURE, with_entropy=True))
    expected = results(lambda x: plain_scores(layer, x, drawn.tokens))
    trained_count = len(list(layer.parameters())) if is_trained else 0
    assert len(found) == 3 + trained_count
    for tensor, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(tensor, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_trained", [False, True])
def test_chunked_token_scores_with_and_without_gradients_are_bit_equal(drawn: Drawn, is_trained: bool) -> None:
    """Old log-probabilities come from a forward pass without gradients: the first ratio must be 1."""
    layer = nn.Linear(H, V, bias=False).requires_grad_(is_trained)
    with torch.no_grad():
        old = chunked_token_scores(layer, V, drawn.hidden, drawn.tokens, TEMPERATURE, with_entropy=True)
    hidden = drawn.hidden.clone().requires_grad_()
    new = chunked_token_scores(layer, V, hidden, drawn.tokens, TEMPERATURE, with_entropy=False)
    assert torch.equal(old.logprobs, new.logprobs)
    assert new.entropy.numel() == 0


def test_chunked_token_scores_impossible_token_adds_nothing_to_entropy(drawn: Drawn) -> None:
    layer = nn.Linear(H, V).requires_grad_(False)
    layer.bias[7] = -torch.inf
    hidden = drawn.hidden.requires_grad_()
    tokens = torch.zeros_like(drawn.tokens)
    entropy = chunked_token_scores(layer, V, hidden, tokens, 1.0, with_entropy=True).entropy
    possible = [token for token in range(V) if token != 7]
    logits = (hidden @ layer.weight.T + layer.bias)[:, possible]
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logits).entropy(), rtol=1e-5, atol=1e-5)
    entropy.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize("is_trained", [False, True])
def test_chunked_token_scores_entropy_equals_worked_values(is_trained: bool) -> None:
    head = nn.Linear(2, 2, bias=False).requires_grad_(is_trained)
    with torch.no_grad():
        head.weight.copy_(torch.eye(2))  # so that the hidden states are the logits
    logits, tokens = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]), torch.zeros(2, dtype=torch.long)
    # p = (3/4, 1/4), and uniform over two
    expected = [-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), math.log(2)]
    scores = chunked_token_scores(head, 2, logits, tokens, 1.0, with_entropy=True)
    torch.testing.assert_close(scores.entropy, torch.tensor(expected))
    # At temperature 1/2 the logits double: p = (9/10, 1/10).
    scores = chunked_token_scores(head, 2, logits[:1], tokens[:1], 0.5, with_entropy=True)
    torch.testing.assert_close(scores.entropy, torch.tensor([-(0.9 * math.log(0.9) + 0.1 * math.log(0.1))]))


def test_chunked_token_scores_hold_one_chunk_of_logits_at_a_time(drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(token_logprobs.CHUNK_LOGITS, "cpu", 4 * V)
    shapes: list[tuple[int, ...]] = []
    log_softmax = torch.log_softmax

    def record_shape(logits: Tensor, dim: int) -> Tensor:
        shapes.append(tuple(logits.shape))
        return log_softmax(logits, dim)

    monkeypatch.setattr(torch, "log_softmax", record_shape)
    layer = nn.Linear(H, V).requires_grad_(False)
    chunked_token_scores(layer, V, drawn.hidden.requires_grad_(), drawn.tokens, 1.0, with_entropy=False)
    assert shapes == [(4, V)] * 5 + [(3, V)]
