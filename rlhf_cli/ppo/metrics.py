"""Compute an iteration's metrics: KL from the reference, and aggregates over the update's minibatches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_cli.ppo import algorithm
from rlhf_cli.ppo.types import MinibatchStats


def kl_metrics(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> dict[str, float]:
    """Return KL(policy ‖ reference) in nats: k1 per sequence and per token, k3 per token. All (B, R)."""
    k1 = torch.where(mask, algorithm.kl_estimate(logprobs, ref_logprobs, "k1"), 0.0)
    k3 = algorithm.kl_estimate(logprobs, ref_logprobs, "k3")[mask]
    return {
        "kl": float(k1.sum(dim=1).mean()),
        "kl.token": float(k1.sum() / mask.sum()),
        "kl.k3": float(k3.mean()),
    }


def aggregate_minibatches(minibatches: Sequence[MinibatchStats]) -> dict[str, float]:
    """Return an iteration's metrics from those of its minibatches: means, and the extremes of the ratio."""
    mean = {
        name: sum(getattr(stats, name) for stats in minibatches) / len(minibatches) for name in MinibatchStats._fields
    }
    return {
        "policy_loss": mean["policy_loss"],
        "value_loss": mean["value_loss"],
        "clip_fraction": mean["clip_fraction"],
        "value_clip_fraction": mean["value_clip_fraction"],
        "approx_kl": mean["approx_kl"],
        "ratio.mean": mean["ratio_mean"],
        "ratio.min": min(stats.ratio_min for stats in minibatches),
        "ratio.max": max(stats.ratio_max for stats in minibatches),
    }
