"""A rollout made ready to learn from: log-probabilities, values, rewards, advantages, and the figures of all that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_cli.evaluation import text
from rlhf_cli.ppo import algorithm, experience, figures, rewards, update
from rlhf_cli.ppo.roles import POLICY, REFERENCE, VALUE, Cast
from rlhf_cli.ppo.stops import Stops
from rlhf_cli.recipe.schema import Ppo


class Earned(NamedTuple):
    """What each response earned, KL aside."""

    raw: Tensor  # (B,) the weighted sum of the sources
    shaped: Tensor  # (B,) after normalizing, clipping and the penalty: what PPO learns from
    by_source: dict[str, float]  # each source's mean over the responses that it judged


class Scored(NamedTuple):
    """A rollout ready to learn from, and its figures."""

    experience: update.Experience
    metrics: dict[str, float]


class Scorer:
    """Scores rollouts. Its state is `moments`, of all rewards so far."""

    def __init__(self, settings: Ppo, cast: Cast, terms: Sequence[rewards.Term], stops: Stops, pad_id: int) -> None:
        self.settings, self.cast, self.bank = settings, cast, cast.bank
        self.terms, self.stops, self.pad_id = terms, stops, pad_id
        self.moments = algorithm.RunningMoments()

    def earned(self, answered: rewards.Answered, *, learn: bool = True) -> Earned:
        """The rewards of responses. `learn=False` leaves the running mean and deviation as they are."""
        settings = self.settings
        limit = settings.micro_batch_tokens
        scores = rewards.score(self.terms, self.bank, answered, pad_id=self.pad_id, max_tokens=limit)
        raw = shaped = rewards.weighted(self.terms, scores)
        if settings.normalize_reward and learn:
            self.moments.update(raw)
        if settings.normalize_reward:
            shaped = self.moments.normalize(shaped)
        if settings.reward_clip is not None:
            shaped = shaped.clamp(-settings.reward_clip, settings.reward_clip)
        if settings.missing_eos_penalty is not None:
            cut_off = [self.stops.is_truncated(response) for response in answered.responses]
            shaped = shaped - settings.missing_eos_penalty * torch.tensor(cut_off, device=shaped.device)
        judged = {name: score[~score.isnan()] for name, score in scores.items()}
        means = {f"reward.{name}": float(score.mean()) for name, score in judged.items() if len(score)}
        return Earned(raw, shaped, means)

    def score(self, answered: rewards.Answered, coefficient: float) -> Scored:
        """Everything that the update needs. `coefficient`: of KL, in reward per nat."""
        settings, prompts, responses = self.settings, answered.prompt_ids, answered.responses
        limits: dict[str, Any] = {"pad_id": self.pad_id, "max_tokens": settings.micro_batch_tokens}
        shared = VALUE if self.cast.is_shared else None
        policy = experience.policy_scores(
            self.bank, POLICY, prompts, responses, temperature=settings.temperature, value_head=shared, **limits
        )
        reference = experience.token_logprobs(
            self.bank, REFERENCE, prompts, responses, temperature=settings.temperature, **limits
        )
        if self.cast.is_shared:
            value_list = [score.values for score in policy]
        else:
            value_list = experience.token_values(self.bank, self.cast.trunk, VALUE, prompts, responses, **limits)
        earned = self.earned(answered)
        logprobs, ref_logprobs = experience.pad([p.logprobs for p in policy]), experience.pad(reference)  # (B, R)
        values = experience.pad(value_list)
        lengths = torch.tensor([len(response) for response in responses], device=values.device)
        mask = torch.arange(values.shape[1], device=values.device) < lengths[:, None]  # (B, R)
        kl = algorithm.kl_estimate(logprobs, ref_logprobs, settings.kl.estimator)
        charged = coefficient if settings.kl.apply_to == "reward" else 0.0
        shaped = algorithm.shape_rewards(kl, earned.shaped, mask, charged)
        advantages, returns = algorithm.gae(shaped, values, mask, settings.gamma, settings.lam)
        metrics = {
            "reward": float(earned.raw.mean()),
            "reward.std": float(earned.raw.std(correction=0)),
            **earned.by_source,
            **figures.distance(logprobs, ref_logprobs, mask),
            "kl.coef": coefficient,
            "entropy": float(torch.cat([p.entropy for p in policy]).mean()),
            "explained_variance": float(algorithm.explained_variance(values, returns, mask)),
            "advantage.mean": float(advantages[mask].mean()),
            "return.mean": float(returns[mask].mean()),
            "response_length": sum(map(len, responses)) / len(responses),
            "truncation_rate": sum(map(self.stops.is_truncated, responses)) / len(responses),
            "repeated_4gram_rate": text.repeated_ngram_rate(responses, 4),
            "distinct_2": text.distinct_ngram_rate(responses, 2),
        }
        whitened = algorithm.whiten(advantages, mask)
        ready = update.Experience(prompts, responses, mask, logprobs, ref_logprobs, values, whitened, returns)
        return Scored(ready, metrics)
