"""`rlhf annotate import`: put prompts with completions, and judgments made elsewhere, into the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_cli.cli import options
from rlhf_cli.cli.annotate.project import open_project
from rlhf_cli.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console

    from rlhf_cli.feedback.formats.importing import ImportResult
    from rlhf_cli.feedback.formats.reading import FeedbackSource
    from rlhf_cli.recipe.schema import Recipe

SAMPLE_RUN = "sample"

SourceArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="SOURCE",
        help="A file, a directory or a run that wrote completions. Defaults to the newest run of `rlhf sample`.",
        show_default=False,
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option("--format", metavar="FORMAT", help="Format of the rows. Defaults to the one that the columns fit."),
]


def import_(
    source: SourceArgument = None,
    row_format: FormatOption = None,
    recipe: options.Recipe = None,
    overrides: options.Set = None,
    runs_dir: options.RunsDir = options.DEFAULT_RUNS_DIR,
    json: options.Json = False,
) -> None:
    """Import prompts with completions, and judgments made elsewhere. Rows that the store has are not added again."""
    from rlhf_cli.feedback.formats.importing import import_rows
    from rlhf_cli.feedback.formats.reading import open_source

    with open_project(recipe, overrides) as project:
        find = _run_finder(project.recipe, runs_dir.absolute())
        rows = open_source(source or SAMPLE_RUN, find, row_format)
        result = import_rows(project.store, rows, skip_invalid=project.recipe.data.on_invalid == "skip")
    Output(json=json).result(
        {"stage": "annotate import", "source": rows.name, "format": rows.row_format.name, **result._asdict()},
        lambda console: _print(console, rows, result),
    )


def _run_finder(recipe: Recipe, runs_dir: Path) -> Callable[[str], Path]:
    """Return the function from a reference to a run to its directory."""
    from rlhf_cli.runs import layout

    return lambda text: layout.find(runs_dir, text, recipe.name, smoke=False).path


def _print(console: Console, rows: FeedbackSource, result: ImportResult) -> None:
    lines = [
        f"{rows.name}: read as {rows.row_format.name}",
        f"items: {result.items_added:,} added, {result.items_existing:,} existing",
        f"judgments: {result.judgments_added:,} added, {result.judgments_existing:,} existing",
        *(f"skipped {count:,}: {reason}" for reason, count in result.skipped.items()),
        *([rows.row_format.remark] if rows.row_format.remark else []),
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
