"""Checkpoints: a temporary folder, its manifest last, then one rename. What has the name is whole."""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_cli.runs import disk
from rlhf_cli.runs.layout import place
from rlhf_cli.runs.manifest import SCHEMA, files_of, sync, write_manifest

RESUME_HINT = "Run the same command with --resume to go on."
KEPT = 2  # the newest, so that one that is damaged has a predecessor
_NAME = re.compile(r"step-\d{6,}")


def path_of(parent: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return parent / f"step-{step:06d}"


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name."""
    return int(folder.name.removeprefix("step-"))


def checkpoints(parent: Path) -> list[Path]:
    """The committed checkpoints below `parent`, oldest first; not verified."""
    return sorted((p for p in parent.glob("step-*") if _NAME.fullmatch(p.name)), key=step_of)


@contextmanager
def committed(target: Path, content: Mapping[str, Any], *, size: int = 0) -> Iterator[Path]:
    """Yield an empty folder; on a clean exit it becomes `target`, with a manifest of `content` and of its files.

    Older ones than the newest KEPT go when this one is on the disk. `size`: bytes that it will take, where known;
    never less than the newest one before it.

    Raises:
        DiskError: before anything is written, where the disk has not that much left.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(".tmp-*"):  # of a process that was killed: a run has one owner
        shutil.rmtree(left, ignore_errors=True)
    last = next(reversed(checkpoints(target.parent)), None)
    needed = size if last is None else max(size, sum(p.stat().st_size for p in last.rglob("*") if p.is_file()))
    disk.check_free(
        target.parent,
        needed,
        saved=place(last) if last else None,
        hint=f"Free space. {RESUME_HINT}" if last else disk.ELSEWHERE,
    )
    temporary = target.parent / f".tmp-{secrets.token_hex(4)}"
    temporary.mkdir()
    try:
        yield temporary
        write_manifest(temporary, {"schema": SCHEMA, **content, "files": files_of(temporary)})
        temporary.rename(target)  # onto an empty folder this would succeed too: `target` is never made before
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(target.parent)
    for old in checkpoints(target.parent)[:-KEPT]:
        remove(old)


def remove(folder: Path) -> None:
    """Take a checkpoint, or all, away: the name first, so that no half is ever taken for a whole."""
    gone = folder.with_name(f".tmp-{secrets.token_hex(4)}")
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
