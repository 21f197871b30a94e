"""An evaluation written out: report.json for machines, report.md for people. Both say the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rlhf_cli.evaluation.gates import Verdict


class Report(NamedTuple):
    """What was compared, on how many items, and what came of it."""

    candidate: str
    baseline: str | None
    reward: str | None
    sizes: Mapping[str, int]
    metrics: Mapping[str, float]
    verdicts: Sequence[Verdict]


def write(report: Report, folder: Path) -> None:
    """Write report.json and report.md into `folder`."""
    content = {
        "schema": 1,
        "candidate": report.candidate,
        "baseline": report.baseline,
        "reward": report.reward,
        "sizes": dict(report.sizes),
        "metrics": dict(report.metrics),
        "gates": [verdict.as_json() for verdict in report.verdicts],
        "passed": all(v.passed for v in report.verdicts),
    }
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    (folder / "report.json").write_text(text, encoding="utf-8")
    (folder / "report.md").write_text(markdown(report), encoding="utf-8")


def markdown(report: Report) -> str:
    """The report as a page: a line a metric, its interval and the other side's figure beside it."""
    compared = f" against `{report.baseline}`" if report.baseline else ""
    judge = f", judged by `{report.reward}`" if report.reward else ""
    lines = [f"# Evaluation of `{report.candidate}`{compared}{judge}", ""]
    lines += [f"Held-out rows: {', '.join(f'{count} {name}' for name, count in report.sizes.items())}.", ""]
    lines += [f"| metric | {report.candidate} | 95 % interval | {report.baseline or '—'} |", "|---|---|---|---|"]
    for name, value in report.metrics.items():
        base, _, suffix = name.rpartition(".")
        if suffix in ("low", "high", "n", "baseline") and base in report.metrics:
            continue
        lines.append(f"| {name} | {value:.4g} | {_interval(name, report.metrics)} | {_other(name, report.metrics)} |")
    if report.verdicts:
        lines += ["", "## Gates", "", *(f"- {verdict.text}" for verdict in report.verdicts)]
    return "\n".join(lines) + "\n"


def _interval(name: str, metrics: Mapping[str, float]) -> str:
    if f"{name}.low" not in metrics:
        return ""
    return f"{metrics[f'{name}.low']:.4g} to {metrics[f'{name}.high']:.4g}"


def _other(name: str, metrics: Mapping[str, float]) -> str:
    return f"{metrics[f'{name}.baseline']:.4g}" if f"{name}.baseline" in metrics else ""
