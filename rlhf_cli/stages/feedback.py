"""Export the judgments in the store as a version of preference data: `rlhf annotate export`.

The rows are those of the snapshot that was hashed as an input, so that judgments that arrive meanwhile change nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_cli.ai_feedback.agreement import check_export
from rlhf_cli.data import sources
from rlhf_cli.data.rows import Text
from rlhf_cli.errors import DataError
from rlhf_cli.feedback import data_card, dataset
from rlhf_cli.feedback.blind import without_evaluations
from rlhf_cli.feedback.dataset import Dataset, Row
from rlhf_cli.feedback.store_input import check_judgments
from rlhf_cli.feedback.types import Snapshot
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.recipe.smoke import SMOKE_ROWS
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.stages import DatasetKind

NO_SNAPSHOT = Snapshot((), (), ())
SMOKE_SOURCE = "smoke"  # column `source` of a pair that nobody judged
WORDS = ("yes", "no", "maybe", "never")  # completions of such pairs
PROMPT_DATASETS: tuple[DatasetKind, ...] = ("preferences", "prompts", "sft")  # whose prompts such pairs have


def preview(stage: ResolvedStage) -> dict[str, Any]:
    """Return the counts and the first pair, for `--dry-run`."""
    found, snapshot = _build(stage)
    metrics = data_card.metrics_of(found, snapshot, stage.section)
    facts: dict[str, Any] = {name: number for name, number in found.counts.items() if number}
    facts = {**facts, **{f"rows {name}": len(rows) for name, rows in found.splits.items()}}
    facts |= {name: round(metrics[name], 4) for name in data_card.PREVIEWED if name in metrics}
    return {"facts": facts, "example": json.dumps(found.rows[0], ensure_ascii=False, indent=2)}


def run(stage: ResolvedStage, run: Run) -> StageMetrics:
    """Write the pairs, one file per split, and a data card."""
    found, snapshot = _build(stage)
    run.begin(len(found.splits), "split")
    for step, (name, rows) in enumerate(found.splits.items(), start=1):
        _write_rows(run, name, rows)
        run.log(step, {"pairs": float(len(rows))})
    metrics = data_card.metrics_of(found, snapshot, stage.section)
    card = data_card.format_card(stage.recipe.name, found, snapshot, stage.section, metrics, smoke=stage.smoke)
    (run.data_dir / "README.md").write_text(card, encoding="utf-8")
    facts = data_card.facts_of(found, snapshot, stage.section)
    is_conversational = isinstance(found.rows[0]["prompt"], list)
    return StageMetrics(metrics, conversational=is_conversational, facts={"feedback": facts})


def _build(stage: ResolvedStage) -> tuple[Dataset, Snapshot]:
    """Return the dataset and the snapshot that it is made from. A smoke run without judgments gets random pairs.

    Raises:
        DataError: There are no judgments, no pairs are left, or models agree with people less than `min_agreement`.
    """
    snapshot = without_evaluations(stage.snapshot or NO_SNAPSHOT)
    if stage.smoke and not any(judgment.answer.tiers for judgment in snapshot.judgments):
        return Dataset({"train": _random_pairs(stage.recipe)}, {}), NO_SNAPSHOT
    check_judgments(stage.snapshot)
    if "ai" in stage.section.sources:
        check_export(snapshot, stage.recipe)
    found = dataset.build(snapshot, stage.section)
    if not found.splits.get("train"):
        raise _no_pairs_error(found.counts)
    return found, snapshot


def _no_pairs_error(counts: Mapping[str, int]) -> DataError:
    summary = "; ".join(f"{name} {number:,}" for name, number in counts.items() if number) or "no judgments"
    message = f"no pairs left to train on ({summary})."
    hint = "Collect more judgments, or change aggregate, sources, min_votes or eval_fraction."
    return DataError("feedback.no-pairs", message, location="feedback", hint=hint)


def _random_pairs(recipe: Recipe) -> list[Row]:
    """Return a pair of made-up completions for each of a few prompts of the recipe, or for made-up prompts."""
    prompts = _smoke_prompts(recipe) or [f"Question {number}" for number in range(SMOKE_ROWS)]
    rows = []
    for index, prompt in enumerate(prompts):
        chosen, rejected = (_smoke_completion(prompt, WORDS[(index + shift) % len(WORDS)]) for shift in (0, 1))
        rows.append(
            {"prompt": prompt, "chosen": chosen, "rejected": rejected, "source": SMOKE_SOURCE, "split": "train"}
        )
    return rows


def _smoke_prompts(recipe: Recipe) -> list[Text]:
    """Return prompts of the first dataset with a local file, in the format that the other sources of the pairs have."""
    for kind in PROMPT_DATASETS:
        given = [source for source in getattr(recipe.data, kind) or [] if source.path is not None]
        if given:
            split = sources.load(given, kind, seed=recipe.seed, find=Path, limit=SMOKE_ROWS)
            found = {str(row.prompt): row.prompt for row in (*split.train, *split.held_out) if row.prompt}
            if found:
                return list(found.values())[:SMOKE_ROWS]
    return []


def _smoke_completion(prompt: Text, word: str) -> Text:
    return f" {word}" if isinstance(prompt, str) else [{"role": "assistant", "content": word}]


def _write_rows(run: Run, split: str, rows: Sequence[Row]) -> None:
    with (run.data_dir / f"{split}.jsonl").open("w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
