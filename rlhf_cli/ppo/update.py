"""One PPO minibatch: gradients over its micro-batches, clipped, and an optimizer step.

Each micro-batch's loss is weighted by its share of the minibatch's response tokens, so that how the minibatch is cut
changes nothing but rounding. Policy and critic run their forward and backward passes one after the other (unless they
share a trunk): no more than one graph is in memory.

Of several processes each takes its share of a minibatch's rows, and gradients and figures are summed once, behind the
loop. A model wrapped for that (DistributedDataParallel) would need equal numbers of backward passes everywhere, which
token budgets do not give but where they are made to (`experience.micro_batches`, for a base that is split).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rlhf_cli import distributed
from rlhf_cli.errors import DivergedError
from rlhf_cli.inference.scoring import MicroBatch, micro_batches, token_hidden, token_scores
from rlhf_cli.ppo import algorithm
from rlhf_cli.ppo.actor_critic import POLICY, VALUE, ActorCritic
from rlhf_cli.ppo.optimization import Optimization
from rlhf_cli.recipe.schema import Ppo

SHARED_VALUE_WEIGHT = 0.1  # of the value loss on a shared trunk, as in TRL and lm-human-preferences


class Experience(NamedTuple):
    """One rollout, scored. Tensors are (B, R), 0 where `mask` is False."""

    prompts: list[list[int]]
    responses: list[list[int]]
    mask: Tensor
    logprobs: Tensor  # old: of the policy that sampled
    ref_logprobs: Tensor
    values: Tensor  # old
    advantages: Tensor  # whitened
    returns: Tensor


class Demonstrations(NamedTuple):
    """A batch of rows to imitate beside the reward (PPO-ptx: Ouyang 2022, arXiv:2203.02155, eq. 2), as token ids."""

    prompts: list[list[int]]
    completions: list[list[int]]


class Step(NamedTuple):
    """Figures of one minibatch, as plain numbers."""

    policy_loss: float  # the clipped surrogate alone
    value_loss: float
    clip_fraction: float
    value_clip_fraction: float
    approx_kl: float
    ratio_mean: float
    ratio_min: float
    ratio_max: float


def gradients(
    cast: ActorCritic,
    settings: Ppo,
    experience: Experience,
    rows: Sequence[int],
    *,
    pad_id: int,
    kl_coef: float,
    policy_too: bool = True,
) -> Step:
    """Add this process's part of the minibatch's gradients to the parameters'; `step` sums them up.

    The minibatch is `rows` of the experience, which every process holds whole. `policy_too=False`: the critic's
    gradients alone. `kl_coef`: in loss per nat a token, where KL is charged in the loss.
    """
    count = sum(len(experience.responses[i]) for i in rows)
    rows = rows[distributed.rank() :: distributed.world_size()]
    prompts, responses = [experience.prompts[i] for i in rows], [experience.responses[i] for i in rows]
    device = cast.bank.device
    means = [torch.zeros(6, device=device)]  # (6,) a micro-batch, weighted
    ranges = [torch.tensor([torch.inf, -torch.inf], device=device)]  # (2,)
    for batch in micro_batches(
        prompts, responses, pad_id=pad_id, max_tokens=settings.micro_batch_tokens, bank=cast.bank
    ):
        share = len(batch.tokens) / count
        old = _flat(experience, [rows[i] for i in batch.rows])
        policy, value = _losses(cast, settings, batch, old, share, kl_coef, policy_too)
        loss, stats = policy if policy is not None else (torch.zeros_like(value.loss), _unmoved(value.loss))
        figures = [loss.detach(), value.loss.detach(), stats.clip_fraction, value.stats.clip_fraction]
        means.append(share * torch.stack([*figures, stats.approx_kl, stats.ratio_mean]))
        ranges.append(torch.stack([stats.ratio_min, stats.ratio_max]))
    low, high = torch.stack(ranges).unbind(dim=1)
    own = torch.cat([torch.stack(means).sum(dim=0), low.amin(dim=0, keepdim=True), high.amax(dim=0, keepdim=True)])
    *means_of, lows, highs = zip(*distributed.all_gather_object(own.tolist()), strict=True)  # one wait for the device
    return Step._make([*map(sum, means_of), min(lows), max(highs)])


def ptx_loss(cast: ActorCritic, settings: Ppo, rows: Demonstrations, *, pad_id: int) -> float:
    """Add the gradients of ptx_coef · (−log p of the completions, a mean over their tokens); gives that mean, nats.

    As in `gradients`, each process adds its part.
    """
    count = sum(map(len, rows.completions))
    mine = slice(distributed.rank(), None, distributed.world_size())
    total = 0.0
    for batch in micro_batches(
        rows.prompts[mine],
        rows.completions[mine],
        pad_id=pad_id,
        max_tokens=settings.micro_batch_tokens,
        bank=cast.bank,
    ):
        with cast.bank.use(POLICY):
            hidden = token_hidden(cast.bank, POLICY, batch)
            logprobs = token_scores(cast.bank, POLICY, hidden, batch.tokens, 1.0, with_entropy=False).logprobs
            loss = -logprobs.sum() / count
            (settings.ptx_coef * loss).backward()
        total += float(loss.detach())
    return sum(distributed.all_gather_object(total))


def step(optimization: Optimization) -> tuple[float, float]:
    """Sum gradients over processes, clip policy and critic, each by its own norm, and step. Gives both norms, before
    clipping.

    Raises:
        DivergedError: a gradient is not finite. The weights are still those of the step before.
    """
    optimizer = optimization.optimizer
    _add_up([p for group in optimizer.param_groups for p in group["params"]])
    norms = [_clip(group["params"], optimization.max_grad_norm) for group in optimizer.param_groups]
    for name, norm in zip(("policy", "critic"), norms, strict=True):
        if not norm < float("inf"):
            raise DivergedError(
                f"the {name}'s gradient norm is {norm}.", location="ppo", hint="Lower the learning rate."
            )
    optimizer.step()
    optimization.schedule.step()
    optimizer.zero_grad(set_to_none=True)
    return norms[0], norms[1]


def _losses(
    cast: ActorCritic, settings: Ppo, batch: MicroBatch, old: Experience, share: float, kl_coef: float, policy_too: bool
) -> tuple[algorithm.PolicyLoss | None, algorithm.ValueLoss]:
    """Both losses of one micro-batch, over (1, N) tokens, their gradients taken.

    Backward passes run inside `use`: one that computes activations again needs the adapter that they came from.
    """
    bank, policy = cast.bank, None
    if cast.is_shared:
        with bank.use(POLICY):
            with torch.set_grad_enabled(policy_too):
                hidden = token_hidden(bank, POLICY, batch)  # (N, H)
            value = _value_loss(cast, settings, hidden, old)
            loss = value.loss
            if policy_too:
                policy, whole = _policy_loss(cast, settings, batch, hidden, old, kl_coef)
                loss = whole + SHARED_VALUE_WEIGHT * value.loss
            (loss * share).backward()
        return policy, value
    if policy_too:
        with bank.use(POLICY):
            policy, whole = _policy_loss(cast, settings, batch, token_hidden(bank, POLICY, batch), old, kl_coef)
            (whole * share).backward()
    with bank.use(cast.trunk):
        value = _value_loss(cast, settings, token_hidden(bank, cast.trunk, batch), old)
        (value.loss * share).backward()
    return policy, value


def _policy_loss(
    cast: ActorCritic, settings: Ppo, batch: MicroBatch, hidden: Tensor, old: Experience, kl_coef: float
) -> tuple[algorithm.PolicyLoss, Tensor]:
    """The clipped surrogate, and the whole loss: with the entropy bonus, and with KL where it is charged there."""
    with_entropy = settings.entropy_coef > 0
    scores = token_scores(
        cast.bank, POLICY, hidden, batch.tokens, settings.temperature, with_entropy=with_entropy
    )  # (N,)
    high = settings.clip if settings.clip_high is None else settings.clip_high
    policy = algorithm.policy_loss(
        scores.logprobs[None], old.logprobs, old.advantages, old.mask, settings.clip, high, settings.dual_clip
    )
    whole = policy.loss
    if with_entropy:
        whole = whole - settings.entropy_coef * scores.entropy.mean()
    if settings.kl.apply_to == "loss":
        kl = algorithm.kl_estimate(scores.logprobs[None], old.ref_logprobs, settings.kl.estimator)
        whole = whole + kl_coef * kl.mean()
    return policy, whole


def _value_loss(cast: ActorCritic, settings: Ppo, hidden: Tensor, old: Experience) -> algorithm.ValueLoss:
    values = cast.bank.heads[VALUE](hidden)  # (N,)
    return algorithm.value_loss(values[None], old.values, old.returns, old.mask, settings.value_clip)


def _unmoved(like: Tensor) -> algorithm.PolicyStats:
    """The figures of a policy that is not trained: every ratio is 1."""
    zero, one = torch.zeros_like(like), torch.ones_like(like)
    return algorithm.PolicyStats(zero, zero, one, one, one)


def _flat(experience: Experience, rows: list[int]) -> Experience:
    """The valid tokens of `rows` as one row of N, in the micro-batch's order."""
    mask = experience.mask[rows]
    names = ("logprobs", "ref_logprobs", "values", "advantages", "returns")
    flat = {name: getattr(experience, name)[rows][mask][None] for name in names}
    return experience._replace(mask=mask[mask][None], **flat)


def _add_up(parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the sum of all gradients; one that had no rows has none of its own."""
    if distributed.world_size() == 1:
        return
    has_one = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=parameters[0].device)
    distributed.all_reduce_sum([has_one])
    moved = [p for p, count in zip(parameters, has_one.tolist(), strict=True) if count]
    for p in moved:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    distributed.all_reduce_sum([p.grad for p in moved if p.grad is not None])


def _clip(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Clip to `max_norm` where it is positive; the norm before."""
    moved = [p for p in parameters if p.grad is not None]
    return float(nn.utils.clip_grad_norm_(moved, max_norm if max_norm > 0 else float("inf")))
