"""Who works on a run that is not complete, and what it is made of: a lock that the dead do not hold, `started.json`.

Both files are there while the run is incomplete, and go when its manifest is written.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_cli.runs.manifest import sync

LOCK, STARTED = ".lock", "started.json"


_held: set[int] = set()  # descriptors of this process's locks


def _let_go() -> None:
    """In a child made by fork, such as a data loader's worker: it must not hold the lock when its owner is dead."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


class Lock:
    """An flock, held until `release` or the end of the process, however that comes."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        _held.add(descriptor)

    def release(self) -> None:
        """Let go; a second time is nothing."""
        if self.descriptor in _held:
            _held.remove(self.descriptor)
            os.close(self.descriptor)


def acquire_lock(folder: Path, *, new: bool = False) -> Lock:
    """Own the run in `folder`, and write there who does. A `new` run has no owner, and at most others who look.

    Raises:
        BlockingIOError: a living process owns it.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(descriptor, fcntl.LOCK_EX | (0 if new else fcntl.LOCK_NB))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return Lock(descriptor)


def lock_holder(folder: Path) -> str:
    """The living process that owns the run in `folder`, as "process 12 on host"; empty where there is none."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except OSError:  # complete, or of another user
        return ""
    try:
        _lock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
    finally:
        os.close(descriptor)
    return ""


def _lock(descriptor: int, kind: int) -> None:
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks: two writers of one run are not found out there
        return


def write_started(folder: Path, content: Mapping[str, Any]) -> None:
    """Write what the run is made of, whole or not at all."""
    temporary = folder / f".{STARTED}.tmp"
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sync(temporary)
    temporary.replace(folder / STARTED)
    sync(folder)


def read_started(folder: Path) -> dict[str, Any] | None:
    """What `write_origin` wrote; None where it was killed before."""
    try:
        content = json.loads((folder / STARTED).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def remove_lock(folder: Path) -> None:
    """The run is complete: nobody needs to own it, and its manifest says what it is made of."""
    for name in (STARTED, LOCK):
        (folder / name).unlink(missing_ok=True)
