"""Check free space, and recognize errors of a disk that is full, read-only or not writable."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rlhf_cli.errors import DiskError
from rlhf_cli.formatting import format_bytes

OTHER_DIR_HINT = "Free up space, or choose another directory with --runs-dir."
DISK_ERRNOS = {  # errno: code of the issue
    errno.ENOSPC: "disk.full",
    errno.EDQUOT: "disk.full",
    errno.EFBIG: "disk.full",
    errno.EROFS: "disk.not-writable",
    errno.EACCES: "disk.not-writable",
    errno.EPERM: "disk.not-writable",
    errno.EIO: "disk.not-writable",
}
_RUST_ERRNO = re.compile(r"\(os error (\d+)\)")  # how Rust libraries such as safetensors write an errno


class DiskProblem(NamedTuple):
    """An error of the disk: the code of its issue, and the operating system's description."""

    code: str
    description: str


def classify(error: BaseException) -> DiskProblem | None:
    """Return which problem of the disk caused `error`, or None if another one did."""
    rust_errno = _RUST_ERRNO.search(str(error))
    number = error.errno if isinstance(error, OSError) else int(rust_errno[1]) if rust_errno is not None else None
    if number is None or number not in DISK_ERRNOS:
        return None
    return DiskProblem(DISK_ERRNOS[number], os.strerror(number))


@contextmanager
def convert_disk_errors(folder: Path) -> Iterator[None]:
    """Convert errors of the disk to DiskError; other errors pass unchanged.

    Args:
        folder: The location of the issue if the error has no file name.
    """
    try:
        yield
    except OSError as error:
        problem = classify(error)
        if problem is None:
            raise
        location = str(error.filename or folder)
        raise DiskError(problem.code, f"{problem.description}.", location=location, hint=OTHER_DIR_HINT) from error


def check_free(folder: Path, needed: int, *, saved: str | None, hint: str) -> None:
    """Raise DiskError if fewer than `needed` bytes are free in `folder`.

    Args:
        folder: A folder on the disk.
        needed: The size of a checkpoint in bytes.
        saved: Path of the last checkpoint, or None if there is none.
        hint: What to do.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        message = f"not enough space for a checkpoint; found {format_bytes(free)}, expected {format_bytes(needed)}."
        kept = "" if saved is None else f" The last checkpoint is complete: {saved}."
        raise DiskError("disk.full", message + kept, location=str(folder), hint=hint)
