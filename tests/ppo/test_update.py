"""One minibatch: the ratio before any update, gradients however it is cut, clipping, and who moves."""

import math
from pathlib import Path

import pytest
import torch

from rlhf_cli.errors import DivergedError
from rlhf_cli.ppo import algorithm, experience, optimization, roles, update
from rlhf_cli.recipe.schema import Critic, Ppo

from .conftest import PAD

ALL = list(range(8))


def settings(**fields):
    return Ppo(**{"temperature": 0.7, "micro_batch_tokens": 10_000, **fields})


def score(cast, ragged, temperature=0.7, spread=0.0):
    """Experience as the trainer makes it, with drawn advantages and returns. `spread` moves the old figures away."""
    prompts, responses = ragged
    limits = {"pad_id": PAD, "max_tokens": 30}
    policy = experience.policy_scores(cast.bank, roles.POLICY, prompts, responses, temperature=temperature, **limits)
    values = experience.pad(experience.token_values(cast.bank, cast.trunk, roles.VALUE, prompts, responses, **limits))
    mask = torch.arange(values.shape[1]) < torch.tensor([len(r) for r in responses])[:, None]
    generator = torch.Generator().manual_seed(1)
    noise = [torch.where(mask, torch.randn(values.shape, generator=generator), 0.0) for _ in range(4)]
    logprobs = experience.pad([p.logprobs for p in policy]) + spread * noise[2]
    advantages = algorithm.whiten(noise[0], mask)
    return update.Experience(prompts, responses, mask, logprobs, values + spread * noise[3], advantages, noise[1])


def grads(cast):
    found = [p.grad.clone() for role in (roles.POLICY, roles.VALUE) for p in cast.bank.parameters(role)]
    for role in (roles.POLICY, roles.VALUE):
        for p in cast.bank.parameters(role):
            p.grad = None
    return found


@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_ratio_of_the_first_minibatch_is_one(make_cast, sft_folder, reward_folder, ragged, kind):
    """With an sft adapter as start, at temperature 0.7, and with other micro-batches than the scoring had."""
    cast = make_cast(sft_folder, reward_folder, kind)
    scored = score(cast, ragged)
    found = update.gradients(cast, settings(micro_batch_tokens=50), scored, [6, 0, 3, 7], pad_id=PAD)
    assert abs(found.ratio_min - 1) < 1e-5
    assert abs(found.ratio_max - 1) < 1e-5
    assert abs(found.approx_kl) < 1e-9
    assert found.clip_fraction == 0


@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_micro_batches_of_one_and_one_of_all_give_the_same_gradients(
    make_cast, sft_folder, reward_folder, ragged, kind
):
    cast = make_cast(sft_folder, reward_folder, kind)
    scored = score(cast, ragged, spread=0.5)  # so that clipping acts on some tokens
    whole = update.gradients(cast, settings(), scored, ALL, pad_id=PAD)
    expected = grads(cast)
    cut = update.gradients(cast, settings(micro_batch_tokens=1), scored, ALL, pad_id=PAD)
    assert 0 < whole.clip_fraction < 1
    assert 0 < whole.value_clip_fraction < 1
    assert list(cut) == pytest.approx(list(whole), rel=1e-4, abs=1e-6)
    for got, wanted in zip(grads(cast), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


def test_gradients_are_those_of_the_padded_losses(make_cast, sft_folder, reward_folder, ragged):
    """The whole minibatch as one (B, R) tensor through algorithm.py, built from plain logits, gives the same."""
    cast = make_cast(sft_folder, reward_folder)
    scored = score(cast, ragged, spread=0.5)
    update.gradients(cast, settings(), scored, ALL, pad_id=PAD)
    got = grads(cast)
    logprobs, values = [], []
    for prompt, response in zip(*ragged, strict=True):
        ids = torch.tensor([prompt + response])
        where = torch.arange(ids.shape[1])[None]
        at = slice(len(prompt) - 1, -1)
        hidden = cast.bank.hidden(roles.POLICY, ids, torch.ones_like(ids), where)[0, at]
        log_p = torch.log_softmax(cast.bank.logits(roles.POLICY, hidden) / 0.7, dim=-1)
        logprobs.append(log_p[torch.arange(len(response)), response])
        hidden = cast.bank.hidden(roles.VALUE, ids, torch.ones_like(ids), where)[0, at]
        values.append(cast.bank.heads[roles.VALUE](hidden))
    pad = experience.pad
    policy = algorithm.policy_loss(pad(logprobs), scored.logprobs, scored.advantages, scored.mask, 0.2, 0.2).loss
    value = algorithm.value_loss(pad(values), scored.values, scored.returns, scored.mask, 0.2).loss
    (policy + value).backward()
    for mine, wanted in zip(got, grads(cast), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_critic_warm_up_leaves_the_policy_untouched(make_cast, sft_folder, ragged, kind):
    cast = make_cast(sft_folder, kind=kind)
    found = update.gradients(cast, settings(), score(cast, ragged), ALL, pad_id=PAD, policy_too=False)
    assert all(p.grad is None for p in cast.bank.parameters(roles.POLICY))
    assert any(p.grad.abs().sum() > 0 for p in cast.bank.parameters(roles.VALUE))
    assert (found.policy_loss, found.ratio_mean, found.ratio_max) == (0.0, 1.0, 1.0)


def test_a_shared_critic_teaches_the_trunk_and_its_own_one_does_not(make_cast, sft_folder, reward_folder, ragged):
    for kind, moved in (("shared", True), ("adapter", False)):
        cast = make_cast(sft_folder, reward_folder, kind)
        torch.nn.init.normal_(cast.bank.heads[roles.VALUE].weight)
        scored = score(cast, ragged)
        scored = scored._replace(advantages=torch.zeros_like(scored.advantages))  # no policy gradient
        update.gradients(cast, settings(), scored, ALL, pad_id=PAD)
        assert any(p.grad.abs().sum() > 0 for p in cast.bank.parameters(roles.POLICY)) is moved


def built(cast, **trainer):
    asked = optimization.arguments(trainer, folder=Path("unused"))
    made = settings(learning_rate=1e-2, critic=Critic(learning_rate=1e-3), iterations=2, epochs=2, minibatches=2)
    parameters = (cast.bank.parameters(roles.POLICY), cast.bank.parameters(roles.VALUE))
    return optimization.build(made, asked, *parameters)


def test_policy_and_critic_are_clipped_apart(make_cast, sft_folder, reward_folder):
    cast = make_cast(sft_folder, reward_folder)
    optimizing = built(cast, optim="sgd")
    policy, critic = cast.bank.parameters(roles.POLICY), cast.bank.parameters(roles.VALUE)
    for p in policy:
        p.grad = torch.full_like(p, 3.0)
    for p in critic:
        p.grad = torch.zeros_like(p)
    critic[0].grad.view(-1)[0] = 0.5  # below the norm: not clipped, whatever the policy's is
    before = [p.detach().clone() for p in (*policy, critic[0])]
    norms = update.step(optimizing)
    assert norms == pytest.approx((3.0 * math.sqrt(sum(p.numel() for p in policy)), 0.5))
    moved = [b - p.detach() for b, p in zip(before, (*policy, critic[0]), strict=True)]
    assert float(torch.cat([m.flatten() for m in moved[:-1]]).norm()) == pytest.approx(1.0 * 1e-2, rel=1e-4)
    assert float(moved[-1].norm()) == pytest.approx(0.5 * 1e-3, rel=1e-3)
    assert all(p.grad is None for p in (*policy, *critic))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("who", [roles.POLICY, roles.VALUE])
def test_a_gradient_that_is_not_finite_moves_nothing(make_cast, sft_folder, reward_folder, bad, who):
    cast = make_cast(sft_folder, reward_folder)
    optimizing = built(cast)
    for p in cast.bank.parameters(who):
        p.grad = torch.full_like(p, bad)
    before = [p.detach().clone() for p in cast.bank.parameters(who)]
    with pytest.raises(DivergedError, match="gradient norm"):
        update.step(optimizing)
    assert all(torch.equal(b, p) for b, p in zip(before, cast.bank.parameters(who), strict=True))
