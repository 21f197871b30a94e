"""Locate runs: `<runs_dir>/<name>/<stage>/v0001`. Claim versions, list runs, and resolve references to runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from rlhf_cli.errors import DiskError, ModelError, RecipeError
from rlhf_cli.run_reference import RunReference, parse_run_reference
from rlhf_cli.runs.manifest import Manifest, read_manifest

VERSION = re.compile(r"v\d{4,}")
LAST_VERSION_FILE = ".last"  # holds the largest number when a run was removed, so that no number is used again
_REMOVED, _NEW_LINK = ".removed-", ".latest-"  # prefixes of what a kill may leave behind


class RunEntry(NamedTuple):
    """A run's folder and manifest.

    Attributes:
        name: The name of the recipe.
        stage: The stage that wrote the run.
        version: Such as `v0003`.
        path: The run's folder.
        manifest: None if the run is incomplete, or if its manifest cannot be read.
        manifest_error: The manifest's path and why it cannot be read; empty if it can, or if there is none.
    """

    name: str
    stage: str
    version: str
    path: Path
    manifest: Manifest | None
    manifest_error: str = ""


def version_number(version: str) -> int:
    """Return the number of a version such as `v0003`."""
    return int(version.removeprefix("v"))


def claim(runs_dir: Path, name: str, stage: str) -> Path:
    """Create the folder of the next version, and repair what a kill may have left in the folder of the stage.

    `mkdir` is exclusive, so two writers get two numbers. The number of a removed run is not used again.

    Raises:
        DiskError: The folder cannot be created.
    """
    parent = runs_dir / name / stage
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with _locked(parent):
            _sweep(parent)
            with contextlib.suppress(OSError):  # the file system may have no links
                _update_latest(parent)
            last = _last_version(parent)
            while True:
                last += 1
                path = parent / f"v{last:04d}"
                try:
                    path.mkdir()
                except FileExistsError:
                    continue
                return path
    except OSError as error:
        message = f"the run's directory cannot be created: {error.strerror}."
        hint = "Choose another directory with --runs-dir."
        raise DiskError("disk.not-writable", message, location=str(parent), hint=hint) from None


def point_latest(stage_dir: Path) -> None:
    """Point the link `latest` in `stage_dir` at its newest complete run, by rename. No-op if it points there.

    Two writers wait for each other, so that the link never goes back to an older run.

    Raises:
        OSError: The file system has no links.
    """
    with _locked(stage_dir):
        _update_latest(stage_dir)


def remove_version(path: Path) -> None:
    """Remove the folder of a version. The link `latest` is moved first, and the number is not used again."""
    stage_dir = path.parent
    with _locked(stage_dir):
        (stage_dir / LAST_VERSION_FILE).write_text(f"{_last_version(stage_dir)}\n", encoding="utf-8")
        _update_latest(stage_dir, without=path.name)
        renamed = stage_dir / f"{_REMOVED}{secrets.token_hex(4)}"
        path.rename(renamed)  # first, so that a partly removed run has no valid name
        _sweep(stage_dir)


def _update_latest(stage_dir: Path, *, without: str = "") -> None:
    """Point `latest` at the newest complete run other than the version `without`, or remove it if there is none."""
    complete = [
        entry
        for entry in versions(stage_dir.parents[1], stage_dir.parent.name, stage_dir.name)
        if entry.manifest and not entry.manifest["smoke"] and entry.version != without
    ]
    latest = stage_dir / "latest"
    if not complete:
        if latest.is_symlink():
            latest.unlink()
        return
    target = complete[-1].version
    if latest.is_symlink() and latest.readlink() == Path(target):
        return
    link = stage_dir / f"{_NEW_LINK}{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    link.replace(latest)


def _last_version(stage_dir: Path) -> int:
    """Return the largest version number of a run in `stage_dir`, removed ones included, or 0."""
    numbers = [version_number(path.name) for path in stage_dir.iterdir() if VERSION.fullmatch(path.name)]
    with contextlib.suppress(FileNotFoundError, ValueError):
        numbers.append(int((stage_dir / LAST_VERSION_FILE).read_text(encoding="utf-8")))
    return max(numbers, default=0)


def _sweep(stage_dir: Path) -> None:
    """Remove the runs and links that a killed process was removing or creating. The caller holds the lock."""
    for path in stage_dir.glob(f"{_REMOVED}*"):
        shutil.rmtree(path)
    for path in stage_dir.glob(f"{_NEW_LINK}*"):
        path.unlink()


@contextlib.contextmanager
def _locked(stage_dir: Path) -> Iterator[None]:
    """Hold the lock of a stage's folder, unless its file system has no locks."""
    descriptor = os.open(stage_dir, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def parse(text: str, name: str, *, location: str = "") -> RunReference:
    """Parse a reference to a run. In the result, the name is filled in, and the version is None for the latest run.

    Args:
        text: The reference.
        name: The name of the recipe that has the reference.
        location: The location of the issue.

    Raises:
        RecipeError: `text` is not a reference to a run.
    """
    reference = parse_run_reference(text)
    if reference is None:
        message = f"invalid reference to a run; found {text}, expected stage, stage@v0003 or name/stage@v0003."
        hint = "Use one of these, or the run's directory."
        raise RecipeError("recipe.invalid-run-reference", message, location=location, hint=hint)
    version = None if reference.version == "latest" else reference.version
    return RunReference(reference.name or name, reference.stage, version)


def versions(runs_dir: Path, name: str, stage: str) -> list[RunEntry]:
    """Return the versions of one stage, oldest first."""
    parent = runs_dir / name / stage
    paths = sorted((p for p in parent.glob("v*") if VERSION.fullmatch(p.name)), key=lambda p: version_number(p.name))
    return [read_entry(path) for path in paths]


def read_entry(path: Path) -> RunEntry:
    """Return the run in `path`. An unreadable manifest is not raised but recorded, so that it hides no other run."""
    name, stage, version = path.parent.parent.name, path.parent.name, path.name
    try:
        return RunEntry(name, stage, version, path, read_manifest(path))
    except (ModelError, DiskError) as error:
        issue = error.issues[0]
        return RunEntry(name, stage, version, path, None, f"{issue.location}: {issue.message}")


def all_runs(runs_dir: Path, name: str = "*") -> Iterator[RunEntry]:
    """Yield every run below `runs_dir`, or only those of the recipe `name`, sorted by name, stage and version."""
    for stage_dir in sorted(p for p in runs_dir.glob(f"{name}/*") if p.is_dir()):
        yield from versions(runs_dir, stage_dir.parent.name, stage_dir.name)


def newest(runs_dir: Path, name: str, stage: str, *, smoke: bool) -> RunEntry | None:
    """Return the newest complete version, or None if there is none. Of smoke and real runs, only one kind counts."""
    complete = [e for e in versions(runs_dir, name, stage) if e.manifest and e.manifest["smoke"] == smoke]
    return complete[-1] if complete else None


def find(
    runs_dir: Path,
    text: str,
    name: str,
    *,
    smoke: bool,
    location: str = "",
    command_of: Callable[[str], str] = "rlhf {}".format,
) -> RunEntry:
    """Return the complete run that the reference `text` names.

    Args:
        runs_dir: The runs directory.
        text: The reference, such as `sft` or `sft@v0003`.
        name: The name of the recipe that has the reference.
        smoke: Whether a smoke run has the reference. Only smoke runs may refer to smoke runs.
        location: The location of an issue.
        command_of: Returns the command that runs a stage, for hints.

    Raises:
        RecipeError: The run does not exist, is incomplete, or is a smoke run that a real run refers to.
        ModelError: Its manifest cannot be read.
    """
    reference = parse(text, name, location=location)
    assert reference.name is not None
    if reference.version is None:
        entry = newest(runs_dir, reference.name, reference.stage, smoke=smoke)
        if entry is None:
            raise _no_complete_run(runs_dir, reference, location, command_of(reference.stage))
        return entry
    path = runs_dir / reference.name / reference.stage / reference.version
    manifest = read_manifest(path)
    if manifest is None:
        complete = [
            entry.version
            for entry in versions(runs_dir, reference.name, reference.stage)
            if entry.manifest is not None and entry.manifest["smoke"] == smoke
        ]
        hint = (
            f"Complete versions: {', '.join(complete)}." if complete else f"Run `{command_of(reference.stage)}` first."
        )
        if path.is_dir():
            raise RecipeError("recipe.incomplete-run", f"the run {text} is incomplete.", location=location, hint=hint)
        message = f"run not found: {text} in {runs_dir}."
        raise RecipeError("recipe.run-not-found", message, location=location, hint=hint)
    if manifest["smoke"] and not smoke:
        message = f"{text} is a smoke run with random weights; expected a real run."
        raise RecipeError("recipe.smoke-run", message, location=location, hint="Use a real run.")
    return RunEntry(reference.name, reference.stage, reference.version, path, manifest)


def _no_complete_run(runs_dir: Path, reference: RunReference, location: str, command: str) -> RecipeError | ModelError:
    """Return an error that says which runs of the stage exist, if any. `command` runs the stage."""
    name, stage = str(reference.name), reference.stage
    found = versions(runs_dir, name, stage)
    damaged = next((entry for entry in reversed(found) if entry.manifest_error), None)
    if damaged is not None:
        hint = "Remove this run, and run the stage again."
        return ModelError("model.damaged-manifest", damaged.manifest_error, location=location, hint=hint)
    hint = f"Run `{command}` first."
    if any(entry.manifest for entry in found):
        message = f"the {stage} runs of {name} in {runs_dir} are smoke runs; expected a real run."
        return RecipeError("recipe.smoke-run", message, location=location, hint=hint)
    if found:
        message = f"the {stage} runs of {name} in {runs_dir} are incomplete."
        return RecipeError("recipe.incomplete-run", message, location=location, hint=hint)
    message = f"run not found: {stage} of {name} in {runs_dir}."
    return RecipeError("recipe.run-not-found", message, location=location, hint=hint)
