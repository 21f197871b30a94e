"""One PPO minibatch: gradients over its micro-batches, clipped, and an optimizer step.

Each micro-batch's loss is weighted by its share of the minibatch's response tokens, so that how the minibatch is cut
changes nothing but rounding. Policy and critic run their forward and backward passes one after the other (unless they
share a trunk): no more than one graph is in memory.

Room for several devices: `count` below becomes the sum over processes, and gradients are summed over processes once,
behind the loop. Wrapping models for that (DDP) would need equal numbers of backward passes everywhere, which token
budgets do not give.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rlhf_cli.errors import DivergedError
from rlhf_cli.ppo import algorithm
from rlhf_cli.ppo.experience import MicroBatch, micro_batches, selected_logprobs, token_hidden
from rlhf_cli.ppo.optimization import Optimization
from rlhf_cli.ppo.roles import POLICY, VALUE, Cast
from rlhf_cli.recipe.schema import Ppo

SHARED_VALUE_WEIGHT = 0.1  # of the value loss on a shared trunk, as in TRL and lm-human-preferences


class Experience(NamedTuple):
    """One rollout, scored. Tensors are (B, R), 0 where `mask` is False."""

    prompts: list[list[int]]
    responses: list[list[int]]
    mask: Tensor
    logprobs: Tensor  # old: of the policy that sampled
    values: Tensor  # old
    advantages: Tensor  # whitened
    returns: Tensor


class Step(NamedTuple):
    """Figures of one minibatch, as plain numbers."""

    policy_loss: float
    value_loss: float
    clip_fraction: float
    value_clip_fraction: float
    approx_kl: float
    ratio_mean: float
    ratio_min: float
    ratio_max: float


def gradients(
    cast: Cast, settings: Ppo, experience: Experience, rows: Sequence[int], *, pad_id: int, policy_too: bool = True
) -> Step:
    """Add the minibatch's gradients to the parameters'. `policy_too=False`: the critic's alone."""
    prompts, responses = [experience.prompts[i] for i in rows], [experience.responses[i] for i in rows]
    count = sum(map(len, responses))
    means: list[Tensor] = []  # (6,) a micro-batch, weighted
    ranges: list[Tensor] = []  # (2,)
    for batch in micro_batches(
        prompts, responses, pad_id=pad_id, max_tokens=settings.micro_batch_tokens, device=cast.bank.device
    ):
        share = len(batch.tokens) / count
        old = _flat(experience, [rows[i] for i in batch.rows])
        policy, value = _losses(cast, settings, batch, old, share, policy_too)
        loss, stats = policy if policy is not None else (torch.zeros_like(value.loss), _unmoved(value.loss))
        figures = [loss.detach(), value.loss.detach(), stats.clip_fraction, value.stats.clip_fraction]
        means.append(share * torch.stack([*figures, stats.approx_kl, stats.ratio_mean]))
        ranges.append(torch.stack([stats.ratio_min, stats.ratio_max]))
    low, high = torch.stack(ranges).unbind(dim=1)
    whole = torch.cat([torch.stack(means).sum(dim=0), low.amin(dim=0, keepdim=True), high.amax(dim=0, keepdim=True)])
    return Step(*whole.tolist())  # one wait for the device


def step(optimization: Optimization) -> tuple[float, float]:
    """Clip policy and critic, each by its own norm, and step. Gives both norms, before clipping.

    Raises:
        DivergedError: a gradient is not finite. The weights are still those of the step before.
    """
    optimizer = optimization.optimizer
    norms = [_clip(group["params"], optimization.max_grad_norm) for group in optimizer.param_groups]
    for name, norm in zip(("policy", "critic"), norms, strict=True):
        if not norm < float("inf"):
            raise DivergedError(f"the {name}'s gradient norm is {norm}.", where="ppo", mend="Lower the learning rate.")
    optimizer.step()
    optimization.schedule.step()
    optimizer.zero_grad(set_to_none=True)
    return norms[0], norms[1]


def _losses(
    cast: Cast, settings: Ppo, batch: MicroBatch, old: Experience, share: float, policy_too: bool
) -> tuple[algorithm.PolicyLoss | None, algorithm.ValueLoss]:
    """Both losses of one micro-batch, over (1, N) tokens, their gradients taken."""
    policy = None
    if policy_too or cast.is_shared:
        with torch.set_grad_enabled(policy_too):
            hidden = token_hidden(cast.bank, POLICY, batch)  # (N, H)
    if policy_too:
        logprobs = selected_logprobs(cast.bank.logits(POLICY, hidden), batch.tokens, settings.temperature)
        clip = settings.clip
        policy = algorithm.policy_loss(logprobs[None], old.logprobs, old.advantages, old.mask, clip, clip)
        if not cast.is_shared:
            (policy.loss * share).backward()
    if not cast.is_shared:
        hidden = token_hidden(cast.bank, cast.trunk, batch)
    values = cast.bank.heads[VALUE](hidden)  # (N,)
    value = algorithm.value_loss(values[None], old.values, old.returns, old.mask, settings.value_clip)
    loss = value.loss
    if cast.is_shared and policy is not None:
        loss = policy.loss + SHARED_VALUE_WEIGHT * value.loss
    (loss * share).backward()
    return policy, value


def _unmoved(like: Tensor) -> algorithm.PolicyStats:
    """The figures of a policy that is not trained: every ratio is 1."""
    zero, one = torch.zeros_like(like), torch.ones_like(like)
    return algorithm.PolicyStats(zero, zero, one, one, one)


def _flat(experience: Experience, rows: list[int]) -> Experience:
    """The valid tokens of `rows` as one row of N, in the micro-batch's order."""
    mask = experience.mask[rows]
    flat = {
        name: getattr(experience, name)[rows][mask][None] for name in ("logprobs", "values", "advantages", "returns")
    }
    return experience._replace(mask=mask[mask][None], **flat)


def _clip(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Clip to `max_norm` where it is positive; the norm before."""
    moved = [p for p in parameters if p.grad is not None]
    return float(nn.utils.clip_grad_norm_(moved, max_norm if max_norm > 0 else float("inf")))
