"""Log the estimated peak memory before weights are loaded, and fail early if the device is too small."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from rlhf_cli import distributed
from rlhf_cli.errors import HardwareError
from rlhf_cli.formatting import format_bytes
from rlhf_cli.models import device_memory
from rlhf_cli.models.ensemble import read_members
from rlhf_cli.models.loading import default_device
from rlhf_cli.pipeline.references import reward_sources
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.runs.run import Run
from rlhf_cli.training import memory_estimate
from rlhf_cli.training.memory_estimate import Estimate, PPOPlan

logger = logging.getLogger(__name__)

UNKNOWN = "cannot be estimated for this base model"
MARGIN_AFTER_FAILURE = 0.75  # of what the device has: how much was lacking is not known


def check(stage: ResolvedStage, lengths: Sequence[int], held_out: Sequence[int]) -> PPOPlan | None:
    """Log the estimate. If memory is short, return freed memory to the system at once from now on.

    No-op for a smoke run, whose base model is another one, and tiny.

    Args:
        stage: The resolved stage.
        lengths: Tokens of the rows to train on.
        held_out: Tokens of the held-out rows.

    Returns:
        What the memory decides about PPO, the same in every process; None for another stage, or without an estimate.

    Raises:
        HardwareError: The device has less memory than is needed.
    """
    if stage.smoke:
        return None
    is_short, plan = False, None
    if distributed.is_main():
        longest, longest_held_out = max(lengths), max(held_out, default=0)
        found = estimate(stage, longest, longest_held_out)
        if found is not None:
            error = too_large_error(stage, longest, longest_held_out, found)
            if error is not None:
                raise error
            is_short = found.device == "cpu" and 2 * found.parts.needed > found.capacity
            plan = found.plan
        logger.info(f"memory: {UNKNOWN if found is None else found}")
    is_short, plan = distributed.broadcast_object((is_short, plan))
    if is_short:
        device_memory.release_freed_memory()
    return plan


def estimate(stage: ResolvedStage, longest: int, held_out: int) -> Estimate | None:
    """Return the peak memory of a stage, or None if it cannot be estimated. Lengths are in tokens; 0: none."""
    members = _further_members(stage)
    return memory_estimate.estimate(stage.spec, stage.recipe, stage.base_path, longest, held_out, members)


def trainable_parameters(stage: ResolvedStage) -> dict[str, int]:
    """Return the number of parameters that a stage trains, by module name."""
    return memory_estimate.trainable_parameters(stage.spec, stage.recipe, stage.base_path)


def too_large_error(stage: ResolvedStage, longest: int, held_out: int, found: Estimate) -> HardwareError | None:
    """Return the error to raise if the device has less memory than estimated, or None if it has enough."""
    if found.fits:
        return None
    hint = _hint(stage, longest, held_out, found.capacity)
    message = f"not enough memory: {found}."
    return HardwareError("hardware.not-enough-memory", message, location=stage.name, hint=hint)


def out_of_memory_error(run: Run, stage: ResolvedStage) -> HardwareError:
    """Return the error to raise when memory ran out: the step, the peak, the estimate, and a setting to lower."""
    steps = len(run.logged())
    when = f"after step {steps:,}" if steps else "before the first step"
    peak = format_bytes(device_memory.peak_memory(default_device()))
    message = f"out of memory {when}, at a peak of {peak}; incomplete run: {run.path}."
    return HardwareError("hardware.out-of-memory", message, location=run.stage, hint=_hint_after_failure(stage))


def _hint_after_failure(stage: ResolvedStage) -> str:
    key = stage.spec.memory_key
    lower = f"Lower {key}." if key else "Use a smaller base model."
    if stage.smoke or stage.spec.memory_model is None:
        return lower
    found = estimate(stage, stage.max_length, stage.max_length)
    if found is None:
        return lower
    target = MARGIN_AFTER_FAILURE * min(found.capacity, found.parts.needed)
    hint = _hint(stage, stage.max_length, stage.max_length, target)
    limit = f"{stage.spec.section}.{stage.spec.max_length_key}"
    return f"With rows as long as {limit} allows ({stage.max_length:,} tokens), the stage needs {found}. {hint}"


def _hint(stage: ResolvedStage, longest: int, held_out: int, capacity: float) -> str:
    """Name one setting: the smallest reduction of the batch that fits, or otherwise the next setting to try."""
    for value, recipe in _smaller_batches(stage, longest):
        members = _further_members(stage)
        found = memory_estimate.estimate(stage.spec, recipe, stage.base_path, longest, held_out, members)
        if found is not None and found.parts.needed <= capacity:
            return f"Set {stage.spec.memory_key}: {value} ({format_bytes(found.parts.needed)})."
    if stage.recipe.adapter is None:
        return "Train an adapter instead of all weights: remove `adapter: null`."
    if stage.recipe.base.quantize == "none":
        return "Set base.quantize: nf4."
    return "Use a smaller base model or shorter rows."


def _further_members(stage: ResolvedStage) -> int:
    """Return the number of adapters in the stage's reward runs beyond one for each."""
    sources = reward_sources(stage.section, (stage.spec.section,))
    folders = [stage.model_path(".".join(map(str, key))) for key, source in sources if source.run is not None]
    return sum(len(read_members(folder)) - 1 for folder in folders if folder is not None)


def _smaller_batches(stage: ResolvedStage, longest: int) -> Iterator[tuple[int, Recipe]]:
    """Yield smaller values of the setting that decides how much is in memory at once, each with its recipe."""
    section = stage.section
    field = stage.spec.memory_key.rpartition(".")[2]
    if stage.spec.generates:
        width = longest + section.max_new_tokens
        completions = section.rollout_batch_size * section.samples_per_prompt
        values = [rows * width for rows in _halves(min(section.micro_batch_tokens // width, completions))]
    else:
        processes = stage.recipe.launch.processes
        values = [rows for rows in _halves(section.micro_batch_size) if section.batch_size % (rows * processes) == 0]
    for value in values:
        smaller = section.model_copy(update={field: value})
        yield value, stage.recipe.model_copy(update={stage.spec.section: smaller})


def _halves(number: int) -> Iterator[int]:
    while number > 1:
        number //= 2
        yield number
