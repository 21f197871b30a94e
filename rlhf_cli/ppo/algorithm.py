"""Compute PPO's losses, rewards and advantages on token sequences, as pure functions of tensors. Needs only torch.

Shapes: B sequences, R response slots, V vocabulary. `mask` (B, R) is True on valid response tokens; it may be ragged
and may have holes (the output of a tool between two turns). The content of a masked slot, even NaN, changes neither
results nor gradients. Log-probabilities are natural logarithms of the selected tokens, in float32.

Sampling, models and micro-batches are left out on purpose. A loss here is the mean over its own mask. A caller that
splits a minibatch weights each part by its share of the minibatch's valid tokens, so that the split changes nothing.

Sources, by the names used below:
    Schulman 2017   "Proximal policy optimization algorithms", arXiv:1707.06347
    Schulman 2016   "High-dimensional continuous control using generalized advantage estimation", arXiv:1506.02438
    Schulman 2020   "Approximating KL divergence", http://joschu.net/blog/kl-approx.html
    Ziegler 2019    "Fine-tuning language models from human preferences", arXiv:1909.08593, and its code,
                    github.com/openai/lm-human-preferences
    Huang 2024      "The N+ implementation details of RLHF with PPO", arXiv:2403.17031
    Ye 2020         "Mastering complex control in MOBA games with deep reinforcement learning", arXiv:1912.09729
    Yu 2025         "DAPO: an open-source LLM reinforcement learning system at scale", arXiv:2503.14476
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


class Gae(NamedTuple):
    """Advantages, and the returns that the critic learns; both (B, R), 0 in masked slots."""

    advantages: Tensor
    returns: Tensor


class PolicyStats(NamedTuple):
    """Scalars over the valid tokens, detached."""

    clip_fraction: Tensor  # share of tokens whose clipped surrogate is strictly worse
    approx_kl: Tensor  # k3 of KL(old ‖ new), nats per token
    ratio_mean: Tensor
    ratio_min: Tensor
    ratio_max: Tensor


class PolicyLoss(NamedTuple):
    """The policy loss and its statistics."""

    loss: Tensor  # scalar
    stats: PolicyStats


class ValueStats(NamedTuple):
    """Scalars over the valid tokens, detached."""

    clip_fraction: Tensor  # share of tokens whose clipped error is strictly greater


class ValueLoss(NamedTuple):
    """The value loss and its statistics."""

    loss: Tensor  # scalar
    stats: ValueStats


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: Estimator) -> Tensor:
    """Estimate KL(policy ‖ reference) of each token, in nats, from one sample of the policy. (B, R), (B, R) -> (B, R).

    With d = log π − log π_ref (Schulman 2020): k1 = d, unbiased, positive or negative; k2 = d²/2, biased, ≥ 0;
    k3 = e^−d − 1 + d, unbiased, ≥ 0.
    """
    d = logprobs - ref_logprobs
    if estimator == "k1":
        return d
    if estimator == "k2":
        return 0.5 * d.square()
    return torch.expm1(-d) + d


def shape_rewards(kl: Tensor, score: Tensor, mask: Tensor, coef: float) -> Tensor:
    """Compute the reward of each token: −coef·KL, plus the score on the last valid token (Ziegler 2019, eq. 2).

    kl (B, R) nats, score (B,), mask (B, R) -> (B, R), 0 in masked slots. A row without a valid token gets no score.
    """
    rewards = torch.where(mask, -coef * kl, 0.0)
    slots = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, slots, -1).amax(dim=1, keepdim=True)  # (B, 1), −1 if a row is all masked
    return torch.where(slots == last, rewards + score[:, None].to(rewards.dtype), rewards)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float) -> Gae:
    """Estimate advantages by GAE (Schulman 2016, eq. 11–16). (B, R) three times -> Gae of (B, R).

    δ_t = r_t + γ·V(s_{t+1}) − V(s_t) and A_t = δ_t + γλ·A_{t+1}. Here t+1 is the row's next *valid* slot, so that holes
    and the tail are skipped. After the last one, V and A are 0 (the episode ends there, truncated or not). Returns are
    unwhitened advantages + values, the target of TD(λ).
    """
    next_value = torch.zeros_like(values[:, 0])
    next_advantage = torch.zeros_like(next_value)
    columns: list[Tensor] = []
    for t in reversed(range(values.shape[1])):
        valid = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(valid, delta + gamma * gae_lambda * next_advantage, next_advantage)
        next_value = torch.where(valid, values[:, t], next_value)
        columns.append(next_advantage)
    advantages = torch.where(mask, torch.stack(columns[::-1], dim=1), 0.0)
    return Gae(advantages, torch.where(mask, advantages + values, 0.0))


def whiten(x: Tensor, mask: Tensor, center: bool = True) -> Tensor:
    """Scale `x` to unit variance over the valid slots of all devices. (B, R), (B, R) -> (B, R), 0 in masked slots.

    center=True also moves the mean to 0; center=False keeps the mean. The variance is unbiased (Bessel's correction),
    as in torch and Huang 2024. `center` is Ziegler 2019's `shift_mean`. A single valid slot, or equal values, do not
    have a spread: they become 0, or stay unchanged with center=False.
    """
    valid = torch.where(mask, x, 0.0)
    count = _over_devices(mask.sum().to(x.dtype))
    mean = _over_devices(valid.sum()) / count.clamp(min=1)
    deviation = torch.where(mask, valid - mean, 0.0)
    variance = _over_devices(deviation.square().sum()) / (count - 1).clamp(min=1)
    scaled = deviation * torch.rsqrt(variance + 1e-8)
    return scaled if center else torch.where(mask, scaled + mean, 0.0)


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """Compute the negated clipped surrogate, a mean over valid tokens (Schulman 2017, eq. 7). All (B, R) -> scalar.

    With r = π/π_old: −min(r·A, clip(r, 1 − clip_low, 1 + clip_high)·A). Unequal bounds are Yu 2025's "clip-higher"
    (section 3.1). `dual_clip` c > 1 bounds the loss of a token with A < 0 by −c·A (Ye 2020, dual-clip PPO), so that a
    single token with an exploding ratio cannot dominate the step. approx_kl is k3 of KL(old ‖ new), the mean of
    e^d − 1 − d with d = log r (Schulman 2020).
    """
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    advantages = torch.where(mask, advantages, 0.0)
    ratio = log_ratio.exp()
    free = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    losses = torch.maximum(free, clipped)
    if dual_clip is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -dual_clip * advantages), losses)
    with torch.no_grad():
        any_valid = mask.any()
        stats = PolicyStats(
            clip_fraction=_masked_mean((clipped > free).to(ratio.dtype), mask),
            approx_kl=_masked_mean(torch.expm1(log_ratio) - log_ratio, mask),
            ratio_mean=_masked_mean(ratio, mask),
            ratio_min=torch.where(any_valid, torch.where(mask, ratio, torch.inf).amin(), 1.0),
            ratio_max=torch.where(any_valid, torch.where(mask, ratio, -torch.inf).amax(), 1.0),
        )
    return PolicyLoss(_masked_mean(losses, mask), stats)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float) -> ValueLoss:
    """Compute the clipped value loss ½·max((V − R)², (clip(V) − R)²), a mean over valid tokens. All (B, R) -> scalar.

    clip(V) keeps V within ±`clip` of its value at the rollout (the code of Ziegler 2019; also in Huang 2024). The ½ and
    the maximum are from the same sources.
    """
    values, old_values, returns = (torch.where(mask, x, 0.0) for x in (values, old_values, returns))
    kept = torch.clamp(values, old_values - clip, old_values + clip)
    free_error, clipped_error = (values - returns).square(), (kept - returns).square()
    losses = 0.5 * torch.maximum(free_error, clipped_error)
    with torch.no_grad():
        stats = ValueStats(_masked_mean((clipped_error > free_error).to(values.dtype), mask))
    return ValueLoss(_masked_mean(losses, mask), stats)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Compute 1 − Var(R − V) / Var(R) over valid slots. 1: a perfect critic; 0: no better than a constant. -> scalar.

    As in OpenAI baselines' `explained_variance`. If returns do not vary, it is 1 if the critic's error is constant,
    else 0, so that the logged metric is always finite.
    """
    residual, spread = (returns - values)[mask], returns[mask]
    if spread.numel() == 0:
        return values.new_zeros(())
    residual_variance, variance = residual.var(correction=0), spread.var(correction=0)
    flat = (residual_variance == 0).to(variance.dtype)
    return torch.where(variance > 0, 1 - residual_variance / variance, flat)


class AdaptiveKL:
    """A KL coefficient that holds KL at a target: a proportional-integral controller of log coef.

    The integral is that of Ziegler 2019, section 2.2, with n/horizon for K_β as in its code. The proportional part acts
    at once and damps the oscillation of the integral. As in his code, the integral's error is limited, here to -0.3 and
    0.6: while KL rises from 0 or falls from far above the target, the integral must not run away.

    coef is in reward per nat, target in nats per *sequence*, horizon in episodes (sequences). `base` is coef without
    the proportional part.
    """

    def __init__(self, coef: float, target: float, horizon: int) -> None:
        self.base = self.coef = coef
        self.target, self.horizon = target, horizon

    def update(self, kl_per_sequence: float, n: int) -> None:
        """Update coef after `n` episodes with a mean KL of `kl_per_sequence` nats."""
        error = kl_per_sequence / self.target - 1.0
        self.base *= math.exp(min(max(error, -0.3), 0.6) * n / self.horizon)
        self.coef = self.base * math.exp(min(error, 3.0))


class RunningMoments:
    """Mean and deviation of all scores so far, over all devices (Chan, Golub and LeVeque 1979, eq. 2.1).

    They normalize rewards of changing scale. The first scores are normalized by their own mean and deviation.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0.0, 0.0, 0.0  # squares: the sum of squared deviations

    def update(self, scores: Tensor) -> None:
        """Include scores (B,)."""
        x = (scores.cpu() if scores.device.type == "mps" else scores).double()  # MPS lacks float64
        count = float(_over_devices(torch.tensor(float(len(x)), dtype=x.dtype, device=x.device)))
        if count == 0:
            return
        mean = float(_over_devices(x.sum())) / count
        squares = float(_over_devices((x - mean).square().sum()))
        delta, total = mean - self.mean, self.count + count
        self.squares += squares + delta * delta * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    def normalize(self, scores: Tensor) -> Tensor:
        """Return (scores − mean) / deviation, (B,); the deviation is unbiased, and 1 if scores do not vary."""
        deviation = (self.squares / max(self.count - 1, 1)) ** 0.5
        return (scores - self.mean) / (deviation if deviation > 0 else 1.0)


def _masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `x` over the valid slots, or 0 if there are none."""
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def _over_devices(total: Tensor) -> Tensor:
    """Return the sum of `total` over all processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return total
