"""Checkpoints are whole or not there, whenever the process is killed; the newest two are kept."""

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
from rlhf_cli.runs import manifest as manifest_room
from rlhf_cli.runs.checkpoint import checkpoints, committed, path_of, step_of
from rlhf_cli.runs.manifest import damage, read_manifest
from rlhf_cli.runs.resume import newest_checkpoint
from tests.support.runs import NewRun

TOUCHES = ("open", "os.")  # the audit events of what touches the disk


def save(parent: Path, step: int, content: str = "abc") -> None:
    with committed(path_of(parent, step), {"step": step}) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text(content)
        (folder / "state").write_text(content * 2)


def killed_at(moment: int, act: Callable[[], object]) -> bool:
    """Act in a child that is killed when it touches the disk the `moment`-th time; False where it was done before."""
    child = os.fork()
    if child == 0:
        seen = 0

        def watch(event: str, args: object) -> None:
            nonlocal seen
            if event.startswith(TOUCHES):
                seen += 1
                if seen == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        act()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def steps(parent: Path) -> list[int]:
    return [step_of(folder) for folder in checkpoints(parent)]


def test_a_kill_at_any_moment_leaves_whole_checkpoints_alone(tmp_path: Path) -> None:
    parent = tmp_path / "checkpoints"
    save(parent, 1)
    save(parent, 2)
    found: set[tuple[int, ...]] = set()
    moment = 1
    while killed_at(moment, lambda: save(parent, 3, "xyz")):
        for folder in checkpoints(parent):
            manifest = read_manifest(folder)
            assert manifest is not None
            assert manifest["step"] == step_of(folder)
            assert damage(folder, manifest) == []
        found.add(tuple(steps(parent)))
        assert newest_checkpoint(tmp_path).path.name in ("step-000002", "step-000003")
        shutil.rmtree(path_of(parent, 3), ignore_errors=True)
        if 1 not in steps(parent):
            shutil.rmtree(parent)
            save(parent, 1)
            save(parent, 2)
        moment += 1
    assert found == {(1, 2), (1, 2, 3), (2, 3)}  # before the commit, after it, and with the oldest one gone
    assert moment > 20
    assert sorted(path.name for path in parent.iterdir()) == ["step-000002", "step-000003"]  # no rest of the dead


def test_a_kill_as_the_run_completes_leaves_one_that_is_whole_or_can_be_resumed(
    new_run: NewRun, tmp_path: Path
) -> None:
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


def test_the_newest_two_are_kept_by_number(tmp_path: Path) -> None:
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        save(tmp_path, step)
    assert steps(tmp_path) == [1_000_000, 1_000_001]


def test_an_old_one_goes_only_after_the_new_one_is_there(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    with pytest.raises(ZeroDivisionError), committed(path_of(tmp_path, 3), {"step": 3}) as folder:  # noqa: PT012
        (folder / "weights").write_text("a")
        raise ZeroDivisionError
    assert steps(tmp_path) == [1, 2]


def test_everything_is_on_the_disk_before_the_name_and_the_name_before_the_end(
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

    monkeypatch.setattr(manifest_room.os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    save(tmp_path, 1)
    before, after = done[: done.index("rename to step-000001")], done[done.index("rename to step-000001") + 1 :]
    assert sorted(before[:3]) == ["model", "state", "weights"]
    assert before[3] == ".manifest.json.tmp"
    assert before[4].startswith(".tmp-")
    assert after == [tmp_path.name]


class Usage(NamedTuple):
    """As `shutil.disk_usage` has it."""

    total: int
    used: int
    free: int


def test_a_save_that_cannot_fit_is_refused_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, "a" * 1_000_000)
    free = 3_000_400
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free, 0, free))
    save(tmp_path, 2, "a")  # as large as the last one: 3 MB and its manifest
    shutil.rmtree(path_of(tmp_path, 2))
    free = 2_900_000
    with pytest.raises(DiskError, match=r"takes 3\.0 MB, and 2\.9 MB are free") as raised:
        save(tmp_path, 2)
    assert raised.value.exit_code == 6
    assert str(path_of(tmp_path, 1)) in raised.value.issues[0].message
    assert "--resume" in raised.value.issues[0].hint
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_a_first_save_is_refused_by_the_size_that_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 999))
    with pytest.raises(DiskError, match="--runs-dir"), committed(path_of(tmp_path, 1), {"step": 1}, size=1000):
        pass
    assert [*tmp_path.iterdir()] == []
