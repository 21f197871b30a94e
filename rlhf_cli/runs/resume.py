"""Runs that are not complete: in which state they are, and how one is taken up again where its checkpoint stands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_cli.errors import DiskError, Issue, ModelError, RecipeError
from rlhf_cli.runs import layout
from rlhf_cli.runs.checkpoint import checkpoints, remove, step_of
from rlhf_cli.runs.layout import Entry
from rlhf_cli.runs.lock import Lock, acquire_lock, lock_holder, read_started
from rlhf_cli.runs.manifest import Manifest, damage, read_manifest, sync

JOURNALS = ("metrics.jsonl", "samples.jsonl")  # a line a step, or some, by its key "step"
START_OVER_HINT = "Run the same command without --resume."
FAILED = "warning: failed: "  # how the last line of a failed run's log begins


class ResumableRun(NamedTuple):
    """A run that was stopped or killed, owned by this process now."""

    path: Path
    lock: Lock
    origin: dict[str, Any]
    passed: list[str]  # newer versions that cannot be resumed, and why


class ResumePoint(NamedTuple):
    """The checkpoint to go on from."""

    path: Path
    manifest: Manifest
    passed: list[str]  # newer ones that are damaged, and how


def incomplete_versions(runs_dir: Path, name: str, stage: str, *, smoke: bool) -> list[Entry]:
    """The versions without a manifest, newest first; smoke runs alone where `smoke`."""
    entries = [e for e in layout.versions(runs_dir, name, stage) if e.manifest is None and not e.damage]
    return [e for e in reversed(entries) if (read_started(e.path) or {}).get("smoke", smoke) == smoke]


def is_latest_resumable(runs_dir: Path, name: str, stage: str, *, smoke: bool) -> bool:
    """Whether the newest version was stopped after it had saved, or is under way."""
    found = incomplete_versions(runs_dir, name, stage, smoke=smoke)[:1]
    done = layout.newest(runs_dir, name, stage, smoke=smoke)
    if not found or (done is not None and layout.number(done.version) > layout.number(found[0].version)):
        return False
    return bool(checkpoints(found[0].path / "checkpoints") or lock_holder(found[0].path))


def acquire_resumable(runs_dir: Path, name: str, stage: str, *, smoke: bool) -> ResumableRun:
    """The newest incomplete version that has a checkpoint and no living owner.

    Raises:
        RecipeError: there is none.
        DiskError: there is, and a living process works on it.
    """
    passed: list[str] = []
    alive = False
    for entry in incomplete_versions(runs_dir, name, stage, smoke=smoke):
        try:
            lock = acquire_lock(entry.path)
        except BlockingIOError:
            alive = True
            passed.append(f"{entry.version} is under way, by {lock_holder(entry.path)}")
            continue
        origin = read_started(entry.path)
        if origin is not None and checkpoints(entry.path / "checkpoints"):
            return ResumableRun(entry.path, lock, origin, passed)
        lock.release()
        passed.append(f"{entry.version} has no checkpoint: it ended before its first one")
    location = str(runs_dir / name / stage)
    if not passed:
        raise RecipeError("there is no incomplete run to resume.", location=location, hint=START_OVER_HINT)
    message = f"nothing can be resumed: {'; '.join(passed)}."
    if alive:
        raise DiskError(message, location=location, hint=f"Wait for it to end. {START_OVER_HINT}")
    raise RecipeError(message, location=location, hint=START_OVER_HINT)


def newest_checkpoint(path: Path) -> ResumePoint:
    """The newest checkpoint of the run in `path` whose files are as its manifest has them.

    Raises:
        ModelError: none is.
    """
    passed: list[Issue] = []
    for folder in reversed(checkpoints(path / "checkpoints")):
        try:
            manifest = read_manifest(folder)
        except ModelError as error:
            passed += error.issues
            continue
        issues = [Issue("it has no manifest.", str(folder))] if manifest is None else damage(folder, manifest)
        if manifest is not None and not issues:
            return ResumePoint(folder, manifest, [str(issue) for issue in passed])
        passed += issues
    raise ModelError([Issue(f.message, f.location, START_OVER_HINT) for f in passed])


def rewind(path: Path, checkpoint: Path) -> None:
    """Take away what the run made after `checkpoint`: it will make it again."""
    for folder in checkpoints(path / "checkpoints"):
        if step_of(folder) > step_of(checkpoint):
            remove(folder)
    if (path / "model").is_dir():
        shutil.rmtree(path / "model")
    for name in JOURNALS:
        if (path / name).exists():
            kept = "".join(_lines_until(path / name, step_of(checkpoint)))
            temporary = path / f".{name}.tmp"
            temporary.write_text(kept, encoding="utf-8")
            sync(temporary)
            temporary.replace(path / name)


def _lines_until(journal: Path, step: int) -> Iterator[str]:
    """The whole lines of `journal` up to `step`; a killed process leaves half a one."""
    with journal.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if line.endswith("\n") and row.get("step", 0) <= step:
                yield line


def describe_incomplete(path: Path) -> str:
    """How the incomplete run in `path` stands, in a few words."""
    who = lock_holder(path)
    if who:
        return f"running, {who}"
    log = path / "log.txt"
    last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:] if log.exists() else []
    ended = "failed" if last and last[0].partition(" ")[2].startswith(FAILED) else "stopped"
    saved = checkpoints(path / "checkpoints")
    return f"{ended}, saved at step {step_of(saved[-1])}" if saved else ended
