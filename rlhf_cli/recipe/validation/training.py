"""Validate the sections that train with TRL, and the trainer options of all stages."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_cli.recipe.schema import Pretrain, Recipe, TrainerSection
from rlhf_cli.recipe.trainer_options import trainer_issues
from rlhf_cli.recipe.validation.keyed_issue import KeyedIssue, keyed_issue
from rlhf_cli.stages import STAGES


def training_issues(recipe: Recipe) -> Iterator[KeyedIssue]:
    """Yield issues of epochs, batch sizes, model shapes and trainer options."""
    for stage, spec in STAGES.items():
        section = getattr(recipe, spec.section)
        if isinstance(section, TrainerSection):
            processes = recipe.launch.processes if spec.section in recipe.model_fields_set else 1
            yield from _size_issues(section, spec.section, processes)
        if isinstance(section, Pretrain):
            yield from _architecture_issues(section, spec.section)
        yield from trainer_issues(stage, getattr(section, "trainer", {}))


def _size_issues(section: TrainerSection, name: str, processes: int) -> Iterator[KeyedIssue]:
    if section.epochs is not None and section.max_steps is not None:
        problem = "cannot be combined with epochs."
        yield keyed_issue("recipe.conflicting-keys", (name, "max_steps"), problem, "Keep one of them.")
    if section.batch_size % (section.micro_batch_size * processes) == 0:
        return
    divisor = f"micro_batch_size {section.micro_batch_size}"
    if processes > 1:
        divisor += f" × {processes} processes"
    if section.batch_size % processes == 0:
        hint = f"Set {name}.micro_batch_size to a divisor of {section.batch_size // processes}."
    else:
        hint = f"Set {name}.batch_size to a multiple of {processes}."
    problem = f"not divisible; found {section.batch_size}, expected a multiple of {divisor}."
    yield keyed_issue("recipe.not-divisible", (name, "batch_size"), problem, hint)


def _architecture_issues(section: Pretrain, name: str) -> Iterator[KeyedIssue]:
    shape = section.architecture
    if shape.hidden_size % (2 * shape.heads):
        problem = (
            f"not divisible; hidden_size {shape.hidden_size} cannot be split into {shape.heads} heads of even width."
        )
        hint = "Set hidden_size to a multiple of 2 × heads; rotary embeddings pair the dimensions of a head."
        yield keyed_issue("recipe.not-divisible", (name, "architecture", "heads"), problem, hint)
    if shape.heads % shape.kv_heads:
        problem = f"not a divisor of heads; found {shape.kv_heads}, expected a divisor of {shape.heads}."
        hint = "Set kv_heads to a divisor of heads."
        yield keyed_issue("recipe.not-divisible", (name, "architecture", "kv_heads"), problem, hint)
    if section.start == "scratch" and section.max_length > shape.context:
        problem = f"too long; found {section.max_length}, expected at most architecture.context {shape.context}."
        hint = "Lower max_length, or raise architecture.context."
        yield keyed_issue("recipe.invalid-value", (name, "max_length"), problem, hint)
