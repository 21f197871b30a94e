"""Lock an incomplete run for one process, and record what it was started with. POSIX only: uses flock.

`.lock` and `started.json` exist while the run is incomplete; both are removed when its manifest is written.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_cli.runs.manifest import sync

LOCK_FILE, STARTED_FILE = ".lock", "started.json"

_open_locks: set[int] = set()  # descriptors of this process's locks


def _close_locks_in_child() -> None:
    """Close the locks in a forked child, such as a data loader's worker, which may outlive its parent for seconds."""
    for descriptor in _open_locks:
        os.close(descriptor)
    _open_locks.clear()


os.register_at_fork(after_in_child=_close_locks_in_child)


class Lock:
    """An flock, held until `release` or the end of the process, including a kill."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        _open_locks.add(descriptor)

    def release(self) -> None:
        """Release the lock. No-op if it is released already."""
        if self.descriptor in _open_locks:
            _open_locks.remove(self.descriptor)
            os.close(self.descriptor)


class StartRecord(NamedTuple):
    """What an incomplete run was started with.

    Attributes:
        started: Seconds since 1970.
        smoke: Whether it is a smoke run.
        provenance: Settings, inputs and versions, which a resume compares with its own.
    """

    started: float
    smoke: bool
    provenance: dict[str, Any]


def acquire_lock(folder: Path, *, new: bool = False) -> Lock:
    """Lock the run in `folder`, and write this process's id and host into the lock file.

    Args:
        folder: The run's folder.
        new: Whether this process has just created the run. Then no other process owns it, but one may be reading the
            lock for a moment, so wait for it.

    Raises:
        BlockingIOError: Another running process holds the lock.
    """
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _flock(descriptor, fcntl.LOCK_EX if new else fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return Lock(descriptor)


def lock_holder(folder: Path) -> str:
    """Return the process that holds the lock of the run in `folder`, as `process 12 on host`, or "" if none does."""
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY)  # which is possible for another user's run, too
    except PermissionError:
        return "a process of another user, perhaps; its lock cannot be read"
    except OSError:  # the run is complete
        return ""
    try:
        _flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
    finally:
        os.close(descriptor)
    return ""


def _flock(descriptor: int, operation: int) -> None:
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        raise
    except OSError:  # the file system has no locks; there, two writers of one run are not detected
        return


def write_started(folder: Path, record: StartRecord) -> None:
    """Write `record` into `folder` by rename."""
    temporary = folder / f".{STARTED_FILE}.tmp"
    temporary.write_text(json.dumps(record._asdict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sync(temporary)
    temporary.replace(folder / STARTED_FILE)
    sync(folder)


def read_started(folder: Path) -> StartRecord | None:
    """Return the record of `write_started`, or None if the run was killed before or is complete."""
    try:
        return StartRecord(**json.loads((folder / STARTED_FILE).read_bytes()))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None


def remove_lock(folder: Path) -> None:
    """Remove the lock and the record of a complete run; its manifest holds the provenance."""
    for name in (STARTED_FILE, LOCK_FILE):
        (folder / name).unlink(missing_ok=True)
