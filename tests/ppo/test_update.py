"""Test one minibatch: the ratio before any update, gradients for any split into micro-batches, clipping, and KL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import Tensor

from rlhf_cli.errors import DivergedError
from rlhf_cli.inference import scoring
from rlhf_cli.inference.batching import length_mask, pad_tensors
from rlhf_cli.ppo import algorithm, update
from rlhf_cli.ppo.actor_critic import POLICY, VALUE, ActorCritic
from rlhf_cli.ppo.optimization import Optimization, build_optimization, training_arguments
from rlhf_cli.ppo.types import Demonstrations, Experience, MinibatchStats
from rlhf_cli.recipe.schema import Critic, Kl, Ppo
from tests.support.issues import raises_issue
from tests.support.tiny_policy import PAD, MakeActorCritic, Ragged

ALL_ROWS = list(range(8))
BATCH_OPTIONS: dict[str, Any] = {"pad_id": PAD, "max_tokens": 30}


def settings(**fields: Any) -> Ppo:
    """Return settings in which one micro-batch holds a whole minibatch by default."""
    return Ppo(**{"temperature": 0.7, "micro_batch_tokens": 10_000, **fields})


def make_experience(actor_critic: ActorCritic, ragged: Ragged, *, spread: float = 0.0) -> Experience:
    """Score the responses as the trainer does, and draw advantages and returns.

    Args:
        actor_critic: Policy and critic.
        ragged: Prompts and responses.
        spread: Scale of noise that is added to old log-probabilities and values.
    """
    prompts, responses = ragged
    model = actor_critic.model
    policy = scoring.policy_scores(model, POLICY, prompts, responses, temperature=0.7, **BATCH_OPTIONS)
    critic = scoring.token_values(model, actor_critic.trunk, VALUE, prompts, responses, **BATCH_OPTIONS)
    values = pad_tensors(critic)
    mask = length_mask([len(response) for response in responses])
    generator = torch.Generator().manual_seed(1)
    noise = [torch.where(mask, torch.randn(values.shape, generator=generator), 0.0) for _ in range(4)]
    logprobs = pad_tensors([score.logprobs for score in policy]) + spread * noise[2]
    ref_logprobs = torch.where(mask, logprobs.detach() - 0.3 * noise[0], 0.0)
    advantages = algorithm.whiten(noise[0], mask)
    return Experience(
        prompts, responses, mask, logprobs, ref_logprobs, values + spread * noise[3], advantages, returns=noise[1]
    )


def accumulate(
    actor_critic: ActorCritic, experience: Experience, ppo: Ppo | None = None, *, kl_coef: float = 0.0
) -> MinibatchStats:
    """Accumulate the gradients of all rows."""
    return update.accumulate_gradients(
        actor_critic, ppo or settings(), experience, ALL_ROWS, pad_id=PAD, kl_coef=kl_coef
    )


def take_gradients(actor_critic: ActorCritic, *roles: str) -> list[Tensor]:
    """Return the gradients of the roles, policy and critic by default, and clear all gradients."""
    gradients = []
    for role in (POLICY, VALUE):
        for parameter in actor_critic.model.parameters(role):
            if role in (roles or (POLICY, VALUE)):
                assert parameter.grad is not None
                gradients.append(parameter.grad.clone())
            parameter.grad = None
    return gradients


def has_gradient(parameters: Sequence[torch.nn.Parameter]) -> bool:
    """Return whether a gradient is not zero."""
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in parameters)


def assert_gradients_close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Assert that gradients are close, relative to the largest entry of each: float32 sums in another order."""
    for gradient, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-5 * float(reference.abs().max()))


@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_accumulate_gradients_first_minibatch_has_ratio_one(
    make_actor_critic: MakeActorCritic, sft_folder: Path, reward_folder: Path, ragged: Ragged, kind: str
) -> None:
    """With an sft adapter as start, at temperature 0.7, and with other micro-batches than in scoring."""
    actor_critic = make_actor_critic(sft_folder, reward_folder, kind)
    experience = make_experience(actor_critic, ragged)
    stats = update.accumulate_gradients(
        actor_critic, settings(micro_batch_tokens=50), experience, [6, 0, 3, 7], pad_id=PAD, kl_coef=0.0
    )
    assert abs(stats.ratio_min - 1) < 1e-5
    assert abs(stats.ratio_max - 1) < 1e-5
    assert abs(stats.approx_kl) < 1e-9
    assert stats.clip_fraction == 0


@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_accumulate_gradients_split_into_micro_batches_changes_nothing(
    make_actor_critic: MakeActorCritic, sft_folder: Path, reward_folder: Path, ragged: Ragged, kind: str
) -> None:
    actor_critic = make_actor_critic(sft_folder, reward_folder, kind)
    experience = make_experience(actor_critic, ragged, spread=0.5)  # so that some tokens are clipped
    whole = accumulate(actor_critic, experience)
    expected = take_gradients(actor_critic)
    split = accumulate(actor_critic, experience, settings(micro_batch_tokens=1))
    assert 0 < whole.clip_fraction < 1
    assert 0 < whole.value_clip_fraction < 1
    assert list(split) == pytest.approx(list(whole), rel=1e-4, abs=1e-6)
    assert_gradients_close(take_gradients(actor_critic), expected)


def test_accumulate_gradients_equal_those_of_padded_losses(
    make_actor_critic: MakeActorCritic, sft_folder: Path, reward_folder: Path, ragged: Ragged
) -> None:
    """The reference is the whole minibatch as one (B, R) tensor through algorithm.py, from plain logits."""
    actor_critic = make_actor_critic(sft_folder, reward_folder)
    model = actor_critic.model
    experience = make_experience(actor_critic, ragged, spread=0.5)
    accumulate(actor_critic, experience)
    found = take_gradients(actor_critic)
    logprobs, values = [], []
    for prompt, response in zip(*ragged, strict=True):
        ids = torch.tensor([prompt + response])
        positions = slice(len(prompt) - 1, -1)
        hidden = model.hidden_states(POLICY, ids)[0, positions]
        log_p = torch.log_softmax(model.output_head(POLICY)(hidden) / 0.7, dim=-1)
        logprobs.append(log_p[torch.arange(len(response)), response])
        values.append(model.heads[VALUE](model.hidden_states(VALUE, ids)[0, positions]))
    old, mask = experience, experience.mask
    policy = algorithm.policy_loss(pad_tensors(logprobs), old.logprobs, old.advantages, mask, 0.2, 0.2).loss
    value = algorithm.value_loss(pad_tensors(values), old.values, old.returns, mask, 0.2).loss
    (policy + value).backward()
    assert_gradients_close(found, take_gradients(actor_critic))


@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_accumulate_gradients_without_train_policy_leaves_policy_untouched(
    make_actor_critic: MakeActorCritic, sft_folder: Path, ragged: Ragged, kind: str
) -> None:
    actor_critic = make_actor_critic(sft_folder, kind=kind)
    experience = make_experience(actor_critic, ragged)
    stats = update.accumulate_gradients(
        actor_critic, settings(), experience, ALL_ROWS, pad_id=PAD, kl_coef=0.0, train_policy=False
    )
    assert all(parameter.grad is None for parameter in actor_critic.model.parameters(POLICY))
    assert has_gradient(actor_critic.model.parameters(VALUE))
    assert (stats.policy_loss, stats.ratio_mean, stats.ratio_max) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize(("kind", "trains_trunk"), [("shared", True), ("adapter", False)])
def test_accumulate_gradients_only_shared_critic_trains_policy_adapter(
    make_actor_critic: MakeActorCritic,
    sft_folder: Path,
    reward_folder: Path,
    ragged: Ragged,
    kind: str,
    trains_trunk: bool,
) -> None:
    actor_critic = make_actor_critic(sft_folder, reward_folder, kind)
    torch.nn.init.normal_(next(actor_critic.model.heads[VALUE].parameters()))
    experience = make_experience(actor_critic, ragged)
    experience = experience._replace(advantages=torch.zeros_like(experience.advantages))  # no policy gradient
    accumulate(actor_critic, experience)
    assert has_gradient(actor_critic.model.parameters(POLICY)) is trains_trunk


def build(actor_critic: ActorCritic, **options: Any) -> Optimization:
    """Return the optimization of policy (rate 1e-2) and critic (rate 1e-3)."""
    arguments = training_arguments(options, folder=Path("unused"))
    ppo = settings(learning_rate=1e-2, critic=Critic(learning_rate=1e-3), iterations=2, epochs=2, minibatches=2)
    model = actor_critic.model
    return build_optimization(ppo, arguments, model.parameters(POLICY), model.parameters(VALUE))


def test_optimizer_step_clips_policy_and_critic_separately(
    make_actor_critic: MakeActorCritic, sft_folder: Path, reward_folder: Path
) -> None:
    actor_critic = make_actor_critic(sft_folder, reward_folder)
    optimization = build(actor_critic, optim="sgd")
    policy, critic = actor_critic.model.parameters(POLICY), actor_critic.model.parameters(VALUE)
    for parameter in policy:
        parameter.grad = torch.full_like(parameter, 3.0)
    for parameter in critic:
        parameter.grad = torch.zeros_like(parameter)
    assert critic[0].grad is not None
    critic[0].grad.view(-1)[0] = 0.5  # below the limit: not clipped, whatever the policy's norm is
    before = [parameter.detach().clone() for parameter in (*policy, critic[0])]
    norms = update.optimizer_step(optimization)
    assert norms == pytest.approx((3.0 * math.sqrt(sum(parameter.numel() for parameter in policy)), 0.5))
    moved = [old - new.detach() for old, new in zip(before, (*policy, critic[0]), strict=True)]
    assert float(torch.cat([m.flatten() for m in moved[:-1]]).norm()) == pytest.approx(1.0 * 1e-2, rel=1e-4)
    assert float(moved[-1].norm()) == pytest.approx(0.5 * 1e-3, rel=1e-3)
    assert all(parameter.grad is None for parameter in (*policy, *critic))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("role", "name"), [(POLICY, "policy"), (VALUE, "critic")])
def test_optimizer_step_non_finite_gradient_raises_issue_and_moves_nothing(
    make_actor_critic: MakeActorCritic, sft_folder: Path, reward_folder: Path, value: float, role: str, name: str
) -> None:
    actor_critic = make_actor_critic(sft_folder, reward_folder)
    optimization = build(actor_critic)
    parameters = actor_critic.model.parameters(role)
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, value)
    before = [parameter.detach().clone() for parameter in parameters]
    with raises_issue("training.non-finite", error=DivergedError, location="ppo") as issues:
        update.optimizer_step(optimization)
    assert issues[0].message.startswith(f"gradient norm of the {name}: must be finite; found ")
    assert all(torch.equal(old, new) for old, new in zip(before, parameters, strict=True))


class PlainScores(NamedTuple):
    """Scores of a response from all logits."""

    log_p: Tensor  # (R_i, V)
    logprobs: Tensor  # (R_i,)


def score_plainly(actor_critic: ActorCritic, ragged: Ragged, *, temperature: float = 0.7) -> list[PlainScores]:
    """Score each row by itself with the policy, from all logits."""
    scores = []
    for prompt, response in zip(*ragged, strict=True):
        ids = torch.tensor([prompt + response])
        with actor_critic.model.use(POLICY) as causal_lm:
            logits = causal_lm(ids).logits[0, len(prompt) - 1 : -1] / temperature
        log_p = torch.log_softmax(logits, dim=-1)
        scores.append(PlainScores(log_p, log_p[torch.arange(len(response)), response]))
    return scores


def test_accumulate_gradients_entropy_coef_adds_gradient_of_entropy(
    make_actor_critic: MakeActorCritic, sft_folder: Path, reward_folder: Path, ragged: Ragged
) -> None:
    actor_critic = make_actor_critic(sft_folder, reward_folder)
    experience = make_experience(actor_critic, ragged)
    accumulate(actor_critic, experience, settings(micro_batch_tokens=40))
    without = take_gradients(actor_critic, POLICY)
    accumulate(actor_critic, experience, settings(micro_batch_tokens=40, entropy_coef=0.3))
    difference = [a - b for a, b in zip(take_gradients(actor_critic, POLICY), without, strict=True)]
    entropies = [-(log_p.exp() * log_p).sum(-1) for log_p, _ in score_plainly(actor_critic, ragged)]
    (-0.3 * torch.cat(entropies).mean()).backward()
    assert_gradients_close(difference, take_policy_gradients(actor_critic))


def take_policy_gradients(actor_critic: ActorCritic) -> list[Tensor]:
    """Return the policy's gradients of a loss that only the policy has a part in, and clear them."""
    gradients = []
    for parameter in actor_critic.model.parameters(POLICY):
        assert parameter.grad is not None
        gradients.append(parameter.grad)
        parameter.grad = None
    return gradients


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_accumulate_gradients_kl_in_loss_adds_its_gradient(
    make_actor_critic: MakeActorCritic,
    sft_folder: Path,
    reward_folder: Path,
    ragged: Ragged,
    estimator: Literal["k2", "k3"],
) -> None:
    actor_critic = make_actor_critic(sft_folder, reward_folder)
    experience = make_experience(actor_critic, ragged)
    accumulate(actor_critic, experience, kl_coef=0.4)  # charged in the reward: not in the loss
    without = take_gradients(actor_critic, POLICY)
    kl = Kl(apply_to="loss", estimator=estimator)
    accumulate(actor_critic, experience, settings(kl=kl, micro_batch_tokens=40), kl_coef=0.4)
    difference = [a - b for a, b in zip(take_gradients(actor_critic, POLICY), without, strict=True)]
    logprobs = torch.cat([scores.logprobs for scores in score_plainly(actor_critic, ragged)])
    ref_logprobs = torch.cat([row[: len(r)] for row, r in zip(experience.ref_logprobs, ragged[1], strict=True)])
    d = logprobs - ref_logprobs
    term = d**2 / 2 if estimator == "k2" else torch.exp(-d) - 1 + d
    (0.4 * term.mean()).backward()
    assert_gradients_close(difference, take_policy_gradients(actor_critic))


def test_accumulate_gradients_clip_settings_reach_the_loss(
    make_actor_critic: MakeActorCritic, sft_folder: Path, reward_folder: Path, ragged: Ragged
) -> None:
    actor_critic = make_actor_critic(sft_folder, reward_folder)
    experience = make_experience(actor_critic, ragged, spread=1.0)
    logprobs = pad_tensors([scores.logprobs for scores in score_plainly(actor_critic, ragged)])
    losses = []
    for fields in ({"clip": 0.1, "clip_high": 0.4, "dual_clip": 1.5}, {"clip": 0.1}):
        stats = accumulate(actor_critic, experience, settings(**fields))
        expected = algorithm.policy_loss(
            logprobs,
            experience.logprobs,
            experience.advantages,
            experience.mask,
            0.1,
            fields.get("clip_high", 0.1),
            fields.get("dual_clip"),
        )
        assert stats.policy_loss == pytest.approx(expected.loss.item(), rel=1e-4)
        losses.append(stats.policy_loss)
    assert abs(losses[0] - losses[1]) > 1e-2


def saved_numbers(actor_critic: ActorCritic, experience: Experience) -> int:
    """Return how many numbers autograd saves while gradients accumulate."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        accumulate(actor_critic, experience, settings(micro_batch_tokens=40))
    take_gradients(actor_critic)
    return sum(sizes)


@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_recompute_activations_gives_same_gradients_of_both_adapters(
    make_actor_critic: MakeActorCritic, sft_folder: Path, reward_folder: Path, ragged: Ragged, kind: str
) -> None:
    """The backward pass recomputes layers with the adapter of the forward pass, and without dropout."""
    actor_critic = make_actor_critic(sft_folder, reward_folder, kind)
    experience = make_experience(actor_critic, ragged, spread=0.5)
    accumulate(actor_critic, experience, settings(micro_batch_tokens=40))
    expected = take_gradients(actor_critic)
    saved = saved_numbers(actor_critic, experience)
    actor_critic.model.recompute_activations()
    assert saved_numbers(actor_critic, experience) < saved / 2
    accumulate(actor_critic, experience, settings(micro_batch_tokens=40))
    assert all(torch.equal(a, b) for a, b in zip(take_gradients(actor_critic), expected, strict=True))


def test_ptx_loss_has_gradient_of_demonstrations_likelihood(
    make_actor_critic: MakeActorCritic, sft_folder: Path, reward_folder: Path, ragged: Ragged
) -> None:
    actor_critic = make_actor_critic(sft_folder, reward_folder)
    ppo = settings(ptx_coef=0.6, micro_batch_tokens=30)
    loss = update.ptx_loss(actor_critic, ppo, Demonstrations(*ragged), pad_id=PAD)
    found = take_policy_gradients(actor_critic)
    plain = score_plainly(actor_critic, ragged, temperature=1.0)
    expected = -torch.cat([scores.logprobs for scores in plain]).mean()
    (0.6 * expected).backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert_gradients_close(found, take_policy_gradients(actor_critic))
