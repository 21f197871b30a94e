"""Checkpoints are complete or absent whenever the process is killed; the newest two are kept."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from rlhf_cli.errors import DiskError
from rlhf_cli.runs import layout, lineage
from rlhf_cli.runs.checkpoint import checkpoint_path, checkpoint_step, checkpoints, write_checkpoint
from rlhf_cli.runs.manifest import read_manifest, verify_files
from rlhf_cli.runs.resume import newest_checkpoint
from tests.support.issues import raises_issue
from tests.support.runs import NewRun

DISK_EVENTS = ("open", "os.")  # prefixes of the audit events of disk access


def save(parent: Path, step: int, content: str = "abc") -> None:
    with write_checkpoint(checkpoint_path(parent, step), {"step": step}) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text(content)
        (folder / "state").write_text(content * 2)


def killed_at(moment: int, act: Callable[[], object]) -> bool:
    """Call `act` in a child that is killed at its `moment`-th disk access. Return whether it was killed."""
    child = os.fork()
    if child == 0:
        seen = 0

        def watch(event: str, _args: object) -> None:
            nonlocal seen
            if event.startswith(DISK_EVENTS):
                seen += 1
                if seen == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        act()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def steps(parent: Path) -> list[int]:
    return [checkpoint_step(folder) for folder in checkpoints(parent)]


def test_write_checkpoint_killed_at_any_disk_access_leaves_only_complete_checkpoints(tmp_path: Path) -> None:
    parent = tmp_path / "checkpoints"
    save(parent, 1)
    save(parent, 2)
    found: set[tuple[int, ...]] = set()
    moment = 1
    while killed_at(moment, lambda: save(parent, 3, "xyz")):
        for folder in checkpoints(parent):
            manifest = read_manifest(folder)
            assert manifest is not None
            assert manifest["step"] == checkpoint_step(folder)
            assert verify_files(folder, manifest) == []
        found.add(tuple(steps(parent)))
        assert newest_checkpoint(tmp_path).path.name in ("step-000002", "step-000003")
        shutil.rmtree(checkpoint_path(parent, 3), ignore_errors=True)
        if 1 not in steps(parent):
            shutil.rmtree(parent)
            save(parent, 1)
            save(parent, 2)
        moment += 1
    assert found == {(1, 2), (1, 2, 3), (2, 3)}  # before the commit, after it, and with the oldest one removed
    assert moment > 20
    assert sorted(path.name for path in parent.iterdir()) == [
        "step-000002",
        "step-000003",
    ]  # no leftovers of the killed processes


def test_complete_killed_at_any_disk_access_leaves_run_complete_or_resumable(new_run: NewRun, tmp_path: Path) -> None:
    moment, found = 0, []
    killed = True
    while killed:
        moment += 1
        run = new_run(name=f"bot{moment}")
        save(run.path / "checkpoints", 1)
        (run.model_dir / "weights").write_text("abc")
        killed = killed_at(moment, lambda run=run: run.complete({}, {}, keep_checkpoints=False))  # type: ignore[misc]
        run.close()
        (entry,) = layout.versions(tmp_path, run.name, run.stage)
        assert lineage.verify(entry).issues == []
        found.append(entry.manifest is not None)
        if entry.manifest is None:
            assert newest_checkpoint(run.path).path.name == "step-000001"
    assert found == sorted(found)
    assert {*found} == {True, False}


def test_write_checkpoint_keeps_newest_two_by_number(tmp_path: Path) -> None:
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        save(tmp_path, step)
    assert steps(tmp_path) == [1_000_000, 1_000_001]


def test_write_checkpoint_failed_keeps_old_ones(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    with pytest.raises(ZeroDivisionError), write_checkpoint(checkpoint_path(tmp_path, 3), {"step": 3}) as folder:  # noqa: PT012
        (folder / "weights").write_text("a")
        raise ZeroDivisionError
    assert steps(tmp_path) == [1, 2]


def test_write_checkpoint_syncs_files_before_rename_and_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real_fsync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        done.append(f"rename to {target.name}")
        return real_rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    save(tmp_path, 1)
    before, after = done[: done.index("rename to step-000001")], done[done.index("rename to step-000001") + 1 :]
    assert sorted(before[:3]) == ["model", "state", "weights"]
    assert before[3] == ".manifest.json.tmp"
    assert before[4].startswith(".tmp-")
    assert after == [tmp_path.name]


class Usage(NamedTuple):
    """The result of `shutil.disk_usage`."""

    total: int
    used: int
    free: int


def test_write_checkpoint_larger_than_free_space_raises_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, "a" * 1_000_000)
    free = 3_000_400
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(free, 0, free))
    save(tmp_path, 2, "a")  # as large as the last one: 3 MB and its manifest
    shutil.rmtree(checkpoint_path(tmp_path, 2))
    free = 2_400_000
    with raises_issue("disk.full", error=DiskError, location=str(tmp_path)) as issues:
        save(tmp_path, 2)
    assert DiskError.exit_code == 6
    last = checkpoint_path(tmp_path, 1)
    assert issues[0].message == (
        f"not enough space for a checkpoint; found 2 MB, expected 3 MB. The last checkpoint is complete: {last}."
    )
    assert "--resume" in issues[0].hint
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_write_checkpoint_first_one_uses_expected_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(0, 0, 999))
    with (
        raises_issue("disk.full") as issues,
        write_checkpoint(checkpoint_path(tmp_path, 1), {"step": 1}, size=1000),
    ):
        pass
    assert "--runs-dir" in issues[0].hint
    assert [*tmp_path.iterdir()] == []
