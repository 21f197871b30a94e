"""`rlhf runs`: look at what was made, prove that it is whole, and take away what is not needed."""

from __future__ import annotations

import difflib
import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from rlhf_cli.cli import options, output
from rlhf_cli.errors import Issue, ModelError, RecipeError
from rlhf_cli.runs import layout, lineage
from rlhf_cli.runs.manifest import read_manifest

runs = typer.Typer(help="List, show, verify, compare and remove runs.", no_args_is_help=True)


@runs.command("list")
def list_(runs_dir: options.RunsDir = options.RUNS, json: options.Json = False) -> None:
    """List the runs, the newest last: stage, version, state, time and figures."""
    entries = sorted(layout.all_runs(runs_dir.absolute()), key=output.began)
    if json:
        output.write_json(
            {"status": "ok", "stage": "runs list", "runs": [output.entry_json(entry) for entry in entries]}
        )
    else:
        output.print_runs(runs_dir, entries)


def _references(incomplete: str) -> list[str]:
    found = [f"{e.name}/{e.stage}@{e.version}" for e in layout.all_runs(options.RUNS)]
    return [text for text in found if text.startswith(incomplete)]


Run = Annotated[str, typer.Argument(help="name/stage, name/stage@v0003, or its folder.", autocompletion=_references)]


@runs.command()
def show(run: Run, runs_dir: options.RunsDir = options.RUNS, json: options.Json = False) -> None:
    """Show one run: its figures, inputs, files, and the last samples."""
    entry = _find(run, runs_dir.absolute())
    content: dict[str, Any] = {**output.entry_json(entry), "manifest": entry.manifest}
    content["last_step"] = next(iter(_tail(entry.path / "metrics.jsonl", 1)), None)
    content["samples"] = _tail(entry.path / "samples.jsonl", 4)
    if json:
        output.write_json({"status": "ok", "stage": "runs show", "run": content})
    else:
        output.print_run(content)


@runs.command()
def verify(
    run: Annotated[
        str | None, typer.Argument(help="A run; all where none is named.", autocompletion=_references)
    ] = None,
    runs_dir: options.RunsDir = options.RUNS,
    json: options.Json = False,
) -> None:
    """Read every byte of runs and checkpoints, and hold it against what was written; exit 4 names what differs."""
    entries = [_find(run, runs_dir.absolute())] if run else list(layout.all_runs(runs_dir.absolute()))
    verdicts = [(entry, lineage.verify(entry)) for entry in entries]
    issues = [issue for _, verdict in verdicts for issue in verdict.issues]
    if not json:
        output.print_verdicts(verdicts)
    if issues:
        hint = "Run its stage again, or restore the file."
        raise ModelError([Issue(f.message, f.location, f.hint or hint) for f in issues])
    if json:
        found = [
            {"run": lineage.name_of(entry), "files": verdict.files, "bytes": verdict.bytes}
            for entry, verdict in verdicts
        ]
        output.write_json({"status": "ok", "stage": "runs verify", "runs": found})


@runs.command("lineage")
def lineage_(run: Run, runs_dir: options.RunsDir = options.RUNS, json: options.Json = False) -> None:
    """Show what a run is made of, back to the base and the data."""
    entry = _find(run, runs_dir.absolute())
    found = list(lineage.ancestors(entry))
    if json:
        provenance = [ancestor._asdict() for ancestor in found]
        output.write_json(
            {"status": "ok", "stage": "runs lineage", "run": lineage.name_of(entry), "made_of": provenance}
        )
    else:
        output.print_lineage(entry, found)


@runs.command()
def diff(a: Run, b: Run, runs_dir: options.RunsDir = options.RUNS, json: options.Json = False) -> None:
    """Show where two runs differ: settings, inputs, packages, figures."""
    sides = [_find(text, runs_dir.absolute()) for text in (a, b)]
    found = lineage.differences(*(lineage.facts(entry, _recipe(entry.path)) for entry in sides))
    names = [lineage.name_of(entry) for entry in sides]
    if json:
        output.write_json({"status": "ok", "stage": "runs diff", "a": names[0], "b": names[1], "differs": found})
    else:
        output.print_differences(names, found)


@runs.command()
def rm(
    run: Run,
    force: Annotated[bool, options.Flag("--force", help="Also where other runs are made of it.")] = False,
    runs_dir: options.RunsDir = options.RUNS,
    json: options.Json = False,
) -> None:
    """Remove one version of a run; refused where other runs are made of it."""
    entry = _find(run, runs_dir.absolute())
    if not run.endswith(entry.version):
        raise RecipeError(f"{run} does not name a version.", hint=f"Write {lineage.name_of(entry)}.")
    lineage.remove(runs_dir.absolute(), entry, force=force)
    if json:
        output.write_json({"status": "ok", "stage": "runs rm", "run": lineage.name_of(entry)})
    else:
        typer.echo(f"removed {lineage.name_of(entry)}")


def _recipe(folder: Path) -> dict[str, Any]:
    """The resolved recipe of a run."""
    import yaml

    try:
        return yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ModelError(f"the recipe cannot be read: {error}.", location=str(folder / "recipe.yaml")) from None


def _find(text: str, runs_dir: Path) -> layout.Entry:
    folder = Path(text)
    if folder.is_dir() and layout.VERSION.fullmatch(folder.resolve().name):
        folder = folder.resolve()
        return layout.Entry(folder.parent.parent.name, folder.parent.name, folder.name, folder, read_manifest(folder))
    reference = layout.parse(text, "")
    if not reference.name:
        named = [e for e in layout.all_runs(runs_dir) if e.stage == reference.stage]
        names = sorted({e.name for e in named})
        if not names:
            raise _absent(text, runs_dir)
        if len(names) > 1:
            have = ", ".join(f"{name}/{reference.stage}" for name in names)
            raise RecipeError(f"{text} does not name one run; there are: {have}.", hint="Write name/stage@version.")
        reference = reference._replace(name=names[0])
    versions = layout.versions(runs_dir, reference.name, reference.stage)
    if reference.version is not None:
        versions = [e for e in versions if e.version == reference.version]
    if not versions:
        raise _absent(text, runs_dir)
    complete = [e for e in versions if e.manifest]
    real = [e for e in complete if e.manifest and not e.manifest["smoke"]]
    return (real or complete or versions)[-1]


def _absent(text: str, runs_dir: Path) -> RecipeError:
    known = [name for e in layout.all_runs(runs_dir) for name in (e.stage, f"{e.name}/{e.stage}")]
    near = difflib.get_close_matches(text.partition("@")[0], known, n=1)
    hint = f"Did you mean {near[0]}?" if near and near[0] not in text else "See `rlhf runs list`."
    return RecipeError(f"there is no run {text} in {runs_dir}.", hint=hint)


def _tail(path: Path, count: int) -> list[Any]:
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")  # a killed run leaves half a line
    return [json_module.loads(line) for line in whole.split("\n")[-count:] if line]
