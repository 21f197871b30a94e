"""Validate the sections of PPO: batch sizes, KL and reward sources."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rlhf_cli.formatting import format_path
from rlhf_cli.recipe.schema import Key, Launch, Length, Ppo, Recipe, RewardSource, Rule, is_run_reference
from rlhf_cli.recipe.validation.keyed_issue import KeyedIssue, dependent_issues, exactly_one_issues, keyed_issue
from rlhf_cli.recipe.validation.secrets import url_issues
from rlhf_cli.stages import REWARD_STAGES, STAGES

REWARD_OWNERS = (
    ("combine", "run"),
    ("revision", "model"),
    ("timeout", "http"),
    ("batch_size", "http"),
    ("retries", "http"),
)
# A reward source has exactly one of these keys.
REWARD_KEYS = tuple(name for name in RewardSource.model_fields if name not in {"weight", *dict(REWARD_OWNERS)})


def ppo_issues(recipe: Recipe, stages: Sequence[str]) -> Iterator[KeyedIssue]:
    """Yield issues of the sections of PPO.

    Args:
        recipe: The recipe.
        stages: The stages that will run.
    """
    for stage, spec in STAGES.items():
        section = getattr(recipe, spec.section)
        if isinstance(section, Ppo):
            if recipe.base.dtype == "float16" and stage in stages:
                problem = f"not supported by {stage}, which does not scale its loss, so that small gradients would "
                problem += "become zero; found float16, expected auto, bfloat16 or float32."
                yield keyed_issue("recipe.invalid-value", ("base", "dtype"), problem, "Set it to auto.")
            for index, source in enumerate(section.reward):
                yield from _reward_issues(source, (spec.section, "reward", index))
                yield from _combine_issues(source, recipe, (spec.section, "reward", index, "combine"))
            yield from _size_issues(section, spec.section, recipe.launch)
            yield from _optimization_issues(section, spec.section)
            if recipe.launch.strategy == "fsdp" and spec.section in recipe.model_fields_set:
                yield from _sharded_size_issues(section, spec.section, recipe.launch.processes)


def _size_issues(ppo: Ppo, name: str, launch: Launch) -> Iterator[KeyedIssue]:
    if ppo.rollout_batch_size % ppo.minibatches:
        problem = f"not a divisor of rollout_batch_size; found {ppo.minibatches}, expected a divisor of "
        problem += f"{ppo.rollout_batch_size}."
        yield keyed_issue(
            "recipe.not-divisible", (name, "minibatches"), problem, "Set it to a divisor of rollout_batch_size."
        )
    if ppo.rollout_batch_size * ppo.samples_per_prompt % launch.processes:
        expected = f"a multiple of {launch.processes}, the number of processes"
        problem = f"not divisible; found {ppo.rollout_batch_size}, expected {expected}."
        hint = f"Set it to a multiple of {launch.processes}."
        yield keyed_issue("recipe.not-divisible", (name, "rollout_batch_size"), problem, hint)


def _sharded_size_issues(ppo: Ppo, name: str, processes: int) -> Iterator[KeyedIssue]:
    """Yield an issue unless the processes get equally many rows of a minibatch, which FSDP requires."""
    completions = ppo.rollout_batch_size * ppo.samples_per_prompt
    rows = completions // ppo.minibatches
    if rows % processes:
        expected = f"a multiple of {processes}, the number of processes, with fsdp"
        problem = f"not divisible; found minibatches of size {rows}, expected {expected}."
        hint = f"Set it so that {completions} / minibatches is a multiple of {processes}."
        yield keyed_issue("recipe.not-divisible", (name, "minibatches"), problem, hint)


def _optimization_issues(ppo: Ppo, name: str) -> Iterator[KeyedIssue]:
    if ppo.kl.apply_to == "loss" and ppo.kl.estimator == "k1":
        problem = "no effect with estimator k1, whose gradient is zero on average."
        hint = "Set estimator to k2 or k3, or apply_to to reward."
        yield keyed_issue("recipe.no-effect", (name, "kl", "apply_to"), problem, hint)
    if ppo.kl.apply_to == "reward" and ppo.kl.estimator != "k1":
        problem = f"{ppo.kl.estimator} does not hold the policy near the reference if KL is part of the reward: its "
        problem += "expected gradient there is about zero; expected k1."
        hint = "Remove estimator, or set apply_to to loss."
        yield keyed_issue("recipe.no-effect", (name, "kl", "estimator"), problem, hint)
    warmup = ppo.critic.warmup_iterations
    if warmup >= ppo.iterations:
        problem = f"too many; found {warmup}, expected fewer than the {ppo.iterations} iterations."
        hint = "Lower it; otherwise the policy is never trained."
        yield keyed_issue("recipe.invalid-value", (name, "critic", "warmup_iterations"), problem, hint)


def _reward_issues(source: RewardSource, key: Key) -> Iterator[KeyedIssue]:
    yield from exactly_one_issues(source, REWARD_KEYS, key)
    yield from dependent_issues(source, REWARD_OWNERS, key)
    if source.model is not None and _is_run(source.model):
        problem = f"{format_path(Path(source.model))} is a run; expected a full model."
        yield keyed_issue("recipe.invalid-value", (*key, "model"), problem, "Use {run: …} for a reward run.")
    if source.http is not None:
        yield from url_issues(source.http, (*key, "http"))
    if source.rule is not None:
        yield from _rule_issues(source.rule, (*key, "rule"))


def _combine_issues(source: RewardSource, recipe: Recipe, key: Key) -> Iterator[KeyedIssue]:
    """Yield an issue if the latest reward run of this recipe has a single member."""
    if source.combine is None or source.run not in REWARD_STAGES:
        return
    section = STAGES[source.run].section
    if section in recipe.model_fields_set and getattr(recipe, section).members == 1:
        problem = f"no effect with one member; found {section}.members: 1."
        yield keyed_issue("recipe.no-effect", key, problem, f"Raise {section}.members, or remove combine.")


def _is_run(model: str) -> bool:
    folder = Path(model)
    return is_run_reference(model) or (folder.is_absolute() and (folder / "manifest.json").exists())


def _rule_issues(rule: Rule, key: Key) -> Iterator[KeyedIssue]:
    yield from exactly_one_issues(rule, ("length", "pattern", "forbidden"), key)
    if rule.length is not None:
        yield from _length_issues(rule.length, (*key, "length"))
    if rule.pattern is not None:
        try:
            re.compile(rule.pattern)
        except re.error as error:
            hint = "See the documentation of Python's re module."
            problem = f"invalid regular expression: {error}."
            yield keyed_issue("recipe.invalid-value", (*key, "pattern"), problem, hint)
    for index, word in enumerate(rule.forbidden or []):
        if not word.strip():
            yield keyed_issue("recipe.invalid-value", (*key, "forbidden", index), "empty.", "Write a word or a phrase.")


def _length_issues(length: Length, key: Key) -> Iterator[KeyedIssue]:
    if length.max is None and not length.min:
        hint = "Set min, max or both, in tokens."
        yield keyed_issue("recipe.no-effect", key, "no effect without min or max.", hint)
    elif length.max is not None and length.max < length.min:
        problem = f"no length satisfies the rule; found min {length.min} and max {length.max}."
        yield keyed_issue("recipe.invalid-value", key, problem, "Lower min, or raise max.")
