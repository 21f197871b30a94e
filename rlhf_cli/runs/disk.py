"""A disk that is full, read-only or closed to us: seen before a save where it can be, and told as what it is."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_cli.errors import DiskError

KINDS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)
ELSEWHERE = "Free space, or choose another place with --runs-dir."


def failure(error: Exception) -> str | None:
    """What the disk had against it, in words; None where `error` is none of the disk's.

    Libraries in Rust, such as safetensors, raise errors of their own that end in "(os error 28)".
    """
    said = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(said[1]) if said else None
    return os.strerror(number) if number in KINDS else None


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Inside, what the disk refuses is a DiskError."""
    try:
        yield
    except OSError as error:
        text = failure(error)
        if text is None:
            raise
        raise DiskError(f"{text}.", location=str(error.filename or folder), hint=ELSEWHERE) from error


def check_free(folder: Path, needed: int, *, saved: str | None, hint: str) -> None:
    """Raise DiskError where fewer than `needed` bytes are free in `folder`; `saved` is what was saved before."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        message = f"a checkpoint takes {size(needed)}, and {size(free)} are free."
        kept = f" What was saved before is whole: {saved}." if saved else ""
        raise DiskError(message + kept, location=str(folder), hint=hint)


def size(count: float) -> str:
    """Bytes as 4.20 GB, or 310.0 MB."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
