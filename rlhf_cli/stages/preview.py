"""`--dry-run`: what the data holds and what a stage would train on, without a model's weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_cli.data import sources
from rlhf_cli.recipe import smoke as smoke_recipe
from rlhf_cli.recipe.check import ROWS
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.runs import layout
from rlhf_cli.stages import encoding
from rlhf_cli.stages.inputs import inputs_of
from rlhf_cli.stages.preflight import check_rows
from rlhf_cli.stages.references import awaited, references


def preview(stage: str, recipe: Recipe, runs_dir: Path, *, smoke: bool, earlier: Sequence[str] = ()) -> dict[str, Any]:
    """Everything up to the model: inputs, rows, and one example with its loss mask.

    What a stage of `earlier` has still to make is waited for, not missed: of such a stage only its rows are told.
    """
    if smoke:
        recipe = smoke_recipe.shrink(recipe)
    coming = [awaited(reference, recipe.name) for reference in references(stage, recipe)]
    waits_for = [
        made
        for made in coming
        if made is not None and made in earlier and not layout.newest(runs_dir, recipe.name, made, smoke=smoke)
    ]
    if waits_for:
        counts = check_rows(recipe, [stage])
        rows = {f"{kind}: rows {name}": number for kind, found in counts.items() for name, number in found.items()}
        return {"stage": stage, "facts": {"waits for": ", ".join(dict.fromkeys(waits_for)), **rows}}
    inputs = inputs_of(stage, recipe, runs_dir, smoke=smoke)
    facts: dict[str, Any] = {item.role: f"{item.path} {item.version or ''}".strip() for item in inputs}
    kind: Any = ROWS.get(stage)
    if kind is None:
        return {"stage": stage, "facts": facts}
    split = sources.load(
        getattr(recipe.data, kind),
        kind,
        seed=recipe.seed,
        find=lambda ref: layout.find(runs_dir, ref, recipe.name, smoke=smoke).path,
        limit=smoke_recipe.ROWS if smoke else None,
    )
    facts |= {f"rows {name}": number for name, number in split.counts.items()}
    if stage == "pretrain":
        return {"stage": stage, "facts": facts, "example": split.train[0].text}
    base = next(item for item in inputs if item.role == "base")
    source = str(Path(base.path) / "model") if base.kind == "run" else base.path
    more, example = _encoded(stage, recipe, source, split)
    return {"stage": stage, "facts": {**facts, **more}, "example": example}


def _encoded(stage: str, recipe: Recipe, source: str, split: Any) -> tuple[dict[str, Any], str]:
    """Figures in tokens, and the first row rendered."""
    from rlhf_cli.data import template
    from rlhf_cli.models.base import load_tokenizer, quiet

    quiet()
    tokenizer = load_tokenizer(source, recipe.base.revision)
    template.prepare(tokenizer, recipe.base.chat_template)
    stops = ", ".join(f"{tokenizer.convert_ids_to_tokens(i)} ({i})" for i in template.stop_ids(tokenizer))
    facts: dict[str, Any] = {"end tokens": stops, "pad token": f"{tokenizer.pad_token} ({tokenizer.pad_token_id})"}
    if stage == "ppo":
        prompts = template.encode_prompts(tokenizer, [row.prompt for row in split.train])
        longest = recipe.ppo.max_prompt_length
        facts[f"dropped: over {longest} tokens"] = sum(len(ids) > longest for ids in prompts)
        facts["tokens in the longest prompt"] = max(map(len, prompts))
        example = template.Encoded(prompts[0], [])
        return facts, template.render_with_mask(tokenizer, example, color=False)
    if stage == "sft":
        parts, counts = encoding.sft_columns(tokenizer, split.train, recipe.sft.max_length)
        lengths = [len(ids) for part in parts for ids in part["input_ids"]]
        row = split.train[0]
        pair = (row.prompt, row.completion)
    else:
        parts, counts = encoding.preference_columns(tokenizer, split.train, recipe.reward.max_length)
        lengths = [len(ids) for part in parts for name in ("chosen_ids", "rejected_ids") for ids in part[name]]
        row = split.train[0]
        pair = (row.prompt, row.chosen)
    facts |= {**counts, "tokens in all": sum(lengths), "tokens in the longest row": max(lengths, default=0)}
    encoded = template.encode_pairs(tokenizer, [pair])[0]
    return facts, template.render_with_mask(tokenizer, encoded, color=False)
