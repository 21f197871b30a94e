"""Log-probabilities, entropies and their gradients by chunks, against plain autograd on the whole logits."""

import pytest
import torch
from torch import nn

from rlhf_cli.inference import token_logprobs

N, H, V = 23, 16, 40


def plain(layer, hidden, tokens, temperature):
    """As a textbook has it, all logits at once."""
    log_p = torch.log_softmax(layer(hidden) / temperature, dim=-1)
    return log_p[torch.arange(len(tokens)), tokens], -(log_p.exp() * log_p).sum(dim=-1)


@pytest.fixture
def drawn():
    torch.manual_seed(3)
    return torch.randn(N, H), torch.randint(0, V, (N,)), torch.randn(N), torch.randn(N)


@pytest.mark.parametrize("chunk", [1, 5 * V, 10**9])
@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_those_of_the_whole_logits(drawn, monkeypatch, chunk, is_trained, bias):
    monkeypatch.setitem(token_logprobs.CHUNK_LOGITS, "cpu", chunk)
    hidden, tokens, up, up_entropy = drawn
    layer = nn.Linear(H, V, bias=bias).requires_grad_(is_trained)
    found, expected = [], []
    for results, score in (
        (found, lambda x: token_logprobs.token_scores(layer, V, x, tokens, 0.7, with_entropy=True)),
        (expected, lambda x: plain(layer, x, tokens, 0.7)),
    ):
        x = hidden.clone().requires_grad_()
        layer.zero_grad(set_to_none=True)
        logprobs, entropy = score(x)
        (logprobs @ up + entropy @ up_entropy).backward()
        results += [logprobs, entropy, x.grad, *(p.grad.clone() for p in layer.parameters() if is_trained)]
    assert len(found) == 3 + is_trained * (1 + bias)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_trained", [False, True])
def test_with_and_without_gradients_the_numbers_are_equal_to_the_last_bit(drawn, is_trained):
    """Old log-probabilities come from a forward pass without gradients: the first ratio is 1."""
    hidden, tokens, *_ = drawn
    layer = nn.Linear(H, V, bias=False).requires_grad_(is_trained)
    with torch.no_grad():
        old = token_logprobs.token_scores(layer, V, hidden, tokens, 0.7, with_entropy=True)
    new = token_logprobs.token_scores(layer, V, hidden.clone().requires_grad_(), tokens, 0.7, with_entropy=False)
    assert torch.equal(old.logprobs, new.logprobs)
    assert new.entropy.numel() == 0


def test_a_token_that_cannot_come_adds_nothing_to_the_entropy(drawn):
    hidden, tokens, *_ = drawn
    layer = nn.Linear(H, V).requires_grad_(False)
    layer.bias[7] = -torch.inf
    x = hidden.requires_grad_()
    entropy = token_logprobs.token_scores(layer, V, x, torch.zeros_like(tokens), 1.0, with_entropy=True).entropy
    kept = [i for i in range(V) if i != 7]
    expected = torch.distributions.Categorical(logits=(x @ layer.weight.T + layer.bias)[:, kept]).entropy()
    torch.testing.assert_close(entropy, expected, rtol=1e-5, atol=1e-5)
    entropy.sum().backward()
    assert x.grad.isfinite().all()


def test_no_more_logits_than_a_chunk_are_alive(drawn, monkeypatch):
    monkeypatch.setitem(token_logprobs.CHUNK_LOGITS, "cpu", 4 * V)
    hidden, tokens, *_ = drawn
    seen = []
    softmax = torch.log_softmax
    monkeypatch.setattr(torch, "log_softmax", lambda x, dim: seen.append(x.shape) or softmax(x, dim))
    layer = nn.Linear(H, V).requires_grad_(False)
    token_logprobs.token_scores(layer, V, hidden.requires_grad_(), tokens, 1.0, with_entropy=False)
    assert seen == [(4, V)] * 5 + [(3, V)]
