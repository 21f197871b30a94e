"""Validate what can be combined with `adapter: null` and with a sharded base model."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_cli.recipe.schema import Export, Recipe, Reward
from rlhf_cli.recipe.validation.keyed_issue import KeyedIssue, keyed_issue
from rlhf_cli.stages import STAGES


def adapter_issues(recipe: Recipe) -> Iterator[KeyedIssue]:
    """Yield conflicts between adapter, quantization, export format and launch strategy."""
    if recipe.adapter is None:
        yield from _full_training_issues(recipe)
    if recipe.launch.strategy == "fsdp":
        yield from _sharding_issues(recipe)


def _full_training_issues(recipe: Recipe) -> Iterator[KeyedIssue]:
    quantize = recipe.base.quantize
    if quantize != "none":
        problem = f"{quantize} weights cannot be trained, but the recipe sets adapter: null."
        hint = "Set quantize to none, or set an adapter."
        yield keyed_issue("recipe.conflicting-keys", ("base", "quantize"), problem, hint)
    for spec in STAGES.values():
        section = getattr(recipe, spec.section)
        if isinstance(section, Reward) and section.members > 1:
            problem = "several members must be adapters on one base model, but the recipe sets adapter: null."
            key = (spec.section, "members")
            yield keyed_issue("recipe.conflicting-keys", key, problem, "Set members to 1, or set an adapter.")
        if isinstance(section, Export) and section.format == "adapter":
            problem = "no adapter to export, because the recipe sets adapter: null."
            key = (spec.section, "format")
            yield keyed_issue("recipe.conflicting-keys", key, problem, "Set format to merged.")


def _sharding_issues(recipe: Recipe) -> Iterator[KeyedIssue]:
    key = ("launch", "strategy")
    if recipe.adapter is None:
        problem = "fsdp can shard only a frozen base model, but adapter: null trains it."
        hint = "Set strategy to ddp, or set an adapter."
        yield keyed_issue("recipe.conflicting-keys", key, problem, hint)
    if recipe.base.quantize != "none":
        problem = f"fsdp cannot shard {recipe.base.quantize} weights."
        hint = "Set strategy to ddp, or base.quantize to none."
        yield keyed_issue("recipe.conflicting-keys", key, problem, hint)
