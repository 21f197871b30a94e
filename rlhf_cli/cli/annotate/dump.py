"""`rlhf annotate dump`: write items and judgments for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_cli.cli import options
from rlhf_cli.cli.annotate.project import open_project
from rlhf_cli.cli.output import Output
from rlhf_cli.errors import RecipeError
from rlhf_cli.formatting import did_you_mean, format_count

if TYPE_CHECKING:
    from rich.console import Console

    from rlhf_cli.feedback.formats.dump import DumpResult

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="File to write. An existing file is replaced.")]
FormatOption = Annotated[
    str, typer.Option("--format", metavar="FORMAT", help="Format: jsonl, csv, label-studio or argilla.")
]


def dump(
    file: FileArgument,
    row_format: FormatOption = "jsonl",
    recipe: options.Recipe = None,
    overrides: options.Set = None,
    json: options.Json = False,
) -> None:
    """Write all items and judgments for another tool. Annotators have pseudonyms."""
    from rlhf_cli.feedback.formats.dump import WRITABLE
    from rlhf_cli.feedback.formats.dump import dump as write

    if row_format not in WRITABLE:
        hint = did_you_mean(row_format, WRITABLE, otherwise=f"The formats are {', '.join(WRITABLE)}.")
        raise RecipeError("recipe.usage", f"--format: unknown format {row_format!r}.", hint=hint)
    with open_project(recipe, overrides) as project:
        result = write(project.store.snapshot(), WRITABLE[row_format], file)
    Output(json=json).result(
        {"stage": "annotate dump", "path": str(file), "format": row_format, **result._asdict()},
        lambda console: _print(console, file, row_format, result),
    )


def _print(console: Console, file: Path, row_format: str, result: DumpResult) -> None:
    lines = [
        f"{file}: {format_count(result.items, 'item')}, {format_count(result.judgments, 'judgment')}",
        *(f"{row_format} cannot hold: {name} ({count:,})" for name, count in result.lost.items()),
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
