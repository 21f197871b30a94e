"""`rlhf annotate status`: how far a project is."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from rlhf_cli.cli import options
from rlhf_cli.cli.annotate.project import open_project
from rlhf_cli.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console

    from rlhf_cli.feedback.store import Status


def status(recipe: options.Recipe = None, overrides: options.Set = None, json: options.Json = False) -> None:
    """Show how many items are open, done and disputed, and what each annotator has judged."""
    with open_project(recipe, overrides) as project:
        found, name, location = project.store.status(), project.recipe.name, project.store.location
    Output(json=json).result(
        {"stage": "annotate status", "project": name, "store": location, **asdict(found)},
        lambda console: _print(console, f"{name} ({location})", found),
    )


def _print(console: Console, title: str, found: Status) -> None:
    from rich.table import Table

    console.print(title, style="bold", markup=False, soft_wrap=True)
    others = ", ".join(f"{count:,} {kind}" for kind, count in sorted(found.kinds.items()) if kind != "item")
    console.print(
        f"{found.items:,} items: {found.done:,} done, {found.open:,} open, {found.disputed:,} disputed; "
        f"{found.judgments:,} judgments{f'; also {others} items' if others else ''}",
        markup=False,
        soft_wrap=True,
    )
    if len(found.groups) > 1:
        table = Table("language", "field", "items", "done", "open", "disputed", box=None, padding=(0, 2, 0, 0))
        for group in found.groups:
            numbers = (f"{number:,}" for number in (group.items, group.done, group.open, group.disputed))
            table.add_row(group.language or "–", group.field or "–", *numbers)
        console.print(table)
    if found.annotators:
        table = Table("annotator", "judged", "skipped", "qualification", "latest", box=None, padding=(0, 2, 0, 0))
        for row in found.annotators:
            test = "" if row.qualification == "none" else row.qualification
            table.add_row(row.annotator.name, f"{row.judged:,}", f"{row.skipped:,}", test, row.latest[:16])
        console.print(table)
