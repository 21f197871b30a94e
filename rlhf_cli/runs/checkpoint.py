"""Write checkpoints atomically: a temporary folder, its manifest last, then one rename."""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_cli.errors import ModelError
from rlhf_cli.formatting import format_path
from rlhf_cli.runs import disk
from rlhf_cli.runs.manifest import SCHEMA, Manifest, hash_files, read_manifest, sync, write_manifest

RESUME_HINT = "Run the same command with --resume to continue."
KEEP_LAST = 2  # checkpoints; if the newest one is damaged, a run resumes from the one before
_NAME = re.compile(r"step-\d{6,}")


def checkpoint_path(parent: Path, step: int) -> Path:
    """Return the path of the checkpoint of `step`."""
    return parent / f"step-{step:06d}"


def checkpoint_step(folder: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(folder.name.removeprefix("step-"))


def checkpoints(parent: Path) -> list[Path]:
    """Return the committed checkpoints below `parent`, oldest first. Their files are not verified."""
    return sorted((p for p in parent.glob("step-*") if _NAME.fullmatch(p.name)), key=checkpoint_step)


def read_checkpoint_manifest(folder: Path) -> Manifest:
    """Return the manifest of a checkpoint.

    Raises:
        ModelError: It is missing or cannot be read.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise ModelError("model.damaged-manifest", "the checkpoint has no manifest.", location=str(folder))
    return manifest


@contextmanager
def write_checkpoint(target: Path, content: Mapping[str, Any], *, size: int = 0) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` on a clean exit. Then remove all but the last KEEP_LAST checkpoints.

    Args:
        target: The path of the checkpoint.
        content: What the manifest holds besides the list of files.
        size: Expected size in bytes; 0 if unknown. The size of the last checkpoint is expected at least.

    Raises:
        DiskError: Too little space is left. Nothing was written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(".tmp-*"):  # of a killed process: only the process with the run's lock saves
        shutil.rmtree(leftover, ignore_errors=True)
    last = next(reversed(checkpoints(target.parent)), None)
    disk.check_free(
        target.parent,
        size if last is None else max(size, sum(p.stat().st_size for p in last.rglob("*") if p.is_file())),
        saved=None if last is None else format_path(last),
        hint=disk.OTHER_DIR_HINT if last is None else f"Free up space. {RESUME_HINT}",
    )
    temporary = target.parent / f".tmp-{secrets.token_hex(4)}"
    temporary.mkdir()
    try:
        yield temporary
        write_manifest(temporary, {"schema": SCHEMA, **content, "files": hash_files(temporary)})
        temporary.rename(target)  # would also replace an empty folder, so `target` is never created before
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(target.parent)
    for old in checkpoints(target.parent)[:-KEEP_LAST]:
        remove(old)


def remove(folder: Path) -> None:
    """Remove a checkpoint, or the folder of all. Rename it first, so that a partly removed one has no valid name."""
    renamed = folder.with_name(f".tmp-{secrets.token_hex(4)}")
    folder.rename(renamed)
    shutil.rmtree(renamed, ignore_errors=True)
