"""The quality report as tables, for a terminal, the owner's page and the data card."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from rlhf_cli.evaluation.statistics import Interval
from rlhf_cli.feedback.quality.agreement import MIN_SLICE_ITEMS, Undefined
from rlhf_cli.feedback.quality.annotators import AnnotatorQuality, Value
from rlhf_cli.feedback.quality.report import QualityReport
from rlhf_cli.feedback.types import FLAGS
from rlhf_cli.formatting import format_number, markdown_table

MISSING = "–"
FLAGGED = "flagged"
MAX_HIDDEN = 4  # suppressed slices that a note names
AGREEMENT = (  # name, title, published values to compare with (docs/quality.md has the sources)
    ("agreement", "agreement", "InstructGPT 73%, HH 63%"),
    ("agreement_half_ties", "agreement, ties half", "WebGPT 73–74%"),
    ("agreement_no_ties", "agreement without ties", "MT-Bench 81%"),
    ("alpha", "Krippendorff's alpha", ""),
    ("ac1", "Gwet's AC1", ""),
    ("ac2", "Gwet's AC2", "Llama 2 0.37–0.55"),
    ("kappa", "kappa", ""),
)
COEFFICIENTS = ("alpha", "ac1", "ac2", "kappa")  # the others are fractions, which are shown in percent
SHARES = (
    ("gold_accuracy", "right on gold items"),
    ("consistency", "same when shown again"),
    ("first_shown_wins", "shown first wins"),
    ("longer_wins", "longer wins"),
    ("tie_rate", "ties"),
    *((f"flag_rate.{flag}", f"{FLAGGED} {flag}") for flag in FLAGS),
)
ANNOTATOR_COLUMNS = (
    ("judgments", "judged"),
    ("skill", "skill"),
    ("gold_accuracy", "gold"),
    ("consistency", "same"),
    ("agreement", "agree"),
    ("seconds", "sec."),
    ("first_shown_wins", "first"),
    ("longer_wins", "longer"),
    ("tie_rate", "ties"),
)


class ReportTable(NamedTuple):
    """A table of the report. The first column is text, the others are numbers."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def report_tables(report: QualityReport) -> list[ReportTable]:
    """Return the tables of a report; those without rows are left out."""
    tables = [_agreement(report), _slices(report), _shares(report), _annotators(report.annotators), _models(report)]
    return [table for table in tables if table.rows or table.notes]


def report_markdown(report: QualityReport) -> str:
    """Return the tables and warnings as Markdown, for a data card."""
    parts = []
    for table in report_tables(report):
        parts += [f"### {table.title}", markdown_table(table.header, table.rows), *table.notes]
    if report.warnings:
        parts += ["### Warnings", "\n".join(f"- {warning}" for warning in report.warnings)]
    return "\n\n".join(parts)


def _agreement(report: QualityReport) -> ReportTable:
    rows = []
    for name, title, published in AGREEMENT:
        value = report.overall[name]
        text = format_coefficient(value) if name in COEFFICIENTS else format_share(value)
        rows.append((title, text, _count(value), published))
    notes = _reasons((title, report.overall[name]) for name, title, _ in AGREEMENT)
    return ReportTable("Agreement", ("metric", "value [95%]", "items", "published"), rows, list(notes))


def _slices(report: QualityReport) -> ReportTable:
    rows = [
        (
            name,
            _count(values["agreement"]),
            format_share(values["agreement"]),
            format_coefficient(values["alpha"]),
            format_coefficient(values["ac2"]),
        )
        for name, values in report.slices.items()
    ]
    hidden = [f"{name} ({count})" for name, count in report.suppressed.items()]
    if len(hidden) > MAX_HIDDEN:
        hidden = [*hidden[:MAX_HIDDEN], f"and {len(hidden) - MAX_HIDDEN} more"]
    notes = [f"Fewer than {MIN_SLICE_ITEMS} items with two judgments: {', '.join(hidden)}."] if hidden else []
    return ReportTable("Slices", ("slice", "items", "agreement", "alpha", "AC2"), rows, notes)


def _shares(report: QualityReport) -> ReportTable:
    shown = [(title, report.overall[name]) for name, title in SHARES]
    rows = [
        (title, format_share(value), _count(value))
        for title, value in shown
        if isinstance(value, Interval) and (value.value > 0 or not title.startswith(FLAGGED))
    ]
    return ReportTable("Checks, bias and flags", ("metric", "value [95%]", "n"), rows)


def _annotators(annotators: Sequence[AnnotatorQuality]) -> ReportTable:
    header = ("annotator", *(title for _, title in ANNOTATOR_COLUMNS))
    rows = [
        (annotator.pseudonym, *(_short(annotator.values[name], name) for name, _ in ANNOTATOR_COLUMNS))
        for annotator in annotators
    ]
    notes = _reasons(("skill", annotator.values["skill"]) for annotator in annotators)
    return ReportTable("Annotators, the best first", header, rows, list(notes))


def _models(report: QualityReport) -> ReportTable:
    rows = [
        (
            model.model,
            format_share(model.win_rate),
            _count(model.win_rate),
            MISSING if model.strength is None else format_number(model.strength),
        )
        for model in report.models
    ]
    return ReportTable("Models", ("model", "wins [95%]", "pairs", "strength"), rows)


def format_share(value: Value) -> str:
    """Return a fraction as `78% [70, 85]`."""
    if isinstance(value, Interval):
        return f"{value.value:.0%} [{value.low * 100:.0f}, {value.high * 100:.0f}]"
    return MISSING if isinstance(value, Undefined) else f"{value:.0%}"


def format_coefficient(value: Value) -> str:
    """Return a coefficient as `0.72 [0.68, 0.76]`."""
    if isinstance(value, Interval):
        return f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"
    return MISSING if isinstance(value, Undefined) else f"{value:.2f}"


def _short(value: Value, name: str) -> str:
    if isinstance(value, Undefined):
        return MISSING
    number = value.value if isinstance(value, Interval) else value
    return f"{number:,.0f}" if name in ("judgments", "seconds") else f"{number:.0%}"


def _count(value: Value) -> str:
    return f"{value.n:,}" if isinstance(value, Interval) else MISSING


def _reasons(values: Iterable[tuple[str, Value]]) -> Iterator[str]:
    """Yield each reason once, with the metrics that it leaves undefined."""
    names: dict[str, list[str]] = {}
    for name, value in values:
        if isinstance(value, Undefined) and name not in names.setdefault(value.reason, []):
            names[value.reason].append(name)
    for reason, owners in names.items():
        yield f"Not defined: {', '.join(owners)} ({reason})."
