"""The PPO loop: roll out, score, update; one iteration after another.

A loop of our own on torch rather than a subclass of transformers.PPOTrainer, because
- an iteration ends where PPO says (target_kl is a `break`), while a PPOTrainer step that is skipped still counts, and its
  resume divides the step count by a fixed number of steps an epoch;
- a checkpoint is the policy at an iteration's end, written by the run atomically; PPOTrainer writes its own, in place and
  with pickles, through private methods;
- a PPOTrainer would take a hundred TrainingArguments of which this loop acts on a dozen; here the others are refused.
What was worth having comes from the libraries directly: optimizers and schedules from transformers, trackers from
accelerate, clipping from torch.

Between two iterations everything is at rest: what is saved then (`PPOTrainer._state`) is all that an exact resume needs.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_cli import distributed
from rlhf_cli.data.rows import PromptRow
from rlhf_cli.errors import DivergedError, ModelError
from rlhf_cli.inference import generation
from rlhf_cli.inference.stopping import StoppingRules
from rlhf_cli.models import footprint
from rlhf_cli.ppo import algorithm, metrics, update
from rlhf_cli.ppo.actor_critic import POLICY, VALUE, ActorCritic, copied, restore, save_critic
from rlhf_cli.ppo.optimization import Optimization, Trackers
from rlhf_cli.ppo.rollout_scoring import Scorer
from rlhf_cli.recipe.schema import Ppo
from rlhf_cli.rewards import build
from rlhf_cli.runs.run import Run
from rlhf_cli.runs.training_state import generator_states, load_state, restore_generators, save_state

logger = logging.getLogger(__name__)

ROLLOUT_TOKENS = 4  # times micro_batch_tokens that one batch of `generate` may hold: it keeps no activations


class Prompts(NamedTuple):
    """Prompts with their token ids."""

    rows: list[PromptRow]
    ids: list[list[int]]


class PolicySnapshot(NamedTuple):
    """The last policy whose rollout passed the checks, and its critic."""

    iteration: int  # whose update it came from; 0: the start
    weights: list[Tensor]  # in main memory: an adapter's are small, those of whole models are not (`adapter: null`)


class PPOTrainer:
    """One PPO run. `train` is its only door; everything else is an iteration's parts, in their order."""

    def __init__(
        self,
        settings: Ppo,
        cast: ActorCritic,
        terms: Sequence[build.RewardFunction],
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompts,
        watched: Prompts,
        demonstrations: update.Demonstrations | None,
        optimization: Optimization,
        trackers: Trackers,
        run: Run,
        seed: int,
    ) -> None:
        self.settings, self.cast, self.bank = settings, cast, cast.bank
        self.tokenizer, self.pad_id = tokenizer, int(tokenizer.pad_token_id)
        self.stops = StoppingRules(tokenizer, settings.stop)
        self.scorer = Scorer(settings, cast, terms, self.stops, self.pad_id)
        self.prompts, self.watched, self.demonstrations = prompts, watched, demonstrations
        self.optimization, self.trackers, self.run, self.seed = optimization, trackers, run, seed
        self.order = generation.PromptOrder(len(prompts.rows), seed)
        self.imitated = None if demonstrations is None else generation.PromptOrder(len(demonstrations.prompts), seed)
        kl = settings.kl
        self.adaptive = None if kl.target is None else algorithm.AdaptiveKL(kl.coef, kl.target, kl.horizon)
        self.saved: set[int] = set()  # iterations whose policy is in a checkpoint
        self.good: PolicySnapshot | None = None
        self.asked: list[PromptRow] = []  # of the iteration that is under way

    @property
    def coefficient(self) -> float:
        """Of KL in the reward (or the loss), now; per nat."""
        return self.settings.kl.coef if self.adaptive is None else self.adaptive.coef

    @property
    def _samples(self) -> int:
        return self.settings.samples_per_prompt

    def train(self) -> list[dict[str, float]]:
        """All iterations; gives each one's metrics.

        Raises:
            DivergedError: a number is not finite, or KL is beyond kl.abort. It names the last good policy's checkpoint.
        """
        settings, run = self.settings, self.run
        run.begin(settings.iterations, "iterations", handles_signals=True)
        torch.manual_seed(self.seed + distributed.rank())  # each process samples answers of its own
        history = self._resume() if run.resumed_from is not None else []
        if not history:
            self._sample(0)
        try:
            for iteration in range(len(history) + 1, settings.iterations + 1):
                history.append(self._iterate(iteration))
                self._log(iteration, history[-1])
                is_due = iteration % settings.save_every == 0
                if is_due or iteration == settings.iterations:
                    self._sample(iteration)  # before it is saved: a resume goes on behind both
                is_stopped = any(distributed.all_gather_object(run.stop_requested))
                if is_due or is_stopped:
                    self._save(iteration, state=True)
                if is_stopped:
                    raise run.stopped(iteration)
        except DivergedError as error:
            found = error.issues[0]
            hint = f"{found.hint} The prompts of that iteration are in log.txt."
            logger.debug("\n".join([f"prompts of iteration {iteration}:", *(str(row.prompt) for row in self.asked)]))
            if self.good is not None:
                restore(self.cast, self.good.weights)
                hint += f" The last good policy is in {self._save(self.good.iteration, state=False)}."
            raise DivergedError(
                f"iteration {iteration}: {found.message}", location=found.location, hint=hint
            ) from error
        finally:
            self.trackers.close()
        return history

    def save(self, model: Path, critic: Path) -> None:
        """Write the policy with its tokenizer, as later stages load it, and the critic."""
        self.bank.save(POLICY, model)
        self.tokenizer.save_pretrained(model)
        save_critic(self.cast, critic)

    def _iterate(self, iteration: int) -> dict[str, float]:
        begin = time.perf_counter()
        chosen = [i for i in self.order.take(self.settings.rollout_batch_size) for _ in range(self._samples)]
        chosen = chosen[distributed.rank() :: distributed.world_size()]
        self.asked = [self.prompts.rows[i] for i in chosen]
        answered = self._answer(Prompts(self.asked, [self.prompts.ids[i] for i in chosen]))
        rolled_out = time.perf_counter()
        scored = self.scorer.score(answered, self.coefficient)
        scoring_done = time.perf_counter()
        try:
            self._check(scored.metrics)
            self.good = None  # so that there is one copy at a time
            self.good = PolicySnapshot(iteration - 1, copied(self.cast))
            learned = self._learn(scored.experience, iteration)
        except DivergedError:
            self._log(iteration, scored.metrics)  # what it died of is to be seen
            raise
        end = time.perf_counter()
        if self.adaptive is not None:
            self.adaptive.update(scored.metrics["kl"], n=len(scored.experience.responses))
        return {
            **scored.metrics,
            **learned,
            "seconds.rollout": rolled_out - begin,
            "seconds.scoring": scoring_done - rolled_out,
            "seconds.update": end - scoring_done,
            "tokens_per_second": sum(map(len, scored.experience.responses)) / (end - begin),  # response tokens
            "memory_peak_bytes": footprint.peak(self.bank.device),
            "episodes": float(self.order.served * self._samples),
        }

    def _answer(self, prompts: Prompts) -> build.Completions:
        settings = self.settings
        longest = max(distributed.all_gather_object(max(map(len, prompts.ids)))) + settings.max_new_tokens
        with self.bank.use(POLICY) as model:
            responses = generation.generate(
                model,
                prompts.ids,
                pad_id=self.pad_id,
                stops=self.stops,
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                batch_size=max(1, ROLLOUT_TOKENS * settings.micro_batch_tokens // longest),
                synced_gpus=self.bank.sharded,
            )
        texts = [self.stops.text(response) for response in responses]
        completions = [build.as_completion(row.prompt, t) for row, t in zip(prompts.rows, texts, strict=True)]
        return build.Completions(prompts.rows, prompts.ids, responses, completions)

    def _check(self, metrics: Mapping[str, float]) -> None:
        """Raise DivergedError where learning from this rollout would make things worse."""
        for name, value in metrics.items():
            if not math.isfinite(value):
                hint = "Lower the learning rate, or raise kl.coef."
                raise DivergedError(f"{name} of a rollout is {value}.", location="ppo", hint=hint)
        for role in (POLICY, VALUE):  # attention may hide them: a softmax over NaN alone gives zeros on some devices
            if not all(bool(p.isfinite().all()) for p in self.bank.parameters(role)):
                hint = "Lower the learning rate."
                raise DivergedError(f"the weights of role {role} are not finite.", location="ppo", hint=hint)
        abort = self.settings.kl.abort
        if abort is not None and metrics["kl"] > abort:
            raise DivergedError(
                f"the policy is {metrics['kl']:.3g} nats a sequence from its reference; kl.abort is {abort:g}.",
                location="ppo.kl.abort",
                hint="Raise kl.coef, or lower the learning rate.",
            )

    def _learn(self, scored: update.Experience, iteration: int) -> dict[str, float]:
        """`epochs` passes over the rollout in shuffled minibatches, fewer where target_kl is reached."""
        settings = self.settings
        policy_too = iteration > settings.critic.warmup_iterations
        shuffle = torch.Generator().manual_seed(self.seed * 1_000_003 + iteration)  # the same in every process
        steps: list[update.Step] = []
        norms: list[tuple[float, float]] = []
        imitations: list[float] = []
        rates = [float(group["lr"]) for group in self.optimization.optimizer.param_groups]
        stopped = False
        for _ in range(settings.epochs):
            for rows in torch.randperm(len(scored.responses), generator=shuffle).tensor_split(settings.minibatches):
                found = update.gradients(
                    self.cast,
                    settings,
                    scored,
                    rows.tolist(),
                    pad_id=self.pad_id,
                    kl_coef=self.coefficient,
                    policy_too=policy_too,
                )
                stopped = bool(steps) and settings.target_kl is not None and found.approx_kl > settings.target_kl
                if stopped:  # this step would start from beyond the target
                    self.optimization.optimizer.zero_grad(set_to_none=True)
                    break
                if policy_too and self.demonstrations is not None:
                    imitations.append(self._imitate(len(rows)))
                steps.append(found)
                norms.append(update.step(self.optimization))
            if stopped:
                break
        return {
            **metrics.over_steps(steps),
            **({"ptx_loss": sum(imitations) / len(imitations)} if imitations else {}),
            "grad_norm.policy": sum(norm for norm, _ in norms) / len(norms),
            "grad_norm.critic": sum(norm for _, norm in norms) / len(norms),
            "learning_rate": rates[0] if policy_too else 0.0,
            "learning_rate.critic": rates[1],
            "optimizer_steps": float(len(steps)),
        }

    def _imitate(self, count: int) -> float:
        """Add the gradients of `count` demonstrations; gives their loss."""
        assert self.demonstrations is not None
        assert self.imitated is not None
        prompts, completions = self.demonstrations
        chosen = self.imitated.take(count)
        rows = update.Demonstrations([prompts[i] for i in chosen], [completions[i] for i in chosen])
        return update.ptx_loss(self.cast, self.settings, rows, pad_id=self.pad_id)

    def _log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self.run.log(iteration, metrics)
        self.trackers.log(iteration, metrics)

    def _save(self, iteration: int, *, state: bool) -> Path:
        """A checkpoint, unless this very policy is in one; gives its folder.

        `state=False`: the policy alone, of an iteration that is past, whose optimizer and generators are gone.
        """
        if iteration not in self.saved:
            with self.run.checkpoint(iteration) as folder:
                self.save(folder / "model", folder / "critic")
                if state:
                    save_state(folder / "state", self._state())
            distributed.all_gather_object(None)  # no process may end before it is saved
            self.saved.add(iteration)
        return self.run.checkpoint_path(iteration)

    def _state(self) -> dict[str, Any]:
        """All that the next iteration depends on, beside the recipe and its inputs."""
        moments = self.scorer.moments
        return {
            "weights": copied(self.cast),
            "optimizer": self.optimization.optimizer.state_dict(),
            "schedule": self.optimization.schedule.state_dict(),
            "generators": distributed.all_gather_object(generator_states()),
            "prompts": self.order.served,
            "demonstrations": None if self.imitated is None else self.imitated.served,
            "kl_coef": self.coefficient,
            "moments": (moments.count, moments.mean, moments.squares),
        }

    def _resume(self) -> list[dict[str, float]]:
        """Go back to the checkpoint that the run goes on from; gives the metrics of the iterations before it."""
        folder = self.run.resumed_from
        assert folder is not None
        if not (folder / "state").is_dir():
            hint = f"Set ppo.start: {folder / 'model'}, and what made it diverge, and start anew."
            message = "this run diverged: its last good policy is no place to go on from."
            raise ModelError(message, location=str(folder), hint=hint)
        tree = load_state(folder / "state")
        restore(self.cast, tree["weights"])
        self.optimization.optimizer.load_state_dict(tree["optimizer"])
        self.optimization.schedule.load_state_dict(tree["schedule"])
        self.order.served = tree["prompts"]
        if self.imitated is not None:
            self.imitated.served = tree["demonstrations"]
        if self.adaptive is not None:
            self.adaptive.coef = tree["kl_coef"]
        moments = self.scorer.moments
        moments.count, moments.mean, moments.squares = tree["moments"]
        restore_generators(tree["generators"][distributed.rank()])
        self.saved.add(self.run.resumed_step)
        return self.run.logged()

    def _sample(self, iteration: int) -> None:
        """Answers to the watched prompts, drawn alike each time and without touching training's own draws."""
        devices = [self.bank.device] if self.bank.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.seed)
            answered = self._answer(self.watched)
        scores = self.scorer.earned(answered, learn=False).raw.tolist()
        rows = []
        for prompt, completion, score in zip(answered.prompts, answered.completions, scores, strict=True):
            said = completion if isinstance(completion, str) else completion[-1]["content"]
            rows.append({"prompt": prompt, "response": said, "reward": score})
        for row in rows:
            self.run.sample({"step": iteration, **row})
        self.trackers.samples(iteration, rows)
