"""`--dry-run`: what the data holds and what a stage would train on, without a model's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_cli.data import held_out, sources, tokenization
from rlhf_cli.pipeline.inputs import collect_inputs
from rlhf_cli.pipeline.preflight import check_rows
from rlhf_cli.pipeline.references import producing_stage, references
from rlhf_cli.recipe import smoke as smoke_recipe
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.recipe.validation import ROWS
from rlhf_cli.runs import layout
from rlhf_cli.stages import STAGES
from rlhf_cli.training import length_checks


def preview(stage: str, recipe: Recipe, runs_dir: Path, *, smoke: bool, earlier: Sequence[str] = ()) -> dict[str, Any]:
    """Everything up to the model: inputs, rows, and one example with its loss mask.

    What a stage of `earlier` has still to make is waited for, not missed: of such a stage only its rows are told.
    """
    if smoke:  # makes the runs that it needs
        recipe, earlier = smoke_recipe.shrink(recipe), tuple(STAGES)
    coming = [producing_stage(reference, recipe.name) for reference in references(stage, recipe)]
    waits_for = [
        made
        for made in coming
        if made is not None and made in earlier and not layout.newest(runs_dir, recipe.name, made, smoke=smoke)
    ]
    if waits_for:
        counts = check_rows(recipe, [stage])
        rows = {f"data.{kind}: {name}": number for kind, found in counts.items() for name, number in found.items()}
        return {"stage": stage, "facts": {"waits for": ", ".join(dict.fromkeys(waits_for)), **_told(rows)}}
    inputs = collect_inputs(stage, recipe, runs_dir, smoke=smoke)
    facts: dict[str, Any] = {item.role: f"{item.path} {item.version or ''}".strip() for item in inputs}

    def find(ref: str) -> Path:
        return layout.find(runs_dir, ref, recipe.name, smoke=smoke).path

    if stage == "eval":
        used = held_out.load(recipe, find, smoke=smoke)._asdict()
        return {"stage": stage, "facts": facts | _told({f"held out {kind}": len(rows) for kind, rows in used.items()})}
    kind: Any = ROWS.get(stage)
    if kind is None:
        return {"stage": stage, "facts": facts}
    limit = smoke_recipe.ROWS if smoke else None
    split = sources.load(getattr(recipe.data, kind), kind, seed=recipe.seed, find=find, limit=limit)
    facts |= _told({f"rows {name}": number for name, number in split.counts.items()})
    if stage == "pretrain":
        return {"stage": stage, "facts": facts, "example": split.train[0].text}
    base = next(item for item in inputs if item.role == "base")
    source = str(Path(base.path) / "model") if base.kind == "run" else base.path
    more, example = _encoded(stage, recipe, source, split)
    told: dict[str, Any] = {}
    if not smoke:  # its base is another one, and tiny
        from rlhf_cli.training import memory_check

        longest, aside = more["tokens in the longest"], more["tokens in the longest held out"]
        estimate = memory_check.estimate(stage, recipe, source, longest, aside)
        more["memory"] = memory_check.UNKNOWN if estimate is None else str(estimate)
        if estimate is not None and (refusal := memory_check.refusal(stage, recipe, source, longest, aside, estimate)):
            more["memory"] = str(refusal)
        told = {} if estimate is None else {"memory": estimate.as_json()}
        trained = memory_check.trainable(stage, recipe, source)
        if trained:
            by_module = ", ".join(f"{name} {number:,}" for name, number in trained.items())
            more["trainable parameters"] = f"{sum(trained.values()):,}: {by_module}"
            told["trainable"] = trained
    return {"stage": stage, "facts": {**facts, **more}, **told, "example": example}


def _told(counts: Mapping[str, int]) -> dict[str, int]:
    """Those that there is something to tell of."""
    return {name: number for name, number in counts.items() if number}


def _encoded(stage: str, recipe: Recipe, source: str, split: Any) -> tuple[dict[str, Any], str]:
    """Figures in tokens, and the first row rendered, as the stage will have it.

    Raises:
        RlhfError: what the stage itself would raise of its rows.
    """
    from rlhf_cli.data import chat_template
    from rlhf_cli.models.loading import load_tokenizer, silence_library_logging

    silence_library_logging()
    tokenizer = load_tokenizer(source, recipe.base.revision)
    chat_template.prepare(tokenizer, recipe.base.chat_template)
    stops = ", ".join(f"{tokenizer.convert_ids_to_tokens(i)} ({i})" for i in chat_template.stop_ids(tokenizer))
    facts: dict[str, Any] = {"end tokens": stops, "pad token": f"{tokenizer.pad_token} ({tokenizer.pad_token_id})"}
    encode: Callable[[Any], tokenization.FittingPrompts | tokenization.Columns]
    if stage == "ppo":
        encode = partial(tokenization.fitting_prompts, tokenizer, longest=recipe.ppo.max_prompt_length)
    elif stage == "sft":
        encode = partial(tokenization.sft_columns, tokenizer, max_length=recipe.sft.max_length)
    else:
        encode = partial(tokenization.preference_columns, tokenizer, max_length=recipe.reward.max_length)
    found, held_out = encode(split.train), encode(split.held_out)
    lengths = found.lengths()
    warnings = length_checks.check_all(stage, recipe, source, tokenizer, found, held_out)
    facts |= (
        {"rows train": found.kept}
        | _told(found.counts)
        | _told({"rows that repeat another one": found.kept - len(set(map(hash, _rows(found))))})
        | {"tokens in all": sum(lengths), "tokens in the longest": max(lengths)}
        | {"tokens in the longest held out": max(held_out.lengths(), default=0)}
    )
    if warnings:
        facts["warning"] = warnings[0]
    if isinstance(found, tokenization.FittingPrompts):
        example = chat_template.Encoded(found.ids[0], [])
    else:
        longest = recipe.sft.max_length if stage == "sft" else recipe.reward.max_length
        example = tokenization.first(tokenizer, split.train, longest)
    if stage == "sft":
        ends = example.completion_ids[-1] in chat_template.stop_ids(tokenizer)
        facts["end token of the example"] = "under the loss" if ends else "cut off"
    return facts, chat_template.render_with_mask(tokenizer, example)


def _rows(found: tokenization.FittingPrompts | tokenization.Columns) -> Iterator[tuple[Any, ...]]:
    """Each row that is kept, as token ids."""
    if isinstance(found, tokenization.FittingPrompts):
        yield from map(tuple, found.ids)
    else:
        for part in found.parts:
            columns = [part[name] for name in ("input_ids", "chosen_ids", "rejected_ids") if name in part]
            yield from (tuple(map(tuple, row)) for row in zip(*columns, strict=True))
