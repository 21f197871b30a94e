"""Data that PPO's parts exchange, with shapes.

B responses of a rollout, R slots of the longest response, R_i tokens of response i. `mask` (B, R) is True on a
response's own tokens. Log-probabilities, KL and entropies are in nats.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_cli.data.rows import PromptRow


class Prompts(NamedTuple):
    """Prompts with their token ids."""

    rows: list[PromptRow]
    ids: list[list[int]]


class Demonstrations(NamedTuple):
    """Token ids of demonstrations for the pretraining loss (PPO-ptx: Ouyang 2022, arXiv:2203.02155, eq. 2)."""

    prompts: list[list[int]]
    completions: list[list[int]]


class PPOData(NamedTuple):
    """The tokenizer and the data that PPO trains on."""

    tokenizer: PreTrainedTokenizerBase
    prompts: Prompts
    sample_prompts: Prompts  # held-out prompts whose completions are logged as training goes
    demonstrations: Demonstrations | None


class RewardScores(NamedTuple):
    """Rewards of the B responses, without KL."""

    raw: Tensor  # (B,) weighted sum of the sources; NaN for responses that no source scored
    shaped: Tensor  # (B,) normalized, clipped and penalized; PPO learns from these; NaN where raw is
    by_source: dict[str, list[float]]  # unweighted scores of each source; NaN for responses that it did not score


class Trajectory(NamedTuple):
    """One scored response, as processes exchange it. Tensors are (R_i,), in main memory."""

    prompt: list[int]
    response: list[int]
    reward: float  # weighted sum of the sources; NaN if none scored the response
    by_source: dict[str, float]  # unweighted score of each source; NaN if it did not score the response
    entropy: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    whitened: Tensor  # advantages, whitened over the responses of all processes
    returns: Tensor


class Experience(NamedTuple):
    """A scored rollout to learn from. Tensors are (B, R), 0 where `mask` is False."""

    prompts: list[list[int]]
    responses: list[list[int]]
    mask: Tensor
    logprobs: Tensor  # of the policy that sampled the responses
    ref_logprobs: Tensor
    values: Tensor  # of the critic at the time of the rollout
    advantages: Tensor  # whitened
    returns: Tensor


class ScoredRollout(NamedTuple):
    """A rollout of all processes, ready to learn from, with its metrics."""

    experience: Experience
    metrics: dict[str, float]


class MinibatchStats(NamedTuple):
    """Metrics of one minibatch."""

    policy_loss: float  # the clipped surrogate only
    value_loss: float
    clip_fraction: float
    value_clip_fraction: float
    approx_kl: float
    ratio_mean: float
    ratio_min: float
    ratio_max: float


class GradientNorms(NamedTuple):
    """Norms of an optimizer step's gradients, before clipping."""

    policy: float
    critic: float


class PolicySnapshot(NamedTuple):
    """Snapshot of the last policy and critic that passed validation."""

    iteration: int  # the iteration whose update produced it; 0 for the start
    weights: list[Tensor]  # in main memory: small for adapters, large for whole models (`adapter: null`)
