"""`rlhf annotate qc`: how good the judgments are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_cli.cli import options
from rlhf_cli.cli.annotate.project import open_project
from rlhf_cli.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console

    from rlhf_cli.feedback.quality.report import QualityReport


def qc(recipe: options.Recipe = None, overrides: options.Set = None, json: options.Json = False) -> None:
    """Measure the quality of the judgments of people: agreement, annotators, bias and flags.

    The last annotators of the table are those to look at first. docs/quality.md explains every metric.
    """
    from rlhf_cli.feedback.quality.report import measure_quality, overlap_of

    with open_project(recipe, overrides) as project:
        settings, name = project.recipe.feedback, project.recipe.name
        report = measure_quality(project.store.snapshot(), overlap=overlap_of(settings))
    Output(json=json).result(
        {
            "stage": "annotate qc",
            "project": name,
            "metrics": report.metrics(),
            "undefined": report.undefined(),
            "suppressed": dict(report.suppressed),
            "annotators": [annotator.pseudonym for annotator in report.annotators],
            "warnings": list(report.warnings),
        },
        lambda console: _print(console, name, report),
    )


def _print(console: Console, name: str, report: QualityReport) -> None:
    from rich.table import Table

    from rlhf_cli.feedback.quality.tables import report_tables

    counts = (f"{int(report.metrics()[f'feedback.{noun}']):,} {noun}" for noun in ("judgments", "items", "annotators"))
    console.print(f"{name}: {', '.join(counts)}", style="bold", markup=False, soft_wrap=True)
    for content in report_tables(report):
        console.print(f"\n{content.title}", style="bold", markup=False)
        if content.rows:
            table = Table(box=None, padding=(0, 2, 0, 0))
            for index, title in enumerate(content.header):
                table.add_column(title, justify="left" if index == 0 or title == "published" else "right")
            for row in content.rows:
                table.add_row(*row)
            console.print(table)
        for note in content.notes:
            console.print(note, style="dim", markup=False)
    if report.warnings:
        console.print("\nWarnings", style="bold")
    for warning in report.warnings:
        console.print(f"- {warning}", style="yellow", markup=False)
