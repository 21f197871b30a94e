"""The PPO loop: roll out, score, update; one iteration after another.

A loop of our own on torch rather than a subclass of transformers.Trainer, because
- an iteration ends where PPO says (target_kl is a `break`), while a Trainer step that is skipped still counts, and its
  resume divides the step count by a fixed number of steps an epoch;
- a checkpoint is the policy at an iteration's end, written by the run atomically; Trainer writes its own, in place and
  with pickles, through private methods;
- a Trainer would take a hundred TrainingArguments of which this loop acts on a dozen; here the others are refused.
What was worth having comes from the libraries directly: optimizers and schedules from transformers, trackers from
accelerate, clipping from torch.

All that an exact resume would need lies in `Trainer.order.served`, `.coefficient`, `.optimization`, the roles'
parameters and torch's generators, all of them at rest between two iterations.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_cli.data import template
from rlhf_cli.data.rows import PromptRow
from rlhf_cli.errors import DivergedError
from rlhf_cli.evaluation import text
from rlhf_cli.ppo import algorithm, experience, figures, rewards, rollout, update
from rlhf_cli.ppo.optimization import Optimization, Trackers
from rlhf_cli.ppo.roles import POLICY, REFERENCE, VALUE, Cast, copied, restore, save_critic
from rlhf_cli.recipe.schema import Ppo
from rlhf_cli.runs.run import Run

ROLLOUT_TOKENS = 4  # times micro_batch_tokens that one batch of `generate` may hold: it keeps no activations


class Prompts(NamedTuple):
    """Prompts with their token ids."""

    rows: list[PromptRow]
    ids: list[list[int]]


class Scored(NamedTuple):
    """A rollout ready to learn from, and its figures."""

    experience: update.Experience
    metrics: dict[str, float]


class Good(NamedTuple):
    """The last policy whose rollout passed the checks, and its critic."""

    iteration: int  # whose update it came from; 0: the start
    weights: list[Tensor]  # in main memory: an adapter's are small, those of whole models are not (`adapter: null`)


class Trainer:
    """One PPO run. `train` is its only door; everything else is an iteration's parts, in their order."""

    def __init__(
        self,
        settings: Ppo,
        cast: Cast,
        terms: Sequence[rewards.Term],
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompts,
        watched: Prompts,
        optimization: Optimization,
        trackers: Trackers,
        run: Run,
        seed: int,
    ) -> None:
        self.settings, self.cast, self.bank, self.terms = settings, cast, cast.bank, terms
        self.tokenizer, self.pad_id = tokenizer, int(tokenizer.pad_token_id)
        self.stop_ids = template.stop_ids(tokenizer)
        self.prompts, self.watched = prompts, watched
        self.optimization, self.trackers, self.run, self.seed = optimization, trackers, run, seed
        self.order = rollout.PromptOrder(len(prompts.rows), seed)
        kl = settings.kl
        self.adaptive = None if kl.target is None else algorithm.AdaptiveKL(kl.coef, kl.target, kl.horizon)
        self.saved: set[int] = set()  # iterations whose policy is in a checkpoint
        self.good: Good | None = None

    @property
    def coefficient(self) -> float:
        """Of KL in the reward, now; in reward per nat."""
        return self.settings.kl.coef if self.adaptive is None else self.adaptive.coef

    def train(self) -> list[dict[str, float]]:
        """All iterations; gives each one's metrics.

        Raises:
            DivergedError: a number is not finite, or KL is beyond kl.abort. It names the last good policy's checkpoint.
        """
        history: list[dict[str, float]] = []
        self.run.begin(self.settings.iterations, "iterations")
        self._sample(0)
        try:
            for iteration in range(1, self.settings.iterations + 1):
                history.append(self._iterate(iteration))
                self._log(iteration, history[-1])
                if iteration % self.settings.save_every == 0:
                    self._save(iteration)
                if iteration % self.settings.save_every == 0 or iteration == self.settings.iterations:
                    self._sample(iteration)
        except DivergedError as error:
            if self.good is None:
                raise
            restore(self.cast, self.good.weights)
            folder = self._save(self.good.iteration)
            found = error.faults[0]
            mend = f"{found.mend} The last good policy is in {folder}."
            raise DivergedError(found.message, where=found.where, mend=mend) from error
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
        chosen = self.order.take(self.settings.rollout_batch_size)
        answered = self._answer(Prompts([self.prompts.rows[i] for i in chosen], [self.prompts.ids[i] for i in chosen]))
        rolled_out = time.perf_counter()
        scored = self._score(answered)
        scoring_done = time.perf_counter()
        try:
            self._check(scored.metrics)
            self.good = None  # so that there is one copy at a time
            self.good = Good(iteration - 1, copied(self.cast))
            learned = self._learn(scored.experience, policy_too=iteration > self.settings.critic.warmup_iterations)
        except DivergedError:
            self._log(iteration, scored.metrics)  # what it died of is to be seen
            raise
        end = time.perf_counter()
        if self.adaptive is not None:
            self.adaptive.update(scored.metrics["kl"], n=len(chosen))
        return {
            **scored.metrics,
            **learned,
            "seconds.rollout": rolled_out - begin,
            "seconds.scoring": scoring_done - rolled_out,
            "seconds.update": end - scoring_done,
            "tokens_per_second": sum(map(len, answered.responses)) / (end - begin),  # response tokens
            "memory_peak_bytes": figures.memory_peak(self.bank.device),
            "episodes": float(self.order.served),
        }

    def _answer(self, prompts: Prompts) -> rewards.Answered:
        settings = self.settings
        longest = max(map(len, prompts.ids)) + settings.max_new_tokens
        with self.bank.use(POLICY) as model:
            responses = rollout.generate(
                model,
                prompts.ids,
                pad_id=self.pad_id,
                stop_ids=self.stop_ids,
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                batch_size=max(1, ROLLOUT_TOKENS * settings.micro_batch_tokens // longest),
            )
        texts = [template.decode(self.tokenizer, response) for response in responses]
        completions = [rewards.as_completion(row.prompt, t) for row, t in zip(prompts.rows, texts, strict=True)]
        return rewards.Answered(prompts.rows, prompts.ids, responses, completions)

    def _rewards(self, answered: rewards.Answered) -> tuple[Tensor, dict[str, float]]:
        """What each response earned, (B,), KL aside; and each source's mean over the responses that it judged."""
        limit = self.settings.micro_batch_tokens
        scores = rewards.score(self.terms, self.bank, answered, pad_id=self.pad_id, max_tokens=limit)
        total = rewards.weighted(self.terms, scores)
        if self.settings.missing_eos_penalty is not None:
            cut_off = [rollout.is_truncated(response, self.stop_ids) for response in answered.responses]
            total = total - self.settings.missing_eos_penalty * torch.tensor(cut_off, device=total.device)
        judged = {name: score[~score.isnan()] for name, score in scores.items()}
        return total, {f"reward.{name}": float(score.mean()) for name, score in judged.items() if len(score)}

    def _score(self, answered: rewards.Answered) -> Scored:
        """Log-probabilities, values, rewards and advantages of a rollout."""
        settings, prompts, responses = self.settings, answered.prompt_ids, answered.responses
        limits: dict[str, Any] = {"pad_id": self.pad_id, "max_tokens": settings.micro_batch_tokens}
        policy = experience.policy_scores(
            self.bank, POLICY, prompts, responses, temperature=settings.temperature, **limits
        )
        reference = experience.token_logprobs(
            self.bank, REFERENCE, prompts, responses, temperature=settings.temperature, **limits
        )
        value_list = experience.token_values(self.bank, self.cast.trunk, VALUE, prompts, responses, **limits)
        score, by_source = self._rewards(answered)
        logprobs, ref_logprobs = experience.pad([p.logprobs for p in policy]), experience.pad(reference)  # (B, R)
        values = experience.pad(value_list)
        lengths = torch.tensor([len(response) for response in responses], device=values.device)
        mask = torch.arange(values.shape[1], device=values.device) < lengths[:, None]  # (B, R)
        kl = algorithm.kl_estimate(logprobs, ref_logprobs, settings.kl.estimator)
        shaped = algorithm.shape_rewards(kl, score, mask, self.coefficient)
        advantages, returns = algorithm.gae(shaped, values, mask, settings.gamma, settings.lam)
        metrics = {
            "reward": float(score.mean()),
            "reward.std": float(score.std(correction=0)),
            **by_source,
            **figures.distance(logprobs, ref_logprobs, mask),
            "kl.coef": self.coefficient,
            "entropy": float(torch.cat([p.entropy for p in policy]).mean()),
            "explained_variance": float(algorithm.explained_variance(values, returns, mask)),
            "advantage.mean": float(advantages[mask].mean()),
            "return.mean": float(returns[mask].mean()),
            "response_length": sum(map(len, responses)) / len(responses),
            "truncation_rate": text.truncation_rate(responses, self.stop_ids),
            "repeated_4gram_rate": text.repeated_ngram_rate(responses, 4),
            "distinct_2": text.distinct_ngram_rate(responses, 2),
        }
        whitened = algorithm.whiten(advantages, mask)
        return Scored(update.Experience(prompts, responses, mask, logprobs, values, whitened, returns), metrics)

    def _check(self, metrics: Mapping[str, float]) -> None:
        """Raise DivergedError where learning from this rollout would make things worse."""
        for name, value in metrics.items():
            if not math.isfinite(value):
                mend = "Lower the learning rate, or raise kl.coef."
                raise DivergedError(f"{name} of a rollout is {value}.", where="ppo", mend=mend)
        for role in (POLICY, VALUE):  # attention may hide them: a softmax over NaN alone gives zeros on some devices
            if not all(bool(p.isfinite().all()) for p in self.bank.parameters(role)):
                mend = "Lower the learning rate."
                raise DivergedError(f"the weights of role {role} are not finite.", where="ppo", mend=mend)
        abort = self.settings.kl.abort
        if abort is not None and metrics["kl"] > abort:
            raise DivergedError(
                f"the policy is {metrics['kl']:.3g} nats a sequence from its reference; kl.abort is {abort:g}.",
                where="ppo.kl.abort",
                mend="Raise kl.coef, or lower the learning rate.",
            )

    def _learn(self, scored: update.Experience, *, policy_too: bool) -> dict[str, float]:
        """`epochs` passes over the rollout in shuffled minibatches, fewer where target_kl is reached."""
        settings = self.settings
        steps: list[update.Step] = []
        norms: list[tuple[float, float]] = []
        rates = [float(group["lr"]) for group in self.optimization.optimizer.param_groups]
        stopped = False
        for _ in range(settings.epochs):
            for rows in torch.randperm(len(scored.responses)).tensor_split(settings.minibatches):
                found = update.gradients(
                    self.cast, settings, scored, rows.tolist(), pad_id=self.pad_id, policy_too=policy_too
                )
                stopped = bool(steps) and settings.target_kl is not None and found.approx_kl > settings.target_kl
                if stopped:  # this step would start from beyond the target
                    self.optimization.optimizer.zero_grad(set_to_none=True)
                    break
                steps.append(found)
                norms.append(update.step(self.optimization))
            if stopped:
                break
        return {
            **figures.over_steps(steps),
            "grad_norm.policy": sum(norm for norm, _ in norms) / len(norms),
            "grad_norm.critic": sum(norm for _, norm in norms) / len(norms),
            "learning_rate": rates[0] if policy_too else 0.0,
            "learning_rate.critic": rates[1],
            "optimizer_steps": float(len(steps)),
        }

    def _log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self.run.log(iteration, metrics)
        self.trackers.log(iteration, metrics)

    def _save(self, iteration: int) -> Path:
        """A checkpoint, unless this very policy is in one; gives its folder."""
        if iteration not in self.saved:
            with self.run.checkpoint(iteration) as folder:
                self.save(folder / "model", folder / "critic")
            self.saved.add(iteration)
        return self.run.path / "checkpoints" / f"step-{iteration:06d}"

    def _sample(self, iteration: int) -> None:
        """Answers to the watched prompts, drawn alike each time and without touching training's own draws."""
        devices = [self.bank.device] if self.bank.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.seed)
            answered = self._answer(self.watched)
        scores, _ = self._rewards(answered)
        for prompt, completion, score in zip(answered.prompts, answered.completions, scores.tolist(), strict=True):
            said = completion if isinstance(completion, str) else completion[-1]["content"]
            self.run.sample({"step": iteration, "prompt": prompt, "response": said, "score": score})
