"""An iteration's figures: distance from the reference, and means over the update's steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_cli.ppo import algorithm, update


def distance(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> dict[str, float]:
    """KL(policy ‖ reference): k1 a sequence and a token, k3 a token, in nats."""
    k1 = torch.where(mask, algorithm.kl_estimate(logprobs, ref_logprobs, "k1"), 0.0)
    k3 = algorithm.kl_estimate(logprobs, ref_logprobs, "k3")[mask]
    return {
        "kl": float(k1.sum(dim=1).mean()),
        "kl.token": float(k1.sum() / mask.sum()),
        "kl.k3": float(k3.mean()),
    }


def over_steps(steps: Sequence[update.Step]) -> dict[str, float]:
    """An iteration's figures from its minibatches': means, and the extremes of the ratio."""
    mean = {name: sum(getattr(s, name) for s in steps) / len(steps) for name in update.Step._fields}
    return {
        "policy_loss": mean["policy_loss"],
        "value_loss": mean["value_loss"],
        "clip_fraction": mean["clip_fraction"],
        "value_clip_fraction": mean["value_clip_fraction"],
        "approx_kl": mean["approx_kl"],
        "ratio.mean": mean["ratio_mean"],
        "ratio.min": min(s.ratio_min for s in steps),
        "ratio.max": max(s.ratio_max for s in steps),
    }
