"""One minibatch: the ratio before any update, gradients however it is cut, clipping, and who moves."""

import math
from pathlib import Path

import pytest
import torch

from rlhf_cli.errors import DivergedError
from rlhf_cli.inference import scoring
from rlhf_cli.ppo import actor_critic, algorithm, optimization, update
from rlhf_cli.recipe.schema import Critic, Kl, Ppo
from tests.support.tiny_policy import PAD

ALL = list(range(8))


def settings(**fields):
    return Ppo(**{"temperature": 0.7, "micro_batch_tokens": 10_000, **fields})


def score(cast, ragged, temperature=0.7, spread=0.0):
    """Experience as the trainer makes it, with drawn advantages and returns. `spread` moves the old figures away."""
    prompts, responses = ragged
    limits = {"pad_id": PAD, "max_tokens": 30}
    policy = scoring.policy_scores(
        cast.bank, actor_critic.POLICY, prompts, responses, temperature=temperature, **limits
    )
    values = scoring.pad(scoring.token_values(cast.bank, cast.trunk, actor_critic.VALUE, prompts, responses, **limits))
    mask = torch.arange(values.shape[1]) < torch.tensor([len(r) for r in responses])[:, None]
    generator = torch.Generator().manual_seed(1)
    noise = [torch.where(mask, torch.randn(values.shape, generator=generator), 0.0) for _ in range(4)]
    logprobs = scoring.pad([p.logprobs for p in policy]) + spread * noise[2]
    advantages = algorithm.whiten(noise[0], mask)
    ref = torch.where(mask, logprobs.detach() - 0.3 * noise[0], 0.0)
    return update.Experience(prompts, responses, mask, logprobs, ref, values + spread * noise[3], advantages, noise[1])


def grads(cast):
    found = [p.grad.clone() for role in (actor_critic.POLICY, actor_critic.VALUE) for p in cast.bank.parameters(role)]
    for role in (actor_critic.POLICY, actor_critic.VALUE):
        for p in cast.bank.parameters(role):
            p.grad = None
    return found


@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_ratio_of_the_first_minibatch_is_one(make_cast, sft_folder, reward_folder, ragged, kind):
    """With an sft adapter as start, at temperature 0.7, and with other micro-batches than the scoring had."""
    cast = make_cast(sft_folder, reward_folder, kind)
    scored = score(cast, ragged)
    found = update.gradients(cast, settings(micro_batch_tokens=50), scored, [6, 0, 3, 7], pad_id=PAD, kl_coef=0.0)
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
    whole = update.gradients(cast, settings(), scored, ALL, pad_id=PAD, kl_coef=0.0)
    expected = grads(cast)
    cut = update.gradients(cast, settings(micro_batch_tokens=1), scored, ALL, pad_id=PAD, kl_coef=0.0)
    assert 0 < whole.clip_fraction < 1
    assert 0 < whole.value_clip_fraction < 1
    assert list(cut) == pytest.approx(list(whole), rel=1e-4, abs=1e-6)
    for got, wanted in zip(grads(cast), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


def test_gradients_are_those_of_the_padded_losses(make_cast, sft_folder, reward_folder, ragged):
    """The whole minibatch as one (B, R) tensor through algorithm.py, built from plain logits, gives the same."""
    cast = make_cast(sft_folder, reward_folder)
    scored = score(cast, ragged, spread=0.5)
    update.gradients(cast, settings(), scored, ALL, pad_id=PAD, kl_coef=0.0)
    got = grads(cast)
    logprobs, values = [], []
    for prompt, response in zip(*ragged, strict=True):
        ids = torch.tensor([prompt + response])
        at = slice(len(prompt) - 1, -1)
        hidden = cast.bank.hidden(actor_critic.POLICY, ids)[0, at]
        log_p = torch.log_softmax(cast.bank.output_head(actor_critic.POLICY)(hidden) / 0.7, dim=-1)
        logprobs.append(log_p[torch.arange(len(response)), response])
        hidden = cast.bank.hidden(actor_critic.VALUE, ids)[0, at]
        values.append(cast.bank.heads[actor_critic.VALUE](hidden))
    pad = scoring.pad
    policy = algorithm.policy_loss(pad(logprobs), scored.logprobs, scored.advantages, scored.mask, 0.2, 0.2).loss
    value = algorithm.value_loss(pad(values), scored.values, scored.returns, scored.mask, 0.2).loss
    (policy + value).backward()
    for mine, wanted in zip(got, grads(cast), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_critic_warm_up_leaves_the_policy_untouched(make_cast, sft_folder, ragged, kind):
    cast = make_cast(sft_folder, kind=kind)
    found = update.gradients(cast, settings(), score(cast, ragged), ALL, pad_id=PAD, kl_coef=0.0, policy_too=False)
    assert all(p.grad is None for p in cast.bank.parameters(actor_critic.POLICY))
    assert any(p.grad.abs().sum() > 0 for p in cast.bank.parameters(actor_critic.VALUE))
    assert (found.policy_loss, found.ratio_mean, found.ratio_max) == (0.0, 1.0, 1.0)


def test_a_shared_critic_teaches_the_trunk_and_its_own_one_does_not(make_cast, sft_folder, reward_folder, ragged):
    for kind, moved in (("shared", True), ("adapter", False)):
        cast = make_cast(sft_folder, reward_folder, kind)
        torch.nn.init.normal_(cast.bank.heads[actor_critic.VALUE].weight)
        scored = score(cast, ragged)
        scored = scored._replace(advantages=torch.zeros_like(scored.advantages))  # no policy gradient
        update.gradients(cast, settings(), scored, ALL, pad_id=PAD, kl_coef=0.0)
        assert any(p.grad.abs().sum() > 0 for p in cast.bank.parameters(actor_critic.POLICY)) is moved


def built(cast, **trainer):
    asked = optimization.arguments(trainer, folder=Path("unused"))
    made = settings(learning_rate=1e-2, critic=Critic(learning_rate=1e-3), iterations=2, epochs=2, minibatches=2)
    parameters = (cast.bank.parameters(actor_critic.POLICY), cast.bank.parameters(actor_critic.VALUE))
    return optimization.build(made, asked, *parameters)


def test_policy_and_critic_are_clipped_apart(make_cast, sft_folder, reward_folder):
    cast = make_cast(sft_folder, reward_folder)
    optimizing = built(cast, optim="sgd")
    policy, critic = cast.bank.parameters(actor_critic.POLICY), cast.bank.parameters(actor_critic.VALUE)
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
@pytest.mark.parametrize("who", [actor_critic.POLICY, actor_critic.VALUE])
def test_a_gradient_that_is_not_finite_moves_nothing(make_cast, sft_folder, reward_folder, bad, who):
    cast = make_cast(sft_folder, reward_folder)
    optimizing = built(cast)
    for p in cast.bank.parameters(who):
        p.grad = torch.full_like(p, bad)
    before = [p.detach().clone() for p in cast.bank.parameters(who)]
    with pytest.raises(DivergedError, match="gradient norm"):
        update.step(optimizing)
    assert all(torch.equal(b, p) for b, p in zip(before, cast.bank.parameters(who), strict=True))


def logprobs_by_hand(cast, ragged, temperature=0.7):
    """Whole logits of each row alone, (n, V) a row, and the log-probabilities of its response."""
    found = []
    for prompt, response in zip(*ragged, strict=True):
        ids = torch.tensor([prompt + response])
        with cast.bank.use(actor_critic.POLICY) as model:
            logits = model(ids).logits[0, len(prompt) - 1 : -1] / temperature
        log_p = torch.log_softmax(logits, dim=-1)
        found.append((log_p, log_p[torch.arange(len(response)), response]))
    return found


def policy_grads(cast):
    """The policy's gradients; those of both roles are gone afterwards."""
    found = [p.grad.clone() for p in cast.bank.parameters(actor_critic.POLICY)]
    for role in (actor_critic.POLICY, actor_critic.VALUE):
        for p in cast.bank.parameters(role):
            p.grad = None
    return found


def assert_close_to(got, expected):
    for mine, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


def test_the_entropy_bonus_pulls_towards_the_gradient_of_entropy(make_cast, sft_folder, reward_folder, ragged):
    cast = make_cast(sft_folder, reward_folder)
    scored = score(cast, ragged)
    update.gradients(cast, settings(micro_batch_tokens=40), scored, ALL, pad_id=PAD, kl_coef=0.0)
    without = policy_grads(cast)
    update.gradients(cast, settings(micro_batch_tokens=40, entropy_coef=0.3), scored, ALL, pad_id=PAD, kl_coef=0.0)
    difference = [a - b for a, b in zip(policy_grads(cast), without, strict=True)]
    entropy = torch.cat([-(log_p.exp() * log_p).sum(-1) for log_p, _ in logprobs_by_hand(cast, ragged)]).mean()
    (-0.3 * entropy).backward()
    assert_close_to(difference, policy_grads(cast))


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_as_a_loss_adds_its_gradient(make_cast, sft_folder, reward_folder, ragged, estimator):
    cast = make_cast(sft_folder, reward_folder)
    scored = score(cast, ragged)
    kl = Kl(apply_to="loss", estimator=estimator)
    update.gradients(cast, settings(), scored, ALL, pad_id=PAD, kl_coef=0.4)  # charged in the reward: no such term
    without = policy_grads(cast)
    update.gradients(cast, settings(kl=kl, micro_batch_tokens=40), scored, ALL, pad_id=PAD, kl_coef=0.4)
    difference = [a - b for a, b in zip(policy_grads(cast), without, strict=True)]
    d = torch.cat([chosen for _, chosen in logprobs_by_hand(cast, ragged)]) - torch.cat(
        [row[: len(r)] for row, r in zip(scored.ref_logprobs, ragged[1], strict=True)]
    )
    term = d**2 / 2 if estimator == "k2" else torch.exp(-d) - 1 + d
    (0.4 * term.mean()).backward()
    assert_close_to(difference, policy_grads(cast))


def test_clips_of_the_recipe_reach_the_loss(make_cast, sft_folder, reward_folder, ragged):
    cast = make_cast(sft_folder, reward_folder)
    scored = score(cast, ragged, spread=1.0)
    logprobs = scoring.pad([chosen for _, chosen in logprobs_by_hand(cast, ragged)])
    losses = []
    for fields in ({"clip": 0.1, "clip_high": 0.4, "dual_clip": 1.5}, {"clip": 0.1}):
        found = update.gradients(cast, settings(**fields), scored, ALL, pad_id=PAD, kl_coef=0.0)
        bounds = (0.1, fields.get("clip_high", 0.1), fields.get("dual_clip"))
        wanted = algorithm.policy_loss(logprobs, scored.logprobs, scored.advantages, scored.mask, *bounds)
        assert found.policy_loss == pytest.approx(wanted.loss.item(), rel=1e-4)
        losses.append(found.policy_loss)
    assert abs(losses[0] - losses[1]) > 1e-2


@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_recomputed_activations_give_the_same_gradients_of_both_adapters(
    make_cast, sft_folder, reward_folder, ragged, kind
):
    """The backward pass computes layers again: with the adapter that the forward pass had, and without dropout."""
    cast = make_cast(sft_folder, reward_folder, kind)
    scored = score(cast, ragged, spread=0.5)
    update.gradients(cast, settings(micro_batch_tokens=40), scored, ALL, pad_id=PAD, kl_coef=0.0)
    expected = grads(cast)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        update.gradients(cast, settings(micro_batch_tokens=40), scored, ALL, pad_id=PAD, kl_coef=0.0)
    before = sum(kept)
    grads(cast)
    cast.bank.recompute_activations()
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        update.gradients(cast, settings(micro_batch_tokens=40), scored, ALL, pad_id=PAD, kl_coef=0.0)
    grads(cast)
    update.gradients(cast, settings(micro_batch_tokens=40), scored, ALL, pad_id=PAD, kl_coef=0.0)
    for got, wanted in zip(grads(cast), expected, strict=True):
        assert torch.equal(got, wanted)
    assert sum(kept) < before / 2


def test_demonstrations_pull_with_the_gradient_of_their_likelihood(make_cast, sft_folder, reward_folder, ragged):
    cast = make_cast(sft_folder, reward_folder)
    rows = update.Demonstrations(*ragged)
    loss = update.ptx_loss(cast, settings(ptx_coef=0.6, micro_batch_tokens=30), rows, pad_id=PAD)
    got = policy_grads(cast)
    mean = -torch.cat([chosen for _, chosen in logprobs_by_hand(cast, ragged, temperature=1.0)]).mean()
    (0.6 * mean).backward()
    assert loss == pytest.approx(mean.item(), rel=1e-5)
    assert_close_to(got, policy_grads(cast))
