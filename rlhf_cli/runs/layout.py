"""Where runs lie: `<runs_dir>/<name>/<stage>/v0001`, how a version is claimed, and what a reference names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rlhf_cli.errors import DiskError, ModelError, RecipeError
from rlhf_cli.runs.manifest import Manifest, read_manifest

VERSION = re.compile(r"v\d{4,}")
_NAME = r"[A-Za-z0-9][\w.-]*"  # one folder: neither `..` nor one with a `/`
REFERENCE = re.compile(rf"(?:(?P<name>{_NAME})/)?(?P<stage>{_NAME})(?:@(?P<version>latest|v\d{{4,}}))?")


class Reference(NamedTuple):
    """A run by its place: `version` None is the newest complete one."""

    name: str
    stage: str
    version: str | None


class Entry(NamedTuple):
    """A run folder; without a manifest it is incomplete."""

    name: str
    stage: str
    version: str
    path: Path
    manifest: Manifest | None
    damage: str = ""  # why the manifest, though it is there, cannot be read


def number(version: str) -> int:
    """The number of a version's name."""
    return int(version.removeprefix("v"))


def place(path: Path) -> str:
    """`path` relative to the working folder, where it lies below it."""
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else str(path)


def claim(runs_dir: Path, name: str, stage: str) -> Path:
    """Make the next version's folder. `mkdir` is exclusive, so two writers get two numbers.

    Raises:
        DiskError: where the folder cannot be made.
    """
    parent = runs_dir / name / stage
    try:
        parent.mkdir(parents=True, exist_ok=True)
        last = max((number(p.name) for p in parent.iterdir() if VERSION.fullmatch(p.name)), default=0)
        while True:
            last += 1
            path = parent / f"v{last:04d}"
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path
    except OSError as error:
        hint = "Choose another place with --runs-dir."
        raise DiskError(f"a run folder cannot be made: {error.strerror}.", location=str(parent), hint=hint) from None


def point_latest(stage_dir: Path) -> None:
    """Move the `latest` link in `stage_dir` onto its newest complete run, in one step; never back to an older one.

    Raises:
        OSError: on a file system without links.
    """
    newest_run = newest(stage_dir.parents[1], stage_dir.parent.name, stage_dir.name, smoke=False)
    assert newest_run is not None
    fresh = stage_dir / f".latest-{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(newest_run.version)
    fresh.replace(stage_dir / "latest")


def parse(text: str, name: str, *, location: str = "") -> Reference:
    """`stage`, `stage@latest`, `stage@v0003` or `name/stage@v0003`; `name` is the recipe's own.

    Raises:
        RecipeError: it is of another form, such as one that leads out of the runs folder.
    """
    match = REFERENCE.fullmatch(text)
    if match is None:
        hint = "Write stage, stage@v0003, name/stage@v0003, or its folder."
        raise RecipeError(f"{text} names no run.", location=location, hint=hint)
    owner, stage, version = match["name"], match["stage"], match["version"]
    return Reference(owner or name, stage, None if version == "latest" else version)


def versions(runs_dir: Path, name: str, stage: str) -> list[Entry]:
    """The versions of one stage, oldest first."""
    parent = runs_dir / name / stage
    found = sorted((p for p in parent.glob("v*") if VERSION.fullmatch(p.name)), key=lambda p: number(p.name))
    return [_entry(name, stage, p) for p in found]


def _entry(name: str, stage: str, path: Path) -> Entry:
    """One damaged manifest must not hide the runs beside it."""
    try:
        return Entry(name, stage, path.name, path, read_manifest(path))
    except ModelError as error:
        return Entry(name, stage, path.name, path, None, str(error))


def all_runs(runs_dir: Path) -> Iterator[Entry]:
    """Every run below `runs_dir`, by name, stage and version."""
    for stage_dir in sorted(p for p in runs_dir.glob("*/*") if p.is_dir()):
        yield from versions(runs_dir, stage_dir.parent.name, stage_dir.name)


def newest(runs_dir: Path, name: str, stage: str, *, smoke: bool) -> Entry | None:
    """The newest complete version; a smoke run counts for smoke runs alone."""
    complete = [e for e in versions(runs_dir, name, stage) if e.manifest and e.manifest["smoke"] == smoke]
    return complete[-1] if complete else None


def find(runs_dir: Path, text: str, name: str, *, smoke: bool, location: str = "") -> Entry:
    """The complete run that a reference names.

    Raises:
        RecipeError: where there is none, it is incomplete, or a smoke run is asked of a real one.
    """
    reference = parse(text, name, location=location)
    if reference.version is None:
        entry = newest(runs_dir, reference.name, reference.stage, smoke=smoke)
        if entry is not None:
            return entry
        begun = versions(runs_dir, reference.name, reference.stage)
        damaged = next((e for e in reversed(begun) if e.damage), None)
        if damaged is not None:
            raise ModelError(damaged.damage, location=location, hint="Remove this version, and run the stage again.")
        only = ", only smoke runs" if any(e.manifest for e in begun) else ", only incomplete ones" if begun else ""
        message = f"there is no {reference.stage} run of {reference.name} in {runs_dir}{only}."
        raise RecipeError(message, location=location, hint=f"Run `rlhf {reference.stage}` first.")
    path = runs_dir / reference.name / reference.stage / reference.version
    manifest = read_manifest(path)
    if manifest is None:
        found = versions(runs_dir, reference.name, reference.stage)
        have = [e.version for e in found if e.manifest and e.manifest["smoke"] == smoke]
        state = "is incomplete" if path.is_dir() else "does not exist"
        hint = f"Complete are: {', '.join(have)}." if have else f"Run `rlhf {reference.stage}` first."
        raise RecipeError(f"the run {text} {state}.", location=location, hint=hint)
    if manifest["smoke"] and not smoke:
        raise RecipeError(
            f"the run {text} is a smoke run, of random weights.", location=location, hint="Name a real run."
        )
    return Entry(reference.name, reference.stage, reference.version, path, manifest)
