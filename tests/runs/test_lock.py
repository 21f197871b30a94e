"""Who owns a run: one living process, and none once it is dead, however it died."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from rlhf_cli.runs.lock import STARTED, acquire_lock, lock_holder, read_started, remove_lock, write_started


def in_child(folder: Path, *, then: str) -> int:
    """A process that owns the run in `folder`; `then`: wait, or fork a worker that waits, and wait."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        acquire_lock(folder, new=True)
        if then == "fork" and os.fork() == 0:
            os.write(told, b"w")
            signal.pause()
        os.write(told, b"o")
        signal.pause()
    for _ in range(2 if then == "fork" else 1):
        os.read(ready, 1)
    os.close(ready)
    os.close(told)
    return child


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_living_owner_is_named_and_cannot_be_replaced(tmp_path: Path) -> None:
    child = in_child(tmp_path, then="wait")
    try:
        assert lock_holder(tmp_path).startswith(f"process {child} on ")
        with pytest.raises(BlockingIOError):
            acquire_lock(tmp_path)
    finally:
        kill(child)


def test_the_lock_of_a_killed_process_is_gone(tmp_path: Path) -> None:
    kill(in_child(tmp_path, then="wait"))
    assert lock_holder(tmp_path) == ""
    acquire_lock(tmp_path).release()


def test_a_worker_that_outlives_its_owner_holds_no_lock(tmp_path: Path) -> None:
    """A data loader's worker sees the death of its owner seconds later."""
    child = in_child(tmp_path, then="fork")
    workers = [int(pid) for pid in Path(f"/proc/{child}/task/{child}/children").read_text().split()]
    try:
        kill(child)
        assert lock_holder(tmp_path) == ""
        acquire_lock(tmp_path).release()
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)


def test_a_run_can_be_given_up_and_taken_again(tmp_path: Path) -> None:
    lock = acquire_lock(tmp_path, new=True)
    assert str(os.getpid()) in lock_holder(tmp_path)
    lock.release()
    lock.release()
    assert lock_holder(tmp_path) == ""


def test_what_a_run_is_made_of_is_read_back_and_half_of_it_is_nothing(tmp_path: Path) -> None:
    assert read_started(tmp_path) is None
    write_started(tmp_path, {"seed": 3})
    assert read_started(tmp_path) == {"seed": 3}
    (tmp_path / STARTED).write_text('{"seed": ')
    assert read_started(tmp_path) is None


def test_a_complete_run_has_neither_file(tmp_path: Path) -> None:
    lock = acquire_lock(tmp_path, new=True)
    write_started(tmp_path, {})
    remove_lock(tmp_path)
    lock.release()
    assert [*tmp_path.iterdir()] == []
    assert lock_holder(tmp_path) == ""
