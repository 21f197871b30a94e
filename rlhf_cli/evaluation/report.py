"""Write an evaluation as report.json, for scripts, and report.md, for people. Both hold the same numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rlhf_cli.evaluation.gates import GateVerdict
from rlhf_cli.evaluation.metrics import MetricRow, metric_rows
from rlhf_cli.evaluation.verdict import Verdict
from rlhf_cli.formatting import format_count, format_metric, markdown_table


class Report(NamedTuple):
    """The result of an evaluation.

    Attributes:
        candidate: The candidate, as in the recipe.
        baseline: The baseline, or None if there is none.
        reward: The reward model, or None if there is none.
        sizes: Number of held-out rows that were measured, by dataset.
        metrics: The metrics.
        verdict: The result in words.
        gates: The verdicts of the gates.
    """

    candidate: str
    baseline: str | None
    reward: str | None
    sizes: Mapping[str, int]
    metrics: Mapping[str, float]
    verdict: Verdict
    gates: Sequence[GateVerdict]


def write(report: Report, folder: Path) -> None:
    """Write report.json and report.md into `folder`."""
    content = {
        "schema": 1,
        "candidate": report.candidate,
        "baseline": report.baseline,
        "reward": report.reward,
        "sizes": dict(report.sizes),
        "metrics": dict(report.metrics),
        "verdict": report.verdict.as_json(),
        "gates": [gate.as_json() for gate in report.gates],
        "passed": all(gate.passed for gate in report.gates),
    }
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    (folder / "report.json").write_text(text, encoding="utf-8")
    (folder / "report.md").write_text(format_markdown(report), encoding="utf-8")


def format_markdown(report: Report) -> str:
    """Return the report as a page, with one row per metric."""
    compared = f" compared with `{report.baseline}`" if report.baseline else ""
    scored = f", scored by `{report.reward}`" if report.reward else ""
    sizes = ", ".join(format_count(count, name.removesuffix("s")) for name, count in report.sizes.items())
    header = ("metric", report.candidate, "95% interval", "n", report.baseline or "–")
    parts = [
        f"# Evaluation of `{report.candidate}`{compared}{scored}",
        f"**{report.verdict.text}**",
        *(f"Warning: {text}" for text in report.verdict.warnings),
        f"Held-out rows: {sizes}.",
        markdown_table(header, [_table_row(row) for row in metric_rows(report.metrics)]),
    ]
    if report.gates:
        parts += ["## Gates", "\n".join(f"- {gate.text}" for gate in report.gates)]
    return "\n\n".join(parts) + "\n"


def _table_row(row: MetricRow) -> tuple[str, ...]:
    low, high, value, n, baseline = (
        "" if number is None else format_metric(row.name, number)
        for number in (row.low, row.high, row.value, row.n, row.baseline)
    )
    return row.name, value, f"{low} to {high}" if low else "", n, baseline
