"""Find incomplete runs, and prepare one to resume from its newest undamaged checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rlhf_cli.errors import DiskError, Issue, ModelError, RecipeError
from rlhf_cli.runs import layout
from rlhf_cli.runs.checkpoint import checkpoint_step, checkpoints, read_checkpoint_manifest, remove
from rlhf_cli.runs.layout import RunEntry
from rlhf_cli.runs.lock import Lock, StartRecord, acquire_lock, lock_holder, read_started
from rlhf_cli.runs.manifest import Manifest, sync, verify_files

STEP_LOGS = ("metrics.jsonl", "samples.jsonl")  # JSON lines with the key "step"
START_OVER_HINT = "Run the same command without --resume."
FAILURE_PREFIX = "failed: "  # how the last message in the log of a failed run begins


class ResumableRun(NamedTuple):
    """An incomplete run with a checkpoint, locked by this process.

    Attributes:
        path: The run's folder.
        lock: The lock, to be released if the run is not resumed.
        record: What the run was started with.
        skipped: Newer versions that cannot be resumed, and why.
    """

    path: Path
    lock: Lock
    record: StartRecord
    skipped: list[str]


class ResumePoint(NamedTuple):
    """The checkpoint to resume from.

    Attributes:
        path: The checkpoint's folder.
        manifest: Its manifest.
        skipped: Newer checkpoints that are damaged, and how.
    """

    path: Path
    manifest: Manifest
    skipped: list[str]


def incomplete_versions(runs_dir: Path, name: str, stage: str, *, smoke: bool) -> list[RunEntry]:
    """Return the versions without a manifest, newest first: smoke runs or real ones. Unknown ones count as both."""
    found = []
    for entry in reversed(layout.versions(runs_dir, name, stage)):
        if entry.manifest is None and not entry.manifest_error:
            record = read_started(entry.path)
            if record is None or record.smoke == smoke:
                found.append(entry)
    return found


def is_latest_resumable(runs_dir: Path, name: str, stage: str, *, smoke: bool) -> bool:
    """Return whether the newest version is incomplete and has a checkpoint or a running process."""
    found = incomplete_versions(runs_dir, name, stage, smoke=smoke)[:1]
    complete = layout.newest(runs_dir, name, stage, smoke=smoke)
    if not found:
        return False
    if complete is not None and layout.version_number(complete.version) > layout.version_number(found[0].version):
        return False
    return bool(checkpoints(found[0].path / "checkpoints") or lock_holder(found[0].path))


def acquire_resumable(runs_dir: Path, name: str, stage: str, *, smoke: bool) -> ResumableRun:
    """Lock and return the newest incomplete version that has a checkpoint and no running process.

    Raises:
        RecipeError: No such version exists.
        DiskError: No such version exists, but a running process uses an incomplete one.
    """
    skipped: list[str] = []
    is_locked = False
    for entry in incomplete_versions(runs_dir, name, stage, smoke=smoke):
        try:
            lock = acquire_lock(entry.path)
        except BlockingIOError:
            is_locked = True
            skipped.append(f"{entry.version} is in use by {lock_holder(entry.path)}")
            continue
        record = read_started(entry.path)
        if record is not None and checkpoints(entry.path / "checkpoints"):
            return ResumableRun(entry.path, lock, record, skipped)
        lock.release()
        skipped.append(f"{entry.version} ended before its first checkpoint")
    location = str(runs_dir / name / stage)
    reasons = f": {'; '.join(skipped)}" if skipped else ""
    message = f"no incomplete run to resume{reasons}."
    if is_locked:
        raise DiskError(
            "disk.locked",
            message,
            location=location,
            hint="Wait for it to end, or run the same command without --resume.",
        )
    raise RecipeError("recipe.nothing-to-resume", message, location=location, hint=START_OVER_HINT)


def newest_checkpoint(path: Path) -> ResumePoint:
    """Return the newest checkpoint of the run in `path` whose files all match its manifest.

    Raises:
        ModelError: Every checkpoint is damaged.
    """
    skipped: list[Issue] = []
    for folder in reversed(checkpoints(path / "checkpoints")):
        try:
            manifest = read_checkpoint_manifest(folder)
        except ModelError as error:
            skipped += error.issues
            continue
        issues = verify_files(folder, manifest)
        if not issues:
            return ResumePoint(folder, manifest, [f"{issue.location}: {issue.message}" for issue in skipped])
        skipped += issues
    raise ModelError([Issue(issue.code, issue.message, issue.location, START_OVER_HINT) for issue in skipped])


def rewind(path: Path, checkpoint: Path) -> None:
    """Remove what the run in `path` wrote after `checkpoint`: later checkpoints, the model and logged steps."""
    for folder in checkpoints(path / "checkpoints"):
        if checkpoint_step(folder) > checkpoint_step(checkpoint):
            remove(folder)
    if (path / "model").is_dir():
        shutil.rmtree(path / "model")
    for name in STEP_LOGS:
        if (path / name).exists():
            kept = "".join(_lines_until(path / name, checkpoint_step(checkpoint)))
            temporary = path / f".{name}.tmp"
            temporary.write_text(kept, encoding="utf-8")
            sync(temporary)
            temporary.replace(path / name)


def _lines_until(log: Path, step: int) -> Iterator[str]:
    """Yield the complete lines of `log` up to `step`. A killed process may leave a partial one."""
    with log.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if line.endswith("\n") and row.get("step", 0) <= step:
                yield line


def describe_incomplete(path: Path) -> str:
    """Return the state of the incomplete run in `path`, such as `stopped, saved at step 20`."""
    holder = lock_holder(path)
    if holder:
        return f"running, {holder}"
    log = path / "log.txt"
    last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:] if log.exists() else []
    state = "failed" if last and last[0].partition(" ")[2].startswith(FAILURE_PREFIX) else "stopped"
    saved = checkpoints(path / "checkpoints")
    return f"{state}, saved at step {checkpoint_step(saved[-1])}" if saved else state
