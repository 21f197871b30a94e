"""An open run: its logs, its manifest, which completes it, and what a failed run leaves behind."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.errors import DiskError
from rlhf_cli.runs import disk
from rlhf_cli.runs.manifest import digest, read_manifest, write_manifest
from rlhf_cli.runs.run import Run
from rlhf_cli.runs.run_log import LOGGER, RunLogHandler
from tests.support.issues import raises_issue
from tests.support.reporters import RecordingReporter
from tests.support.runs import NewRun

logger = logging.getLogger("rlhf_cli.test")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON lines of a file. NaN and Infinity, which are not JSON, fail."""

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def test_complete_writes_manifest(new_run: NewRun) -> None:
    run = new_run()
    (run.model_dir / "sub").mkdir()
    (run.model_dir / "sub" / "weights").write_bytes(b"abc")
    logger.warning("careful")
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


def test_complete_gives_every_file_the_same_mode(new_run: NewRun) -> None:
    run = new_run()
    for folder in (run.model_dir, run.path / "critic"):
        folder.mkdir(exist_ok=True)
        (folder / "weights").touch(mode=0o600)  # as safetensors creates it
    logger.debug("done")
    run.complete({}, {})
    assert {path.stat().st_mode for path in run.path.rglob("*") if path.is_file()} == {
        (run.path / "log.txt").stat().st_mode
    }
    assert (run.path / "log.txt").stat().st_mode & 0o777 != 0o600


def test_non_finite_numbers_are_written_as_null(new_run: NewRun) -> None:
    run = new_run()
    run.log(3, {"loss": math.nan, "kl": math.inf, "reward": -1.5})
    run.sample({"text": "é\u2028", "score": math.nan, "scores": [1.0, -math.inf], "by": {"source": math.inf}})
    manifest = run.complete({"a": math.nan, "b": 2.0}, {})
    (logged,) = read_lines(run.path / "metrics.jsonl")
    assert logged.pop("time") > 0
    assert logged == {"step": 3, "loss": None, "kl": None, "reward": -1.5}
    assert [json.loads(line) for line in (run.path / "samples.jsonl").read_text().split("\n") if line] == [
        {"text": "é\u2028", "score": None, "scores": [1.0, None], "by": {"source": None}}
    ]
    assert manifest["metrics"] == {"a": None, "b": 2.0}
    assert read_manifest(run.path) == manifest


def test_log_and_sample_append_one_line_each(new_run: NewRun) -> None:
    run = new_run()
    for step in (1, 2):
        run.log(step, {"loss": 1.0})
        run.sample({"text": "two\nlines"})
    assert [row["step"] for row in read_lines(run.path / "metrics.jsonl")] == [1, 2]
    assert len(read_lines(run.path / "samples.jsonl")) == 2


def test_reporter_gets_steps_and_messages_and_log_gets_messages(new_run: NewRun) -> None:
    run = new_run()
    run.begin(10, "step")
    run.log(1, {"loss": 2.0})
    logger.info("hello")
    logger.warning("careful")
    logger.debug("detail")
    assert isinstance(run.reporter, RecordingReporter)
    assert run.reporter.calls == [
        ("begin", 10, "step"),
        ("step", 1, {"loss": 2.0}),
        ("info", "hello"),
        ("warning", "careful"),
    ]
    texts = [line.split(" ", 1)[1] for line in (run.path / "log.txt").read_text().splitlines()]
    assert texts == ["hello", "warning: careful", "detail"]


@pytest.mark.parametrize("crash_in", ["hash", "write", "rename"])
def test_complete_interrupted_leaves_no_manifest_and_no_link(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch, crash_in: str
) -> None:
    def crash(*_args: Any, **_kwargs: Any) -> Any:
        raise KeyboardInterrupt

    run = new_run()
    (run.model_dir / "weights").write_bytes(b"abc")
    match crash_in:
        case "hash":
            monkeypatch.setattr("rlhf_cli.runs.run.hash_files", crash)
        case "write":
            monkeypatch.setattr(Path, "write_text", crash)
        case "rename":
            monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        run.complete({}, {})
    monkeypatch.undo()
    assert read_manifest(run.path) is None
    assert not (run.path.parent / "latest").exists()


def test_write_manifest_syncs_all_other_files_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut, a manifest must not list files that were not written."""
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    (tmp_path / "weights").write_bytes(b"abc")
    write_manifest(tmp_path, {"schema": 1})
    assert synced == ["weights", ".manifest.json.tmp", tmp_path.name]


def test_checkpoint_appears_with_manifest_on_exit(new_run: NewRun) -> None:
    run = new_run()
    with run.checkpoint(20) as folder:
        (folder / "state").write_bytes(b"abc")
        assert not (run.path / "checkpoints" / "step-000020").exists()
    (saved,) = (run.path / "checkpoints").iterdir()
    assert saved.name == "step-000020"
    assert {path.name for path in saved.iterdir()} == {"state", "manifest.json"}
    manifest = read_manifest(saved)
    assert manifest is not None
    assert manifest["step"] == 20
    assert manifest["files"] == {"state": {"size": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}}


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_checkpoint_interrupted_leaves_nothing(new_run: NewRun, kind: type[BaseException]) -> None:
    run = new_run()
    with pytest.raises(kind), run.checkpoint(20) as folder:  # noqa: PT012
        (folder / "state").write_bytes(b"abc")
        raise kind
    assert [*(run.path / "checkpoints").iterdir()] == []


def test_discard_if_empty_removes_run_before_training(new_run: NewRun) -> None:
    run = new_run()
    logger.info("reading")
    assert run.discard_if_empty()
    assert not run.path.exists()
    assert new_run().version == "v0001"


@pytest.mark.parametrize("action", ["begin", "log"])
def test_discard_if_empty_keeps_run_after_begin_or_log(new_run: NewRun, action: str) -> None:
    run = new_run()
    if action == "begin":
        run.begin(3, "step")
    else:
        run.log(1, {})
    assert not run.discard_if_empty()
    assert run.path.is_dir()


def test_digest_ignores_order_of_keys_but_not_of_items() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": [1, 2]}) != digest({"a": [2, 1]})


def test_create_on_full_disk_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_full(*_args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("rlhf_cli.runs.run.write_started", raise_full)
    with raises_issue("disk.full", error=DiskError, location=str(tmp_path / "bot" / "sft" / "v0001")) as issues:
        Run.create(tmp_path, "bot", "sft", smoke=False, reporter=RecordingReporter())
    assert issues[0].message == "No space left on device."
    assert "--runs-dir" in issues[0].hint
    assert [*(tmp_path / "bot" / "sft").iterdir()] == []
    logging.getLogger("rlhf_cli.any").warning("later")  # no handler is left that would write into the removed folder
    assert not [handler for handler in LOGGER.handlers if isinstance(handler, RunLogHandler)]


def test_open_run_keeps_records_from_root_logger(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's reward file may call logging.basicConfig(), whose handler does not redact."""
    seen: list[str] = []
    root = logging.Handler()
    monkeypatch.setattr(root, "emit", lambda record: seen.append(record.getMessage()))
    monkeypatch.setattr(logging.getLogger(), "handlers", [root])
    run = new_run()
    logging.getLogger("rlhf_cli.any").warning("inside")
    run.close()
    logging.getLogger("rlhf_cli.any").warning("outside")
    assert seen == ["outside"]
    assert "inside" in (run.path / "log.txt").read_text()


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (OSError(errno.EROFS, "x"), ("disk.not-writable", "Read-only file system")),
        (RuntimeError("I/O error: No space left on device (os error 28)"), ("disk.full", "No space left on device")),
        (RuntimeError("something (os error 2)"), None),
        (ValueError("28"), None),
        (FileNotFoundError(errno.ENOENT, "x"), None),
    ],
)
def test_classify_recognizes_only_disk_errors(error: Exception, problem: tuple[str, str] | None) -> None:
    assert disk.classify(error) == problem
