"""Validate the adapter's target modules, and what can be combined with `adapter: null` and a sharded base model."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rlhf_cli.recipe.schema import Export, Recipe, Reward
from rlhf_cli.recipe.validation.keyed_issue import KeyedIssue, keyed_issue
from rlhf_cli.stages import STAGES

EMBEDDINGS_AND_HEADS = (  # names in transformers' models; names that are not here are found when the model is loaded
    *("embed_tokens", "wte", "embed_in", "word_embeddings", "embeddings", "shared"),
    *("wpe", "embed_positions", "position_embeddings", "lm_head", "embed_out", "output_projection"),
    *("score", "classifier"),
)
MODULE_PREFIXES = ("", "model.", "transformer.", "gpt_neox.", "model.decoder.", "model.language_model.", "biogpt.")


def adapter_issues(recipe: Recipe) -> Iterator[KeyedIssue]:
    """Yield invalid target modules, and conflicts between adapter, quantization, export format and launch strategy."""
    if recipe.adapter is None:
        yield from _full_training_issues(recipe)
    else:
        yield from _target_issues(recipe.adapter.target_modules)
    if recipe.launch.strategy == "fsdp":
        yield from _sharding_issues(recipe)


def _target_issues(targets: str | list[str]) -> Iterator[KeyedIssue]:
    """Yield an issue if the targets select embeddings or heads, or can select nothing. PEFT reads text as a pattern."""
    key = ("adapter", "target_modules")
    hint = "Use names of linear layers inside the transformer blocks, such as q_proj, or all-linear."
    if not targets:
        yield keyed_issue("recipe.invalid-value", key, "no modules; expected at least one.", hint)
        return
    found = []
    if isinstance(targets, list):
        found = [target for target in targets if target.rpartition(".")[2] in EMBEDDINGS_AND_HEADS]
    elif targets.lower() != "all-linear":
        try:
            pattern = re.compile(targets)
        except re.error as error:
            problem = f"not a regular expression; found {targets}: {error}."
            yield keyed_issue("recipe.invalid-value", key, problem, "Write a list of names, or correct the pattern.")
            return
        names = [name for name in EMBEDDINGS_AND_HEADS if any(pattern.fullmatch(p + name) for p in MODULE_PREFIXES)]
        found = names[:1]
    if found:
        problem = f"adapters of embeddings and output heads are not supported; found {', '.join(found)}."
        yield keyed_issue("recipe.invalid-value", key, problem, hint)


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
