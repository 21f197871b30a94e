"""A rollout made ready to learn from: log-probabilities, values, rewards, advantages, and the figures of all that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_cli import distributed
from rlhf_cli.errors import DivergedError
from rlhf_cli.evaluation import text
from rlhf_cli.inference import scoring
from rlhf_cli.inference.stopping import StoppingRules
from rlhf_cli.ppo import algorithm, metrics, update
from rlhf_cli.ppo.actor_critic import POLICY, REFERENCE, VALUE, ActorCritic
from rlhf_cli.recipe.schema import Ppo
from rlhf_cli.rewards import build


class RewardScores(NamedTuple):
    """What each response earned, KL aside."""

    raw: Tensor  # (B,) the weighted sum of the sources
    shaped: Tensor  # (B,) after normalizing, clipping and the penalty: what PPO learns from
    by_source: dict[str, list[float]]  # each source's scores, unweighted; NaN where it did not judge


class Trajectories(NamedTuple):
    """A rollout by rows, as processes exchange it: lists of B; tensors are (R_i,), in main memory."""

    prompts: list[list[int]]
    responses: list[list[int]]
    reward: list[float]  # the weighted sum of the sources
    by_source: list[dict[str, float]]
    entropy: list[Tensor]
    logprobs: list[Tensor]
    ref_logprobs: list[Tensor]
    values: list[Tensor]
    whitened: list[Tensor]
    returns: list[Tensor]
    advantages: list[Tensor]


class ScoredRollout(NamedTuple):
    """A rollout ready to learn from, and its figures."""

    experience: update.Experience
    metrics: dict[str, float]


class Scorer:
    """Scores rollouts. Its state is `moments`, of all rewards so far."""

    def __init__(
        self, settings: Ppo, cast: ActorCritic, terms: Sequence[build.RewardFunction], stops: StoppingRules, pad_id: int
    ) -> None:
        self.settings, self.cast, self.bank = settings, cast, cast.bank
        self.terms, self.stops, self.pad_id = terms, stops, pad_id
        self.moments = algorithm.RunningMoments()

    def earned(self, answered: build.Completions, *, learn: bool = True) -> RewardScores:
        """The rewards of responses. `learn=False` leaves the running mean and deviation as they are."""
        settings = self.settings
        limit = settings.micro_batch_tokens
        scores = build.score(self.terms, self.bank, answered, pad_id=self.pad_id, max_tokens=limit)
        raw = shaped = build.weighted(self.terms, scores)
        if settings.normalize_reward and learn:
            self.moments.update(raw)
        if settings.normalize_reward:
            shaped = self.moments.normalize(shaped)
        if settings.reward_clip is not None:
            shaped = shaped.clamp(-settings.reward_clip, settings.reward_clip)
        if settings.missing_eos_penalty is not None:
            cut_off = [self.stops.is_truncated(response) for response in answered.responses]
            shaped = shaped - settings.missing_eos_penalty * torch.tensor(cut_off, device=shaped.device)
        return RewardScores(raw, shaped, {name: score.tolist() for name, score in scores.items()})

    def score(self, answered: build.Completions, coefficient: float) -> ScoredRollout:
        """Everything that the update needs, of all processes' answers. `coefficient`: of KL, in reward per nat."""
        rows = self._local(answered, coefficient)
        parts = distributed.all_gather_object(rows)
        if len(parts) > 1:  # one process's rows after the other's would sort the prompts by process
            rows = Trajectories(
                *([x for group in zip(*lists, strict=True) for x in group] for lists in zip(*parts, strict=True))
            )
        return ScoredRollout(_experience(rows, self.bank.device), self._metrics(rows, coefficient))

    def _local(self, answered: build.Completions, coefficient: float) -> Trajectories:
        """This process's answers, scored; advantages are whitened over all processes'."""
        settings, prompts, responses = self.settings, answered.prompt_ids, answered.responses
        limits: dict[str, Any] = {"pad_id": self.pad_id, "max_tokens": settings.micro_batch_tokens}
        shared = VALUE if self.cast.is_shared else None
        policy = scoring.policy_scores(
            self.bank, POLICY, prompts, responses, temperature=settings.temperature, value_head=shared, **limits
        )
        reference = scoring.token_logprobs(
            self.bank, REFERENCE, prompts, responses, temperature=settings.temperature, **limits
        )
        if self.cast.is_shared:
            value_list = [score.values for score in policy]
        else:
            value_list = scoring.token_values(self.bank, self.cast.trunk, VALUE, prompts, responses, **limits)
        earned = self.earned(answered)
        logprobs, ref_logprobs = scoring.pad([p.logprobs for p in policy]), scoring.pad(reference)  # (B, R)
        values, mask = scoring.pad(value_list), _mask(responses, logprobs.device)
        kl = algorithm.kl_estimate(logprobs, ref_logprobs, settings.kl.estimator)
        charged = coefficient if settings.kl.apply_to == "reward" else 0.0
        shaped = algorithm.shape_rewards(kl, earned.shaped, mask, charged)
        advantages, returns = algorithm.gae(shaped, values, mask, settings.gamma, settings.gae_lambda)
        whitened = algorithm.whiten(advantages, mask)
        judged = [dict(zip(earned.by_source, row, strict=True)) for row in zip(*earned.by_source.values(), strict=True)]
        tensors = (logprobs, ref_logprobs, values, whitened, returns, advantages)
        ragged = ([row[: len(r)].cpu() for row, r in zip(x, responses, strict=True)] for x in tensors)
        return Trajectories(prompts, responses, earned.raw.tolist(), judged, [p.entropy.cpu() for p in policy], *ragged)

    def _metrics(self, rows: Trajectories, coefficient: float) -> dict[str, float]:
        raw, responses = torch.tensor(rows.reward), rows.responses
        pad, mask = scoring.pad, _mask(responses, torch.device("cpu"))
        if all(math.isnan(score) for row in rows.by_source for score in row.values()):
            names, hint = ", ".join(rows.by_source[0]), "None says that a source does not judge an answer; one has to."
            raise DivergedError(f"{names} judged none of {len(responses)} answers.", location="ppo.reward", hint=hint)
        sources = {
            name: [row[name] for row in rows.by_source if not math.isnan(row[name])] for name in rows.by_source[0]
        }
        return {
            "reward": float(raw.mean()),
            "reward.std": float(raw.std(correction=0)),
            **{f"reward.{name}": sum(scores) / len(scores) for name, scores in sources.items() if scores},
            **metrics.distance(pad(rows.logprobs), pad(rows.ref_logprobs), mask),
            "kl.coef": coefficient,
            "entropy": float(torch.cat(rows.entropy).mean()),
            "explained_variance": float(algorithm.explained_variance(pad(rows.values), pad(rows.returns), mask)),
            "advantage.mean": float(torch.cat(rows.advantages).mean()),
            "return.mean": float(torch.cat(rows.returns).mean()),
            "response_length": sum(map(len, responses)) / len(responses),
            "truncation_rate": sum(map(self.stops.is_truncated, responses)) / len(responses),
            "repeated_4gram_rate": text.repeated_ngram_rate(responses, 4),
            "distinct_2": text.distinct_ngram_rate(responses, 2),
        }


def _experience(rows: Trajectories, device: torch.device) -> update.Experience:
    tensors = (rows.logprobs, rows.ref_logprobs, rows.values, rows.whitened, rows.returns)
    mask = _mask(rows.responses, device)
    return update.Experience(rows.prompts, rows.responses, mask, *(scoring.pad(x).to(device) for x in tensors))


def _mask(responses: Sequence[list[int]], device: torch.device) -> Tensor:
    """(B, R), True on the responses' own tokens."""
    lengths = torch.tensor([len(response) for response in responses], device=device)
    return torch.arange(max(map(len, responses)), device=device) < lengths[:, None]
