"""`rlhf runs`: look at what was made."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from rlhf_cli.cli import options, output
from rlhf_cli.errors import RecipeError
from rlhf_cli.runs import layout
from rlhf_cli.runs.manifest import read_manifest

runs = typer.Typer(help="List runs, and show what one did.", no_args_is_help=True)


@runs.command("list")
def list_(runs_dir: options.RunsDir = options.RUNS, json: options.Json = False) -> None:
    """List the runs: stage, version, state, time and figures."""
    entries = list(layout.all_runs(runs_dir.absolute()))
    if json:
        output.write_json(
            {"status": "ok", "stage": "runs list", "runs": [output.entry_json(entry) for entry in entries]}
        )
    else:
        output.print_runs(runs_dir, entries)


def _references(incomplete: str) -> list[str]:
    found = [f"{e.name}/{e.stage}@{e.version}" for e in layout.all_runs(options.RUNS)]
    return [text for text in found if text.startswith(incomplete)]


@runs.command()
def show(
    run: Annotated[
        str, typer.Argument(help="name/stage, name/stage@v0003, or its folder.", autocompletion=_references)
    ],
    runs_dir: options.RunsDir = options.RUNS,
    json: options.Json = False,
) -> None:
    """Show one run: its figures, inputs, files, and the last samples."""
    entry = _find(run, runs_dir.absolute())
    content: dict[str, Any] = {**output.entry_json(entry), "manifest": entry.manifest}
    content["last_step"] = next(iter(_tail(entry.path / "metrics.jsonl", 1)), None)
    content["samples"] = _tail(entry.path / "samples.jsonl", 4)
    if json:
        output.write_json({"status": "ok", "stage": "runs show", "run": content})
    else:
        output.print_run(content)


def _find(text: str, runs_dir: Path) -> layout.Entry:
    folder = Path(text)
    if folder.is_dir() and layout.VERSION.fullmatch(folder.resolve().name):
        folder = folder.resolve()
        return layout.Entry(folder.parent.parent.name, folder.parent.name, folder.name, folder, read_manifest(folder))
    reference = layout.parse(text, "")
    if not reference.name:
        named = [e for e in layout.all_runs(runs_dir) if e.stage == reference.stage]
        names = sorted({e.name for e in named})
        if len(names) != 1:
            have = ", ".join(f"{name}/{reference.stage}" for name in names) or "none"
            raise RecipeError(f"{text} does not name one run; there are: {have}.", mend="Write name/stage@version.")
        reference = reference._replace(name=names[0])
    versions = layout.versions(runs_dir, reference.name, reference.stage)
    if reference.version is not None:
        versions = [e for e in versions if e.version == reference.version]
    if not versions:
        raise RecipeError(f"there is no run {text} in {runs_dir}.", mend="See `rlhf runs list`.")
    complete = [e for e in versions if e.manifest]
    real = [e for e in complete if e.manifest and not e.manifest["smoke"]]
    return (real or complete or versions)[-1]


def _tail(path: Path, count: int) -> list[Any]:
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")  # a killed run leaves half a line
    return [json_module.loads(line) for line in whole.split("\n")[-count:] if line]
