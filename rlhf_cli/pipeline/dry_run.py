"""`--dry-run`: do everything up to loading weights, and return what the user should see."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_cli.data import held_out
from rlhf_cli.pipeline.preflight import check_rows, prepare
from rlhf_cli.pipeline.references import check_adapters, find_references, producing_stage
from rlhf_cli.pipeline.resolve import ResolvedStage, find_all, resolve
from rlhf_cli.recipe import smoke as smoke_recipe
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.runs import layout
from rlhf_cli.stages import STAGES

if TYPE_CHECKING:
    from rlhf_cli.training.prepared_data import PreparedData, TokenizedRows


def preview(stage: str, recipe: Recipe, runs_dir: Path, *, smoke: bool, earlier: Sequence[str] = ()) -> dict[str, Any]:
    """Return the inputs, row counts, one example with its loss mask, and the memory estimate of `stage`.

    Args:
        stage: Name of the stage.
        recipe: The validated recipe.
        runs_dir: The runs directory.
        smoke: Whether the stage would run as a smoke run.
        earlier: Stages that the chain runs before. If one of them has no run yet, only rows are counted.

    Returns:
        JSON values: `stage` and `facts`; for a stage that trains also `example`, and `memory` and `trainable` if they
        can be estimated.

    Raises:
        RlhfError: As the stage itself would before it loads weights.
    """
    if smoke:  # a smoke run first runs the stages that it needs
        recipe, earlier = smoke_recipe.shrink(recipe), tuple(STAGES)
    missing = _missing_inputs(stage, recipe, runs_dir, earlier, smoke=smoke)
    if missing:
        counts = check_rows(recipe, [stage])
        rows = {f"data.{kind}: {name}": number for kind, found in counts.items() for name, number in found.items()}
        depends_on = f"{', '.join(missing)} (not yet run)"
        return {"stage": stage, "facts": {"depends on": depends_on, **_nonzero(rows)}}
    found = find_all(stage, recipe, runs_dir, smoke=smoke)
    if not smoke:
        check_adapters(stage, recipe, found)
    resolved = resolve(stage, recipe, runs_dir, smoke=smoke, found=found)
    facts: dict[str, Any] = {item.role: f"{item.path} {item.version or ''}".strip() for item in resolved.inputs}
    if resolved.spec.evaluates:
        evaluated = held_out.load(resolved.recipe, resolved.dataset_path, smoke=smoke)._asdict()
        facts |= _nonzero({f"held out {kind}": len(found) for kind, found in evaluated.items()})
    if resolved.spec.preview:
        module, _, function = resolved.spec.preview.partition(":")
        shown: dict[str, Any] = getattr(importlib.import_module(module), function)(resolved)
        return {"stage": stage, **shown, "facts": {**facts, **shown["facts"]}}
    if not resolved.spec.prepare:
        return {"stage": stage, "facts": facts}
    return {"stage": stage, **_preview_training(resolved, facts)}


def _missing_inputs(stage: str, recipe: Recipe, runs_dir: Path, earlier: Sequence[str], *, smoke: bool) -> list[str]:
    """Return the earlier stages whose runs `stage` reads and that have no run yet."""
    needed = [producing_stage(reference, recipe.name) for reference in find_references(stage, recipe)]
    return [
        producer
        for producer in dict.fromkeys(producer for producer in needed if producer is not None)
        if producer in earlier and layout.newest(runs_dir, recipe.name, producer, smoke=smoke) is None
    ]


def _preview_training(stage: ResolvedStage, facts: dict[str, Any]) -> dict[str, Any]:
    from rlhf_cli.data import chat_template
    from rlhf_cli.models.loading import silence_library_logging

    silence_library_logging()
    data = prepare(stage)
    tokenizer, lengths = data.tokenizer, data.train.lengths()
    facts = {
        **facts,
        **_nonzero({f"rows {name}": number for name, number in data.split.counts.items()}),
        **_special_tokens(tokenizer),
        **({"rows train": data.train.kept} if data.train.counts else {}),  # tokenization may drop rows
        **_nonzero(data.train.counts),
        **_nonzero({"duplicate rows": _count_duplicates(data.train)}),
        "total tokens": sum(lengths),
        "longest row (tokens)": max(lengths),
        "longest held-out row (tokens)": max(data.held_out.lengths(), default=0),
        **data.facts,
    }
    if data.warnings:
        facts["warning"] = data.warnings[0]
    preview: dict[str, Any] = {"facts": facts, "example": chat_template.render_with_mask(tokenizer, data.example)}
    if not stage.smoke and stage.spec.memory_model is not None:  # a smoke run's base is another one, and tiny
        _add_memory(stage, data, preview)
    return preview


def _add_memory(stage: ResolvedStage, data: PreparedData, preview: dict[str, Any]) -> None:
    """Add the memory estimate and the number of trainable parameters to `preview`."""
    from rlhf_cli.training import memory_check

    longest, held_out_longest = max(data.train.lengths()), max(data.held_out.lengths(), default=0)
    estimate = memory_check.estimate(stage, longest, held_out_longest)
    if estimate is None:
        preview["facts"]["memory"] = memory_check.UNKNOWN
    else:
        error = memory_check.too_large_error(stage, longest, held_out_longest, estimate)
        preview["facts"]["memory"] = str(error or estimate)
        preview["memory"] = estimate.as_json()
    trainable = memory_check.trainable_parameters(stage)
    if trainable:
        by_module = ", ".join(f"{name} {number:,}" for name, number in trainable.items())
        preview["facts"]["trainable parameters"] = f"{sum(trainable.values()):,}: {by_module}"
        preview["trainable"] = trainable


def _nonzero(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: number for name, number in counts.items() if number}


def _special_tokens(tokenizer: Any) -> dict[str, str]:
    """Return the names of the end and pad tokens. A tokenizer for pretraining may have no chat template and no pad."""
    from rlhf_cli.data import chat_template

    ends = chat_template.stop_ids(tokenizer) if tokenizer.chat_template else (tokenizer.eos_token_id,)
    found = {"end tokens": _token_names(tokenizer, ends)}
    if tokenizer.pad_token_id is not None:
        found["pad token"] = _token_names(tokenizer, [tokenizer.pad_token_id])
    return found


def _token_names(tokenizer: Any, ids: Sequence[int]) -> str:
    return ", ".join(f"{tokenizer.convert_ids_to_tokens(i)} ({i})" for i in ids)


def _count_duplicates(rows: TokenizedRows) -> int:
    """Return how many rows repeat an earlier one."""
    found = [hash(row) for row in _token_rows(rows)]
    return len(found) - len(set(found))


def _token_rows(rows: Any) -> Iterator[tuple[Any, ...]]:
    """Yield each row as a tuple of token ids; a pair as a tuple of both sequences."""
    if hasattr(rows, "ids"):  # prompts
        yield from map(tuple, rows.ids)
        return
    for part in rows.parts:
        columns = [part[name] for name in ("input_ids", "chosen_ids", "rejected_ids") if name in part]
        yield from (tuple(map(tuple, row)) for row in zip(*columns, strict=True))
