"""Run the PPO loop: in each iteration roll out, score and update.

This is our own loop on torch and does not use transformers' Trainer, because
- target_kl ends an iteration early, while Trainer counts skipped steps, and its resume divides the step count by a
  fixed number of steps per epoch;
- a checkpoint is the policy at the end of an iteration, which the run writes atomically; Trainer writes its own in
  place, with pickles, through private methods;
- Trainer accepts a hundred TrainingArguments of which this loop uses a dozen; here the others are refused.

Optimizers and schedules come from transformers, trackers from accelerate, and clipping from torch.

Between two iterations all state is in `PPOTrainer._state`, which is all that an exact resume needs.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlhf_cli import distributed
from rlhf_cli.data.rows import PromptRow
from rlhf_cli.errors import DivergedError, ModelError
from rlhf_cli.inference import generation
from rlhf_cli.inference.stopping import StoppingRules
from rlhf_cli.models.device_memory import peak_memory
from rlhf_cli.ppo import algorithm, update
from rlhf_cli.ppo.actor_critic import (
    POLICY,
    VALUE,
    ActorCritic,
    restore_weights,
    save_critic,
    snapshot_weights,
)
from rlhf_cli.ppo.metrics import aggregate_minibatches
from rlhf_cli.ppo.optimization import Optimization, Trackers
from rlhf_cli.ppo.prompt_order import PromptOrder
from rlhf_cli.ppo.rollout_scoring import RolloutScorer
from rlhf_cli.ppo.types import (
    Demonstrations,
    Experience,
    GradientNorms,
    MinibatchStats,
    PolicySnapshot,
    PPOData,
    Prompts,
)
from rlhf_cli.recipe.schema import Ppo
from rlhf_cli.rewards.base import Completions, as_completion, completion_text
from rlhf_cli.rewards.build import RewardFunction
from rlhf_cli.runs.run import Run
from rlhf_cli.runs.training_state import (
    forked_generators,
    generator_states,
    load_state,
    restore_generators,
    save_state,
)

logger = logging.getLogger(__name__)

ROLLOUT_TOKENS = 4  # times micro_batch_tokens: the tokens of a rollout's batch if its memory cannot be estimated
HORIZON_ROLLOUTS = 3  # default horizon of the adaptive KL coefficient: a run of 20 iterations must hold its target
SHUFFLE_SEED_FACTOR = 1_000_003  # keeps the shuffles of different seeds apart for a million iterations


class PPOTrainer:
    """One PPO run. Call `train`, then `save`.

    Attributes:
        model: Policy, reference, reward and critic.
        scorer: Scores rollouts.
        optimization: The optimizer and its schedule.
        run: The run that it writes to.
        rollout_tokens: Tokens of a batch of `generate`, padding included.
    """

    def __init__(
        self,
        settings: Ppo,
        actor_critic: ActorCritic,
        reward_functions: Sequence[RewardFunction],
        data: PPOData,
        optimization: Optimization,
        trackers: Trackers,
        run: Run,
        seed: int,
    ) -> None:
        self.model = actor_critic.model
        self.optimization = optimization
        self.run = run
        self.rollout_tokens = ROLLOUT_TOKENS * settings.micro_batch_tokens
        self._settings = settings
        self._actor_critic = actor_critic
        self._data = data
        self._trackers = trackers
        self._seed = seed
        self._pad_id = int(data.tokenizer.pad_token_id)
        self._stops = StoppingRules(data.tokenizer, settings.stop)
        self.scorer = RolloutScorer(settings, actor_critic, reward_functions, self._stops, self._pad_id)
        self._order = PromptOrder(len(data.prompts.rows), seed)
        self._ptx_order = None if data.demonstrations is None else PromptOrder(len(data.demonstrations.prompts), seed)
        kl = settings.kl
        horizon = kl.horizon or HORIZON_ROLLOUTS * settings.rollout_batch_size * settings.samples_per_prompt
        self._adaptive_kl = None if kl.target is None else algorithm.AdaptiveKL(kl.coef, kl.target, horizon)
        self._saved_iterations: set[int] = set()  # iterations whose policy is in a checkpoint
        self._snapshot: PolicySnapshot | None = None
        self._rollout_rows: list[PromptRow] = []  # prompts of the current iteration

    @property
    def kl_coef(self) -> float:
        """The current coefficient of KL in the reward or the loss, per nat."""
        return self._settings.kl.coef if self._adaptive_kl is None else self._adaptive_kl.coef

    def train(self) -> list[dict[str, float]]:
        """Run all iterations and return the metrics of each.

        Raises:
            DivergedError: A number is not finite, or KL exceeds kl.abort. The hint names the checkpoint of the last
                policy that passed validation.
            StoppedError: A signal was received; the last iteration is saved.
        """
        settings, run = self._settings, self.run
        run.begin(settings.iterations, "iteration", handles_signals=True)
        torch.manual_seed(self._seed + distributed.rank())  # each process samples its own completions
        history = self._resume() if run.resumed_from is not None else []
        if not history:
            self._log_samples(0)
        try:
            for iteration in range(len(history) + 1, settings.iterations + 1):
                history.append(self._run_iteration(iteration))
                self._log(iteration, history[-1])
                is_due = iteration % settings.save_every == 0
                if is_due or iteration == settings.iterations:
                    self._log_samples(iteration)  # before the checkpoint: a resume starts after both
                is_stopped = any(distributed.all_gather_object(run.stop_requested))
                if is_due or is_stopped:
                    self.save_checkpoint(iteration)
                if is_stopped:
                    raise run.stopped(iteration)
        except DivergedError as error:
            raise self._diverged(iteration, error) from error
        finally:
            self._trackers.close()
        return history

    def save(self, model: Path, critic: Path) -> None:
        """Write the policy with its tokenizer, in the format that later stages load, and the critic."""
        self.model.save(POLICY, model)
        self._data.tokenizer.save_pretrained(model)
        save_critic(self._actor_critic, critic)

    def save_checkpoint(self, iteration: int, *, with_state: bool = True) -> Path:
        """Write a checkpoint unless this policy is already in one. Return its directory.

        Args:
            iteration: The iteration that the policy belongs to.
            with_state: Whether to save the state for a resume, too. Otherwise only the models are saved: those of an
                earlier iteration, whose optimizer and generators no longer exist.
        """
        if iteration not in self._saved_iterations:
            with self.run.checkpoint(iteration) as folder:
                self.save(folder / "model", folder / "critic")
                if with_state:
                    save_state(folder / "state", self._state())
            distributed.barrier()  # no process may end before the checkpoint is complete
            self._saved_iterations.add(iteration)
        return self.run.checkpoint_path(iteration)

    def _run_iteration(self, iteration: int) -> dict[str, float]:
        """Roll out, score and update. Return the metrics."""
        settings = self._settings
        start = time.perf_counter()
        indices = [i for i in self._order.take(settings.rollout_batch_size) for _ in range(settings.samples_per_prompt)]
        indices = indices[distributed.rank() :: distributed.world_size()]
        self._rollout_rows = [self._data.prompts.rows[i] for i in indices]
        self.run.reporter.phase("rollout")
        completions = self._complete(Prompts(self._rollout_rows, [self._data.prompts.ids[i] for i in indices]))
        rollout_end = time.perf_counter()
        self.run.reporter.phase("scoring")
        experience, rollout_metrics = self.scorer.score_rollout(completions, self.kl_coef)
        scoring_end = time.perf_counter()
        try:
            self._check_rollout(rollout_metrics)
            self._take_snapshot(iteration - 1)
            self.run.reporter.phase("update")
            update_metrics = self._update(experience, iteration)
        except DivergedError:
            self._log(iteration, rollout_metrics)  # show the metrics of the failed iteration, too
            raise
        end = time.perf_counter()
        if self._adaptive_kl is not None:
            self._adaptive_kl.update(rollout_metrics["kl"], n=len(experience.responses))
        response_tokens = sum(map(len, experience.responses))
        return {
            **rollout_metrics,
            **update_metrics,
            "seconds.rollout": rollout_end - start,
            "seconds.scoring": scoring_end - rollout_end,
            "seconds.update": end - scoring_end,
            "tokens_per_second": response_tokens / (end - start),
            "memory_peak_bytes": peak_memory(self.model.device),
            "episodes": float(self._order.served * settings.samples_per_prompt),
        }

    def _take_snapshot(self, iteration: int) -> None:
        """Keep a copy of the policy of `iteration`, which has just passed validation.

        Of whole models (tens of GB) only every `save_every` iterations, as often as they are written to disk.
        """
        is_due = not self.model.has_full_models or iteration % self._settings.save_every == 0
        if is_due or self._snapshot is None:
            self._snapshot = None  # freed first, so that only one copy is in memory
            self._snapshot = PolicySnapshot(iteration, snapshot_weights(self._actor_critic))

    def _complete(self, prompts: Prompts) -> Completions:
        """Sample a completion of each prompt from the policy."""
        settings = self._settings
        longest_prompt = max(distributed.all_gather_object(max(map(len, prompts.ids))))
        with self.model.use(POLICY) as causal_lm:
            responses = generation.generate(
                causal_lm,
                prompts.ids,
                pad_id=self._pad_id,
                stops=self._stops,
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                batch_size=max(1, self.rollout_tokens // (longest_prompt + settings.max_new_tokens)),
                synced_gpus=self.model.sharded,
            )
        completions = [
            as_completion(row.prompt, self._stops.text(response))
            for row, response in zip(prompts.rows, responses, strict=True)
        ]
        return Completions(prompts.rows, prompts.ids, responses, completions)

    def _check_rollout(self, metrics: Mapping[str, float]) -> None:
        """Raise DivergedError if a metric or a weight is not finite, or if KL exceeds kl.abort."""
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise DivergedError(
                    "training.non-finite",
                    f"{name} of the rollout: must be finite; found {value}.",
                    location="ppo",
                    hint="Lower the learning rate, or raise kl.coef.",
                )
        for role in (POLICY, VALUE):  # attention may hide them: on some devices, a softmax over NaN only returns zeros
            finite = [parameter.isfinite().all() for parameter in self.model.parameters(role)]
            if not torch.stack(finite).all():
                raise DivergedError(
                    "training.non-finite",
                    f"weights of role {role}: not finite.",
                    location="ppo",
                    hint="Lower the learning rate.",
                )
        limit = self._settings.kl.abort
        if limit is not None and metrics["kl"] > limit:
            raise DivergedError(
                "training.kl-limit",
                f"KL from the reference: exceeds kl.abort; found {metrics['kl']:.3g} nats per completion, "
                f"expected at most {limit:g}.",
                location="ppo.kl.abort",
                hint="Raise kl.coef, or lower the learning rate.",
            )

    def _update(self, experience: Experience, iteration: int) -> dict[str, float]:
        """Make `epochs` passes over the rollout in shuffled minibatches, or fewer if target_kl is reached."""
        settings = self._settings
        train_policy = iteration > settings.critic.warmup_iterations
        shuffle = torch.Generator().manual_seed(self._seed * SHUFFLE_SEED_FACTOR + iteration)  # same on all processes
        minibatches: list[MinibatchStats] = []
        norms: list[GradientNorms] = []
        ptx_losses: list[float] = []
        policy_rate, critic_rate = (float(group["lr"]) for group in self.optimization.optimizer.param_groups)
        reached_target = False
        for _ in range(settings.epochs):
            permutation = torch.randperm(len(experience.responses), generator=shuffle)
            for rows in permutation.tensor_split(settings.minibatches):
                stats = update.accumulate_gradients(
                    self._actor_critic,
                    settings,
                    experience,
                    rows.tolist(),
                    pad_id=self._pad_id,
                    kl_coef=self.kl_coef,
                    train_policy=train_policy,
                )
                if minibatches and settings.target_kl is not None and stats.approx_kl > settings.target_kl:
                    reached_target = True
                    self.optimization.optimizer.zero_grad(set_to_none=True)
                    break
                minibatches.append(stats)
                if train_policy and self._ptx_order is not None:
                    ptx_losses.append(self._ptx_loss(len(rows)))
                norms.append(update.optimizer_step(self.optimization))
            if reached_target:
                break
        for _ in range(settings.epochs * settings.minibatches - len(minibatches)):
            self.optimization.schedule.step()  # the decay follows the iterations, however many steps were skipped
        return {
            **aggregate_minibatches(minibatches),
            **({"ptx_loss": sum(ptx_losses) / len(ptx_losses)} if ptx_losses else {}),
            "grad_norm.policy": sum(norm.policy for norm in norms) / len(norms),
            "grad_norm.critic": sum(norm.critic for norm in norms) / len(norms),
            "learning_rate": policy_rate if train_policy else 0.0,
            "learning_rate.critic": critic_rate,
            "optimizer_steps": float(len(minibatches)),
        }

    def _ptx_loss(self, count: int) -> float:
        """Accumulate the gradients of `count` demonstrations and return their loss."""
        assert self._data.demonstrations is not None
        assert self._ptx_order is not None
        prompts, completions = self._data.demonstrations
        indices = self._ptx_order.take(count)
        batch = Demonstrations([prompts[i] for i in indices], [completions[i] for i in indices])
        return update.ptx_loss(self._actor_critic, self._settings, batch, pad_id=self._pad_id)

    def _log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self.run.log(iteration, metrics)
        self._trackers.log(iteration, metrics)

    def _log_samples(self, iteration: int) -> None:
        """Log completions of the sample prompts, with the same seed each time, without changing training's draws."""
        with forked_generators():  # a reward function may draw, too
            torch.manual_seed(self._seed)
            completions = self._complete(self._data.sample_prompts)
            rewards = self.scorer.score_completions(completions, update_moments=False).raw.tolist()
        samples = [
            {
                "prompt": prompt,
                "response": completion_text(completion),
                "reward": None if math.isnan(reward) else reward,
            }
            for prompt, completion, reward in zip(completions.prompts, completions.completions, rewards, strict=True)
        ]
        for sample in samples:
            self.run.sample({"step": iteration, **sample})
        self._trackers.log_samples(iteration, samples)

    def _diverged(self, iteration: int, error: DivergedError) -> DivergedError:
        """Restore and save the last policy that passed validation. Return the error to raise, which names it."""
        issue = error.issues[0]
        prompts = [str(row.prompt) for row in self._rollout_rows]
        logger.debug("\n".join([f"prompts of iteration {iteration}:", *prompts]))
        hint = f"{issue.hint} The prompts of that iteration are in log.txt."
        if self._snapshot is not None:
            restore_weights(self._actor_critic, self._snapshot.weights)
            folder = self.save_checkpoint(self._snapshot.iteration, with_state=False)
            hint += f" The last valid policy is in {folder}."
        message = f"iteration {iteration}: {issue.message}"
        return DivergedError(issue.code, message, location=issue.location or "ppo", hint=hint)

    def _state(self) -> dict[str, Any]:
        """Return all that the next iteration depends on, except for the recipe and its inputs."""
        moments = self.scorer.moments
        return {
            "weights": snapshot_weights(self._actor_critic),
            "optimizer": self.optimization.optimizer.state_dict(),
            "schedule": self.optimization.schedule.state_dict(),
            "generators": distributed.all_gather_object(generator_states()),
            "prompts": self._order.served,
            "demonstrations": None if self._ptx_order is None else self._ptx_order.served,
            "kl_coef": None if self._adaptive_kl is None else (self._adaptive_kl.base, self._adaptive_kl.coef),
            "moments": (moments.count, moments.mean, moments.squares),
            "rollout_tokens": self.rollout_tokens,
        }

    def _resume(self) -> list[dict[str, float]]:
        """Restore the checkpoint that the run resumes from. Return the metrics of the iterations before it.

        Raises:
            ModelError: The checkpoint was saved when the run diverged.
        """
        folder = self.run.resumed_from
        assert folder is not None
        if not (folder / "state").is_dir():
            raise ModelError(
                "model.not-resumable",
                "this checkpoint holds the last valid policy of a run that diverged, and cannot be resumed.",
                location=str(folder),
                hint=f"Set `ppo.start: {folder / 'model'}`, change the settings that made it diverge, and run again.",
            )
        state = load_state(folder / "state")
        restore_weights(self._actor_critic, state["weights"])
        self.optimization.optimizer.load_state_dict(state["optimizer"])
        self.optimization.schedule.load_state_dict(state["schedule"])
        self._order.served = state["prompts"]
        if self._ptx_order is not None:
            self._ptx_order.served = state["demonstrations"]
        if self._adaptive_kl is not None:
            self._adaptive_kl.base, self._adaptive_kl.coef = state["kl_coef"]
        moments = self.scorer.moments
        moments.count, moments.mean, moments.squares = state["moments"]
        self.rollout_tokens = state["rollout_tokens"]  # another device's memory would change the draws
        generators = state["generators"]
        # With another number of processes the draws cannot be the same.
        restore_generators(generators[distributed.rank() % len(generators)])
        self._saved_iterations.add(self.run.resumed_step)
        return self.run.logged()
