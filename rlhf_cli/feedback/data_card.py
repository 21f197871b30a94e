"""The metrics of a version of preference data, and its data card: how it was made, and how far it can be trusted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rlhf_cli.evaluation.metrics import MetricRow, metric_rows
from rlhf_cli.feedback.dataset import Dataset, held_out_annotators
from rlhf_cli.feedback.label_agreement import label_agreement
from rlhf_cli.feedback.quality.report import PREFIX, measure_quality, overlap_of
from rlhf_cli.feedback.quality.votes import PEOPLE, first_judgments
from rlhf_cli.feedback.types import Judgment, Snapshot
from rlhf_cli.formatting import format_metric, markdown_table
from rlhf_cli.recipe.schema import Feedback

ANNOTATOR_PREFIX = f"{PREFIX}annotator."  # of the metrics of one annotator, which the report of `qc` shows
PREVIEWED = ("feedback.annotators", "feedback.agreement", "feedback.alpha", "feedback.label_agreement")
OPTIONS = ("aggregate", "pairs", "sources", "min_votes", "eval_fraction", "held_out_annotators")
COLUMNS = (
    ("`prompt`, `chosen`, `rejected`", "the prompt, the better and the worse completion"),
    ("`margin`", "mean strength by which votes prefer the better completion, 0 to 3; only if every pair has one"),
    ("`prompt_id`", "stable hash of the prompt"),
    ("`n_votes`", "number of votes on the pair"),
    ("`agreement`", "fraction of these votes that are for the label; null without votes"),
    ("`source`", "`human` or `ai`"),
    ("`by_expert`", "whether an expert decided"),
    ("`languages`, `fields`", "of the item"),
    ("`annotators`, `groups`", "pseudonyms and roles of the annotators who voted"),
    ("`principles`", "ids of the principles by which a model judged"),
    ("`judged`", "time of the last vote or decision, UTC"),
    ("`split`", "`train`; `test`: held-out prompts; `annotators`: single votes of held-out annotators"),
)


def metrics_of(found: Dataset, snapshot: Snapshot, settings: Feedback) -> dict[str, float]:
    """Return the numbers of pairs, and the quality of the people's judgments as `rlhf annotate qc` measures it."""
    values = {
        "feedback.pairs": float(len(found.rows)),
        "feedback.ties": float(found.counts.get("ties", 0) + found.counts.get("undecided pairs", 0)),
    }
    if not _votes(snapshot, settings):
        return values
    sources = PEOPLE if "human" in settings.sources else settings.sources
    quality = measure_quality(snapshot, sources=sources, overlap=overlap_of(settings)).metrics()
    values |= {name: value for name, value in quality.items() if not name.startswith(ANNOTATOR_PREFIX)}
    interval = label_agreement(snapshot, sources=sources)
    if interval is not None:
        ends = {"": interval.value, ".low": interval.low, ".high": interval.high, ".n": float(interval.n)}
        values |= {f"feedback.label_agreement{suffix}": value for suffix, value in ends.items()}
    return values


def facts_of(found: Dataset, snapshot: Snapshot, settings: Feedback) -> dict[str, Any]:
    """Return what the manifest records about a version: filters, counts, guidelines and annotators."""
    votes = _votes(snapshot, settings)
    return {
        "options": _options(settings),
        "counts": dict(found.counts),
        "rows": {name: len(rows) for name, rows in found.splits.items()},
        "guidelines": dict(Counter(judgment.guideline for judgment in votes if judgment.guideline)),
        "annotators": len({judgment.annotator_id for judgment in votes}),
    }


def format_card(
    name: str, found: Dataset, snapshot: Snapshot, settings: Feedback, metrics: Mapping[str, float], *, smoke: bool
) -> str:
    """Return README.md: a dataset card of the Hub. The same data gives the same bytes."""
    splits = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in found.splits)
    header = f"---\ntags:\n- rlhf\n- preferences\nconfigs:\n- config_name: default\n  data_files:\n{splits}---"
    rows = [(f"`{split}`", f"{len(rows):,}") for split, rows in found.splits.items()]
    sections = [
        header,
        f"# Preferences of {name}",
        _introduction(snapshot, smoke=smoke and not snapshot.judgments),
        markdown_table(("split", "pairs"), rows),
        "## Quality",
        markdown_table(("metric", "value", "95% interval", "n"), [_metric_row(row) for row in metric_rows(metrics)]),
        "## Filters",
        markdown_table(("setting", "value"), [(f"`{key}`", f"`{value}`") for key, value in _options(settings).items()]),
        markdown_table(("count", "number"), [(key, f"{value:,}") for key, value in found.counts.items()]),
        *_guidelines(_votes(snapshot, settings), snapshot),
        *_annotators(snapshot, settings),
        "## Columns",
        markdown_table(("column", "meaning"), COLUMNS),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _metric_row(row: MetricRow) -> tuple[str, ...]:
    value, low, high, n = (format_metric(row.name, number) for number in (row.value, row.low, row.high, row.n))
    return f"`{row.name}`", value, "" if row.low is None else f"{low} to {high}", "" if row.n is None else n


def _introduction(snapshot: Snapshot, *, smoke: bool) -> str:
    if smoke:
        return "**A smoke run without judgments: these pairs are random, and nobody made them.**"
    decided = f", and {len(snapshot.decisions):,} items were decided by an expert" if snapshot.decisions else ""
    return f"Annotators compared completions of the same prompt{decided}. Written by `rlhf annotate export`."


def _options(settings: Feedback) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in OPTIONS}


def _votes(snapshot: Snapshot, settings: Feedback) -> list[Judgment]:
    return first_judgments(snapshot, sources=settings.sources)


def _guidelines(votes: list[Judgment], snapshot: Snapshot) -> list[str]:
    counts = Counter(judgment.guideline for judgment in votes)
    if not any(counts):
        return []
    order = [*(sha for sha in snapshot.guidelines if counts[sha]), *([""] if counts[""] else [])]
    rows = [(f"`{sha}`" if sha else "none", f"{counts[sha]:,}") for sha in order]
    return ["## Guidelines", markdown_table(("SHA-256 of the guideline", "judgments"), rows)]


def _annotators(snapshot: Snapshot, settings: Feedback) -> list[str]:
    counts = Counter(judgment.annotator_id for judgment in _votes(snapshot, settings))
    _, held_out = held_out_annotators(snapshot, settings)
    rows = [
        (
            one.pseudonym,
            one.role,
            "a model" if one.source == "ai" else "a person",
            f"{counts[one.id]:,}",
            "held out" if one.id in held_out else "labels",
        )
        for one in snapshot.annotators
        if counts[one.id]
    ]
    return ["## Annotators", markdown_table(("pseudonym", "role", "is", "judgments", "used for"), rows)] if rows else []
