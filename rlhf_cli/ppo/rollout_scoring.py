"""Score a rollout: log-probabilities, values, rewards, advantages, and the rollout's metrics."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from rlhf_cli import distributed
from rlhf_cli.errors import DivergedError
from rlhf_cli.evaluation import text
from rlhf_cli.inference import scoring
from rlhf_cli.inference.batching import length_mask, pad_tensors
from rlhf_cli.inference.stopping import StoppingRules
from rlhf_cli.ppo import algorithm
from rlhf_cli.ppo.actor_critic import POLICY, REFERENCE, VALUE, ActorCritic
from rlhf_cli.ppo.metrics import kl_metrics
from rlhf_cli.ppo.types import Experience, RewardScores, ScoredRollout, Trajectory
from rlhf_cli.recipe.schema import Ppo
from rlhf_cli.rewards import build
from rlhf_cli.rewards.base import Completions

logger = logging.getLogger(__name__)


class _BatchOptions(TypedDict):
    """How scoring forms its micro-batches."""

    pad_id: int
    max_tokens: int


class RolloutScorer:
    """Score rollouts with the models and the reward functions.

    Attributes:
        reward_functions: The recipe's reward sources.
        moments: Running mean and deviation of all rewards, the only state.
    """

    def __init__(
        self,
        settings: Ppo,
        actor_critic: ActorCritic,
        reward_functions: Sequence[build.RewardFunction],
        stops: StoppingRules,
        pad_id: int,
    ) -> None:
        self.reward_functions = list(reward_functions)
        self.moments = actor_critic.reward_moments or algorithm.RunningMoments()
        self._constant_sources: set[str] = set()  # already warned of
        self._settings, self._actor_critic, self._model = settings, actor_critic, actor_critic.model
        self._stops = stops
        self._batch_options = _BatchOptions(pad_id=pad_id, max_tokens=settings.micro_batch_tokens)

    def score_completions(self, completions: Completions, *, update_moments: bool = True) -> RewardScores:
        """Return the rewards of completions.

        A completion that no source scores has no reward, and does not enter the running moments.

        Args:
            completions: Prompts with their completions.
            update_moments: Whether to update the running mean and deviation.
        """
        settings = self._settings
        scores = build.score_completions(self.reward_functions, self._model, completions, **self._batch_options)
        raw = shaped = build.weighted_sum(self.reward_functions, scores)  # (B,), NaN if no source scored the completion
        if settings.normalize_reward and update_moments:
            self.moments.update(raw[~raw.isnan()])
        if settings.normalize_reward:
            shaped = self.moments.normalize(shaped)
        if settings.reward_clip is not None:
            shaped = shaped.clamp(-settings.reward_clip, settings.reward_clip)
        if settings.missing_eos_penalty is not None:
            is_truncated = [self._stops.is_truncated(response) for response in completions.responses]
            shaped = shaped - settings.missing_eos_penalty * torch.tensor(is_truncated, device=shaped.device)
        return RewardScores(raw, shaped, {name: values.tolist() for name, values in scores.items()})

    def score_rollout(self, completions: Completions, kl_coef: float) -> ScoredRollout:
        """Return all processes' completions, scored and ready to learn from.

        Args:
            completions: This process's prompts with their completions.
            kl_coef: Coefficient of KL, in reward per nat.

        Raises:
            DivergedError: No reward source scored any completion, or a reward is not finite.
        """
        by_process = distributed.all_gather_object(self._score_local(completions, kl_coef))
        # Interleaved, because appending one process's rows to another's would sort the prompts by process.
        trajectories = [trajectory for group in zip(*by_process, strict=True) for trajectory in group]
        return ScoredRollout(_to_experience(trajectories, self._model.device), self._metrics(trajectories, kl_coef))

    def _score_local(self, completions: Completions, kl_coef: float) -> list[Trajectory]:
        """Score this process's completions. Advantages are whitened over those of all processes.

        A completion that no source scores teaches nothing: its advantages are 0, and its returns are its values.
        """
        settings, prompts, responses = self._settings, completions.prompt_ids, completions.responses
        policy = scoring.policy_scores(
            self._model,
            POLICY,
            prompts,
            responses,
            temperature=settings.temperature,
            value_head=VALUE if self._actor_critic.is_shared else None,
            **self._batch_options,
        )
        reference = scoring.token_logprobs(
            self._model, REFERENCE, prompts, responses, temperature=settings.temperature, **self._batch_options
        )
        if self._actor_critic.is_shared:
            critic = [score.values for score in policy]
        else:
            critic = scoring.token_values(
                self._model, self._actor_critic.trunk, VALUE, prompts, responses, **self._batch_options
            )
        rewards = self.score_completions(completions)
        # In main memory from here on, each with one copy: GAE has a few operators per column, and rows are sent apart.
        logprobs, ref_logprobs = pad_tensors([score.logprobs for score in policy]).cpu(), pad_tensors(reference).cpu()
        entropy = pad_tensors([score.entropy for score in policy]).cpu()  # (B, R) each
        values = self._actor_critic.scale_values(pad_tensors(critic).cpu())  # (B, R), with the moments of these rewards
        raw, shaped = rewards.raw.cpu(), rewards.shaped.cpu()  # (B,) each
        lengths = [len(response) for response in responses]
        is_scored = length_mask(lengths) & ~raw.isnan()[:, None]  # (B, R)
        kl = algorithm.kl_estimate(logprobs, ref_logprobs, settings.kl.estimator)
        reward_kl_coef = kl_coef if settings.kl.apply_to == "reward" else 0.0
        token_rewards = algorithm.shape_rewards(kl, shaped, is_scored, reward_kl_coef)
        advantages, returns = algorithm.gae(token_rewards, values, is_scored, settings.gamma, settings.gae_lambda)
        returns = torch.where(is_scored, returns, values)
        device = self._model.device  # where processes exchange tensors
        whitened = algorithm.whiten(advantages.to(device), is_scored.to(device)).cpu()
        return [
            Trajectory(
                prompt=prompts[i],
                response=responses[i],
                reward=reward,
                by_source={name: scores[i] for name, scores in rewards.by_source.items()},
                # A slice would be sent to other processes with the whole tensor that it is a view of.
                entropy=entropy[i, : lengths[i]].clone(),
                logprobs=logprobs[i, : lengths[i]].clone(),
                ref_logprobs=ref_logprobs[i, : lengths[i]].clone(),
                values=values[i, : lengths[i]].clone(),
                advantages=advantages[i, : lengths[i]].clone(),
                whitened=whitened[i, : lengths[i]].clone(),
                returns=returns[i, : lengths[i]].clone(),
            )
            for i, reward in enumerate(raw.tolist())
        ]

    def _metrics(self, trajectories: Sequence[Trajectory], kl_coef: float) -> dict[str, float]:
        """Return the rollout's metrics over the responses of all processes."""
        source_means = _source_means(trajectories)  # raises if nothing was scored
        self._warn_of_constant_sources(trajectories)
        scored = [t for t in trajectories if not math.isnan(t.reward)]
        raw = torch.tensor([t.reward for t in scored])
        values, returns = pad_tensors([t.values for t in scored]), pad_tensors([t.returns for t in scored])
        is_scored = length_mask([len(t.response) for t in scored])
        responses = [t.response for t in trajectories]
        mask = length_mask([len(response) for response in responses])
        logprobs, ref_logprobs = (
            pad_tensors([t.logprobs for t in trajectories]),
            pad_tensors([t.ref_logprobs for t in trajectories]),
        )
        return {
            "reward": float(raw.mean()),
            "reward.std": float(raw.std(correction=0)),
            **source_means,
            **kl_metrics(logprobs, ref_logprobs, mask),
            "kl.coef": kl_coef,
            "entropy": float(torch.cat([t.entropy for t in trajectories]).mean()),
            "explained_variance": float(algorithm.explained_variance(values, returns, is_scored)),
            "advantage.mean": float(torch.cat([t.advantages for t in scored]).mean()),
            "return.mean": float(torch.cat([t.returns for t in scored]).mean()),
            "response_length": sum(map(len, responses)) / len(responses),
            "truncation_rate": sum(map(self._stops.is_truncated, responses)) / len(responses),
            "repeated_4gram_rate": text.repeated_ngram_rate(responses, 4),
            "distinct_2": text.distinct_ngram_rate(responses, 2),
        }

    def _warn_of_constant_sources(self, trajectories: Sequence[Trajectory]) -> None:
        """Warn once of each source that scores all completions of a rollout alike: PPO cannot learn from it."""
        for function in self.reward_functions:
            found = {t.by_source[function.name] for t in trajectories if not math.isnan(t.by_source[function.name])}
            if len(trajectories) > 1 and len(found) == 1 and function.name not in self._constant_sources:
                self._constant_sources.add(function.name)
                logger.warning(
                    f"ppo.reward ({function.name}): constant; found the score {found.pop():g} for all completions of "
                    "a rollout, from which PPO cannot learn"
                )


def _source_means(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Return the mean score of each source over the responses that it scored; no key if it scored none.

    Raises:
        DivergedError: No source scored any response.
    """
    means = {}
    for name in trajectories[0].by_source:
        scores = [t.by_source[name] for t in trajectories if not math.isnan(t.by_source[name])]
        if scores:
            means[f"score.{name}"] = sum(scores) / len(scores)
    if not means:
        raise DivergedError(
            "training.nothing-scored",
            f"{', '.join(trajectories[0].by_source)}: no completion was scored; found None for all "
            f"{len(trajectories)} completions.",
            location="ppo.reward",
            hint="Return a number for at least one completion; None means that a source does not score the completion.",
        )
    return means


def _to_experience(trajectories: Sequence[Trajectory], device: torch.device) -> Experience:
    def padded(tensors: list[Tensor]) -> Tensor:  # -> (B, R)
        return pad_tensors(tensors).to(device)

    responses = [t.response for t in trajectories]
    return Experience(
        prompts=[t.prompt for t in trajectories],
        responses=responses,
        mask=length_mask([len(response) for response in responses], device),
        logprobs=padded([t.logprobs for t in trajectories]),
        ref_logprobs=padded([t.ref_logprobs for t in trajectories]),
        values=padded([t.values for t in trajectories]),
        advantages=padded([t.whitened for t in trajectories]),
        returns=padded([t.returns for t in trajectories]),
    )
