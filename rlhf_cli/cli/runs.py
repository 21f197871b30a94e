"""`rlhf runs`: list, show, verify, compare and remove runs."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from rlhf_cli.cli import json_output, options, run_details, tables
from rlhf_cli.cli.output import Output
from rlhf_cli.errors import Issue, ModelError, RecipeError
from rlhf_cli.formatting import did_you_mean, format_path
from rlhf_cli.runs import layout, lineage

RESTORE_HINT = "Run the stage again, or restore the file."
SHOWN_SAMPLES = 4

runs = typer.Typer(help="List, show, verify, compare and remove runs.", no_args_is_help=True)


def _complete_run(incomplete: str) -> list[str]:
    names = [lineage.name_of(entry) for entry in layout.all_runs(options.DEFAULT_RUNS_DIR)]
    return [name for name in names if name.startswith(incomplete)]


_RunArgument = typer.Argument(
    metavar="RUN", help="A run: stage, name/stage, name/stage@v0003, or its directory.", autocompletion=_complete_run
)
RunArgument = Annotated[str, _RunArgument]
OptionalRunArgument = Annotated[
    str | None,
    typer.Argument(metavar="RUN", help="A run. Defaults to all runs.", autocompletion=_complete_run),
]


@runs.command("list")
def list_(runs_dir: options.RunsDir = options.DEFAULT_RUNS_DIR, json: options.Json = False) -> None:
    """List all runs from oldest to newest, with state, time and main metrics."""
    entries = sorted(layout.all_runs(runs_dir.absolute()), key=tables.start_time)
    Output(json=json).result(
        {"stage": "runs list", "runs": [json_output.run_object(entry) for entry in entries]},
        lambda console: tables.print_runs(console, runs_dir, entries),
    )


@runs.command()
def show(run: RunArgument, runs_dir: options.RunsDir = options.DEFAULT_RUNS_DIR, json: options.Json = False) -> None:
    """Show one run: its metrics, inputs, files and last samples."""
    entry = _find_run(run, runs_dir.absolute())
    content = {
        **json_output.run_object(entry),
        "manifest": entry.manifest,
        "last_step": next(iter(_last_rows(entry.path / "metrics.jsonl", 1)), None),
        "samples": _last_rows(entry.path / "samples.jsonl", SHOWN_SAMPLES),
    }
    Output(json=json).result(
        {"stage": "runs show", "run": content}, lambda console: run_details.print_run(console, content)
    )


@runs.command()
def verify(
    run: OptionalRunArgument = None,
    runs_dir: options.RunsDir = options.DEFAULT_RUNS_DIR,
    json: options.Json = False,
) -> None:
    """Verify the files of all models and checkpoints against their manifests. Exit with code 4 if any file differs."""
    output = Output(json=json)
    entries = [_find_run(run, runs_dir.absolute())] if run else list(layout.all_runs(runs_dir.absolute()))
    verifications = [(entry, lineage.verify(entry)) for entry in entries]
    output.text(lambda console: tables.print_verifications(console, verifications))
    issues = [issue for _, verification in verifications for issue in verification.issues]
    if issues:
        raise ModelError([Issue(i.code, i.message, i.location, i.hint or RESTORE_HINT) for i in issues])
    intact = [
        {"run": lineage.name_of(entry), "files": verification.files, "bytes": verification.bytes}
        for entry, verification in verifications
    ]
    output.result({"stage": "runs verify", "runs": intact})


@runs.command("lineage")
def lineage_(
    run: RunArgument, runs_dir: options.RunsDir = options.DEFAULT_RUNS_DIR, json: options.Json = False
) -> None:
    """Show what a run was made from, back to the base model and the data."""
    entry = _find_run(run, runs_dir.absolute())
    ancestors = list(lineage.ancestors(entry))
    Output(json=json).result(
        {
            "stage": "runs lineage",
            "run": lineage.name_of(entry),
            "ancestors": [ancestor._asdict() for ancestor in ancestors],
        },
        lambda console: tables.print_lineage(console, entry, ancestors),
    )


@runs.command()
def diff(
    run: RunArgument,
    other: RunArgument,
    runs_dir: options.RunsDir = options.DEFAULT_RUNS_DIR,
    json: options.Json = False,
) -> None:
    """Show the settings, inputs, packages and metrics in which two runs differ."""
    entries = [_find_run(text, runs_dir.absolute()) for text in (run, other)]
    differences = lineage.differences(
        *(lineage.comparable_values(entry, _read_recipe(entry.path)) for entry in entries)
    )
    names = [lineage.name_of(entry) for entry in entries]
    Output(json=json).result(
        {"stage": "runs diff", "runs": names, "differences": differences},
        lambda console: tables.print_differences(console, names, differences),
    )


@runs.command()
def rm(
    run: RunArgument,
    force: Annotated[bool, options.Flag("--force", help="Remove the run even if other runs depend on it.")] = False,
    runs_dir: options.RunsDir = options.DEFAULT_RUNS_DIR,
    json: options.Json = False,
) -> None:
    """Remove a run. Fails if other runs depend on it."""
    entry = _find_run(run, runs_dir.absolute())
    name = lineage.name_of(entry)
    if not run.endswith(entry.version):
        raise RecipeError("recipe.ambiguous-run", f"{run} does not specify a version.", hint=f"Use {name}.")
    lineage.remove(runs_dir.absolute(), entry, force=force)
    Output(json=json).result(
        {"stage": "runs rm", "run": name},
        lambda console: console.print(f"removed {name}", markup=False, soft_wrap=True),
    )


def _read_recipe(folder: Path) -> dict[str, Any]:
    """Return the resolved recipe of a run as plain values."""
    import yaml

    path = folder / "recipe.yaml"
    try:
        recipe: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        message = f"the recipe of the run cannot be read: {error}."
        raise ModelError("model.damaged-file", message, location=str(path), hint=RESTORE_HINT) from None
    return recipe


def _find_run(text: str, runs_dir: Path) -> layout.RunEntry:
    """Return the run that `text` names: a directory, or a reference without which the name may be left out.

    Raises:
        RecipeError: The run does not exist, or several recipes have a run of this stage.
    """
    folder = Path(text)
    if folder.is_dir() and layout.VERSION.fullmatch(folder.resolve().name):
        return layout.read_entry(folder.resolve())
    reference = layout.parse(text, "")
    name = reference.name or _only_name(text, reference.stage, runs_dir)
    versions = layout.versions(runs_dir, name, reference.stage)
    if reference.version is not None:
        versions = [entry for entry in versions if entry.version == reference.version]
    if not versions:
        raise _run_not_found(text, runs_dir)
    complete = [entry for entry in versions if entry.manifest]
    real = [entry for entry in complete if entry.manifest and not entry.manifest["smoke"]]
    return (real or complete or versions)[-1]


def _only_name(text: str, stage: str, runs_dir: Path) -> str:
    """Return the name of the only recipe that has a run of `stage`."""
    names = sorted({entry.name for entry in layout.all_runs(runs_dir) if entry.stage == stage})
    if not names:
        raise _run_not_found(text, runs_dir)
    if len(names) > 1:
        found = ", ".join(f"{name}/{stage}" for name in names)
        message = f"{text} is ambiguous; found {found}."
        raise RecipeError("recipe.ambiguous-run", message, hint="Use name/stage@version.")
    return names[0]


def _run_not_found(text: str, runs_dir: Path) -> RecipeError:
    known = [name for entry in layout.all_runs(runs_dir) for name in (entry.stage, f"{entry.name}/{entry.stage}")]
    wanted = text.partition("@")[0]
    hint = "" if wanted in known else did_you_mean(wanted, known)
    message = f"run not found: {text} in {format_path(runs_dir)}."
    return RecipeError("recipe.run-not-found", message, hint=hint or "See `rlhf runs list`.")


def _last_rows(path: Path, count: int) -> list[Any]:
    """Return the last rows of a JSONL file; a half-written last line of a killed run is ignored."""
    if not path.exists():
        return []
    complete, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json_module.loads(line) for line in complete.split("\n")[-count:] if line]
