"""A run is locked by one running process, and by none after that process ends in any way."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from rlhf_cli.runs.lock import (
    STARTED_FILE,
    StartRecord,
    acquire_lock,
    lock_holder,
    read_started,
    remove_lock,
    write_started,
)


def lock_in_child(folder: Path, *, then: str) -> int:
    """Fork a process that locks `folder` and waits; with `then="fork"` it forks a waiting worker before."""
    ready, signal_ready = os.pipe()
    child = os.fork()
    if child == 0:
        acquire_lock(folder, new=True)
        if then == "fork" and os.fork() == 0:
            os.write(signal_ready, b"w")
            signal.pause()
        os.write(signal_ready, b"o")
        signal.pause()
    for _ in range(2 if then == "fork" else 1):
        os.read(ready, 1)
    os.close(ready)
    os.close(signal_ready)
    return child


def kill(child: int) -> None:
    """Kill a child process and wait for its end."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_lock_of_running_process_is_named_and_exclusive(tmp_path: Path) -> None:
    child = lock_in_child(tmp_path, then="wait")
    try:
        assert lock_holder(tmp_path).startswith(f"process {child} on ")
        with pytest.raises(BlockingIOError):
            acquire_lock(tmp_path)
    finally:
        kill(child)


def test_lock_that_cannot_be_read_counts_as_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path, _flags: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert "another user" in lock_holder(tmp_path)


def test_lock_is_read_without_the_permission_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = lock_in_child(tmp_path, then="wait")
    open_file = os.open

    def refuse_writing(path: Path, flags: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "Permission denied")
        return open_file(path, flags)

    monkeypatch.setattr(os, "open", refuse_writing)
    try:
        assert lock_holder(tmp_path).startswith(f"process {child} on ")
    finally:
        kill(child)


def test_lock_of_killed_process_is_released(tmp_path: Path) -> None:
    kill(lock_in_child(tmp_path, then="wait"))
    assert lock_holder(tmp_path) == ""
    acquire_lock(tmp_path).release()


def test_lock_is_not_held_by_forked_worker_that_outlives_its_parent(tmp_path: Path) -> None:
    """A data loader's worker notices the end of its parent only seconds later."""
    child = lock_in_child(tmp_path, then="fork")
    workers = [int(pid) for pid in Path(f"/proc/{child}/task/{child}/children").read_text().split()]
    try:
        kill(child)
        assert lock_holder(tmp_path) == ""
        acquire_lock(tmp_path).release()
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)


def test_lock_released_twice_is_free(tmp_path: Path) -> None:
    lock = acquire_lock(tmp_path, new=True)
    assert str(os.getpid()) in lock_holder(tmp_path)
    lock.release()
    lock.release()
    assert lock_holder(tmp_path) == ""


@pytest.mark.parametrize("damaged", ['{"started": ', "[]", '{"started": 1.0}', '{"seed": 3}'])
def test_start_record_is_read_back_or_none_if_damaged(tmp_path: Path, damaged: str) -> None:
    assert read_started(tmp_path) is None
    record = StartRecord(1.5, True, {"seed": 3})
    write_started(tmp_path, record)
    assert read_started(tmp_path) == record
    (tmp_path / STARTED_FILE).write_text(damaged)
    assert read_started(tmp_path) is None


def test_remove_lock_removes_lock_and_start_record(tmp_path: Path) -> None:
    lock = acquire_lock(tmp_path, new=True)
    write_started(tmp_path, StartRecord(1.5, False, {}))
    remove_lock(tmp_path)
    lock.release()
    assert [*tmp_path.iterdir()] == []
    assert lock_holder(tmp_path) == ""
