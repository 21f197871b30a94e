"""A run under way: what it writes, when it counts as complete, and what is left of one that failed."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.errors import DiskError, RecipeError
from rlhf_cli.runs import disk
from rlhf_cli.runs import manifest as manifest_room
from rlhf_cli.runs.manifest import digest, read_manifest, write_manifest
from rlhf_cli.runs.run import Run
from tests.support.reporters import RecordingReporter
from tests.support.runs import NewRun


def lines(path: Path) -> list[dict[str, Any]]:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_manifest_says_what_was_made(new_run: NewRun) -> None:
    run = new_run()
    (run.model_dir / "sub").mkdir()
    (run.model_dir / "sub" / "weights").write_bytes(b"abc")
    run.warn("careful")
    returned = run.complete({"loss": 0.5}, {"seed": 3})
    manifest = read_manifest(run.path)
    assert manifest == returned
    assert manifest is not None
    assert manifest["files"] == {"sub/weights": {"size": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}}
    expected = {"schema": 1, "stage": "sft", "name": "bot", "version": "v0001", "status": "complete", "smoke": False}
    assert expected.items() <= manifest.items()
    assert (manifest["seed"], manifest["metrics"], manifest["warnings"]) == (3, {"loss": 0.5}, ["careful"])
    assert manifest["seconds"] >= 0
    assert manifest["started"] <= manifest["ended"]


def test_every_file_may_be_read_by_those_who_may_read_the_others(new_run: NewRun) -> None:
    run = new_run()
    for folder in (run.model_dir, run.path / "critic"):
        folder.mkdir(exist_ok=True)
        (folder / "weights").touch(mode=0o600)  # as safetensors has it
    run.note("done")
    run.complete({}, {})
    assert {path.stat().st_mode for path in run.path.rglob("*") if path.is_file()} == {
        (run.path / "log.txt").stat().st_mode
    }
    assert (run.path / "log.txt").stat().st_mode & 0o777 != 0o600


def test_a_number_that_is_not_finite_is_null_everywhere(new_run: NewRun) -> None:
    run = new_run()
    run.log(3, {"loss": math.nan, "kl": math.inf, "reward": -1.5})
    run.sample({"text": "é\u2028", "score": math.nan, "scores": [1.0, -math.inf], "by": {"judge": math.inf}})
    manifest = run.complete({"a": math.nan, "b": 2.0}, {})
    (logged,) = lines(run.path / "metrics.jsonl")
    assert logged.pop("time") > 0
    assert logged == {"step": 3, "loss": None, "kl": None, "reward": -1.5}
    assert [json.loads(line) for line in (run.path / "samples.jsonl").read_text().split("\n") if line] == [
        {"text": "é\u2028", "score": None, "scores": [1.0, None], "by": {"judge": None}}
    ]
    assert manifest["metrics"] == {"a": None, "b": 2.0}
    assert read_manifest(run.path) == manifest


def test_each_step_and_sample_is_one_line(new_run: NewRun) -> None:
    run = new_run()
    for step in (1, 2):
        run.log(step, {"loss": 1.0})
        run.sample({"text": "two\nlines"})
    assert [row["step"] for row in lines(run.path / "metrics.jsonl")] == [1, 2]
    assert len(lines(run.path / "samples.jsonl")) == 2


def test_a_person_is_told_what_the_files_hold(new_run: NewRun) -> None:
    run = new_run()
    run.begin(10, "steps")
    run.log(1, {"loss": 2.0})
    run.say("hello")
    run.warn("careful")
    told = run.reporter.calls  # type: ignore[attr-defined]
    assert told == [("begin", 10, "steps"), ("step", 1, {"loss": 2.0}), ("info", "hello"), ("warning", "careful")]
    texts = [line.split(" ", 1)[1] for line in (run.path / "log.txt").read_text().splitlines()]
    assert texts == ["hello", "warning: careful"]


@pytest.mark.parametrize("breaks", ["files", "write", "rename"])
def test_a_crash_on_the_way_leaves_no_manifest_and_latest_alone(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    def crash(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    run = new_run()
    (run.model_dir / "weights").write_bytes(b"abc")
    match breaks:
        case "files":
            monkeypatch.setattr("rlhf_cli.runs.run.files_of", crash)
        case "write":
            monkeypatch.setattr(Path, "write_text", crash)
        case "rename":
            monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        run.complete({}, {})
    monkeypatch.undo()
    assert read_manifest(run.path) is None
    assert not (run.path.parent / "latest").exists()


def test_the_manifest_is_written_after_all_else_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest that outlives a power cut must not vouch for files that did not."""
    synced: list[str] = []
    real = manifest_room.os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(manifest_room.os, "fsync", fsync)
    (tmp_path / "weights").write_bytes(b"abc")
    write_manifest(tmp_path, {"schema": 1})
    assert synced == ["weights", ".manifest.json.tmp", tmp_path.name]


def test_a_checkpoint_is_committed_whole(new_run: NewRun) -> None:
    run = new_run()
    with run.checkpoint(20) as folder:
        (folder / "state").write_bytes(b"abc")
        assert not (run.path / "checkpoints" / "step-000020").exists()
    (made,) = (run.path / "checkpoints").iterdir()
    assert made.name == "step-000020"
    assert {path.name for path in made.iterdir()} == {"state", "manifest.json"}
    manifest = read_manifest(made)
    assert manifest is not None
    assert manifest["step"] == 20
    assert manifest["files"] == {"state": {"size": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}}


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_checkpoint_that_fails_leaves_nothing(new_run: NewRun, kind: type[BaseException]) -> None:
    run = new_run()
    with pytest.raises(kind), run.checkpoint(20) as folder:  # noqa: PT012
        (folder / "state").write_bytes(b"abc")
        raise kind
    assert [*(run.path / "checkpoints").iterdir()] == []


def test_a_run_that_made_nothing_is_taken_away(new_run: NewRun) -> None:
    run = new_run()
    run.say("reading")
    assert run.discard_if_empty()
    assert not run.path.exists()
    assert new_run().version == "v0001"


@pytest.mark.parametrize("did", ["begin", "log"])
def test_a_run_that_trained_is_kept(new_run: NewRun, did: str) -> None:
    run = new_run()
    if did == "begin":
        run.begin(3, "steps")
    else:
        run.log(1, {})
    assert not run.discard_if_empty()
    assert (run.path).is_dir()


def test_models_are_found_behind_runs_and_folders(new_run: NewRun, tmp_path: Path) -> None:
    sft = new_run("sft")
    (sft.model_dir / "weights").touch()
    sft.complete({}, {})
    ppo = new_run("ppo")
    plain = tmp_path / "plain"
    (plain / "model").mkdir(parents=True)
    assert ppo.find("sft") == sft.path
    assert ppo.model_of("sft") == ppo.model_of(str(sft.path)) == sft.path / "model"
    assert ppo.model_of(str(sft.path / "model")) == sft.path / "model"
    assert ppo.model_of(str(plain)) == plain
    assert ppo.base_source() == "org/model"
    with pytest.raises(RecipeError):
        ppo.find("reward")


def test_a_digest_is_of_the_content_not_of_the_order() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": [1, 2]}) != digest({"a": [2, 1]})


def test_a_run_that_the_disk_refuses_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("rlhf_cli.runs.lock.write_origin", full)
    with pytest.raises(DiskError, match="No space left on device") as raised:
        Run.create(tmp_path, "bot", "sft", smoke=False, base="b", reporter=RecordingReporter())
    assert "--runs-dir" in raised.value.issues[0].hint
    assert [*(tmp_path / "bot" / "sft").iterdir()] == []


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.EROFS, "x"), "Read-only file system"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left on device"),
        (RuntimeError("something (os error 2)"), None),
        (ValueError("28"), None),
        (FileNotFoundError(errno.ENOENT, "x"), None),
    ],
)
def test_what_the_disk_refused_is_told_apart_from_bugs(error: Exception, text: str | None) -> None:
    assert disk.failure(error) == text
