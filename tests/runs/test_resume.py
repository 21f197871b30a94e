"""A resume takes the newest resumable run and undamaged checkpoint, and removes what was written later."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_cli.errors import DiskError, ModelError, RecipeError
from rlhf_cli.runs.resume import (
    FAILURE_PREFIX,
    START_OVER_HINT,
    ResumableRun,
    acquire_resumable,
    describe_incomplete,
    is_latest_resumable,
)
from rlhf_cli.runs.run import Run
from tests.support.issues import raises_issue
from tests.support.reporters import RecordingReporter
from tests.support.runs import NewRun


def make_stopped_run(new_run: NewRun, *steps: int, smoke: bool = False) -> Run:
    """Return a run that logged and saved `steps`, and whose process ended then."""
    run = new_run(smoke=smoke)
    run.begin(99, "step")
    for step in steps:
        save(run, step)
    run.close()
    return run


def save(run: Run, step: int) -> None:
    """Log a step and a sample, and save a checkpoint."""
    run.log(step, {"loss": step / 10})
    run.sample({"step": step, "text": "one"})
    with run.checkpoint(step) as folder:
        (folder / "weights").write_bytes(b"w" * 100)
        (folder / "state").write_bytes(b"s")


def acquire(runs: Path, *, smoke: bool = False) -> ResumableRun:
    """Lock the newest resumable run."""
    return acquire_resumable(runs, "bot", "sft", smoke=smoke)


def resume_newest(runs: Path) -> Run:
    """Resume the newest resumable run."""
    return Run.resume(acquire(runs), reporter=RecordingReporter())[0]


def logged_steps(run: Run, name: str = "metrics.jsonl") -> list[int]:
    """Return the step of each line of a log."""
    return [json.loads(line)["step"] for line in (run.path / name).read_text().splitlines()]


def test_resume_starts_after_newest_checkpoint(new_run: NewRun, tmp_path: Path) -> None:
    run = make_stopped_run(new_run, 10, 20)
    again = resume_newest(tmp_path)
    assert (again.path, again.resumed_from, again.resumed_step) == (run.path, run.checkpoint_path(20), 20)
    assert (again.stage, again.name, again.version, again.runs_dir) == ("sft", "bot", "v0001", tmp_path)
    assert new_run().resumed_from is None
    assert new_run().resumed_step == 0


def test_resume_removes_what_was_written_after_the_checkpoint(new_run: NewRun, tmp_path: Path) -> None:
    run = make_stopped_run(new_run, 10, 20)
    for step in (15, 20, 21):
        run.log(step, {})
        run.sample({"step": step})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 22, "lo')
    with (run.path / "samples.jsonl").open("a") as file:
        file.write('{"step": 20}')  # the next line would be appended to it
    (run.model_dir / "half").touch()
    (run.path / "checkpoints" / ".tmp-killed").mkdir()
    again = resume_newest(tmp_path)
    assert logged_steps(again) == logged_steps(again, "samples.jsonl") == [10, 20, 15, 20]
    assert not (again.path / "model").exists()
    save(again, 21)
    assert logged_steps(again)[-1] == 21
    assert {path.name for path in (again.path / "checkpoints").iterdir()} == {"step-000020", "step-000021"}


def test_logged_gives_metrics_from_before_resume(new_run: NewRun, tmp_path: Path) -> None:
    run = make_stopped_run(new_run, 1)
    assert new_run().logged() == []
    run.log(1, {"kl": float("nan")})
    first, second = resume_newest(tmp_path).logged()
    assert first == {"loss": 0.1}
    assert second["kl"] != second["kl"]


def test_resume_counts_only_time_up_to_the_checkpoint(
    new_run: NewRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = {"now": 1000.0}
    monkeypatch.setattr("rlhf_cli.runs.run.time.monotonic", lambda: clock["now"])
    run = new_run()
    run._opened = clock["now"]
    clock["now"] += 50
    save(run, 1)
    clock["now"] += 500  # after the checkpoint
    run.close()
    again = resume_newest(tmp_path)
    again._opened = clock["now"]
    clock["now"] += 7
    manifest = again.complete({}, {})
    assert manifest["seconds"] == 57.0
    assert again.started == run.started


def flip_bit(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {  # part of the message: how the checkpoint is damaged
    "its SHA-256 differs from the manifest.": lambda folder: flip_bit(folder / "weights"),
    "its size differs from the manifest; found 99 bytes, expected 100.": lambda folder: (
        folder / "weights"
    ).write_bytes(b"w" * 99),
    "it cannot be read: No such file or directory.": lambda folder: (folder / "state").unlink(),
    "the checkpoint has no manifest.": lambda folder: (folder / "manifest.json").unlink(),
    "the manifest cannot be read: ": lambda folder: (folder / "manifest.json").write_text("{"),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_resume_skips_damaged_checkpoint_and_names_it(new_run: NewRun, tmp_path: Path, message: str) -> None:
    run = make_stopped_run(new_run, 10, 20)
    DAMAGE[message](run.checkpoint_path(20))
    again, skipped = Run.resume(acquire(tmp_path), reporter=RecordingReporter())
    assert again.resumed_step == 10
    assert len(skipped) == 1
    assert message in skipped[0]
    assert "step-000020" in skipped[0]
    assert logged_steps(again) == [10]
    save(again, 20)  # its path is free again


def test_resume_with_only_damaged_checkpoints_raises_for_each(new_run: NewRun, tmp_path: Path) -> None:
    run = make_stopped_run(new_run, 10, 20)
    for step in (10, 20):
        flip_bit(run.checkpoint_path(step) / "weights")
    with raises_issue("model.damaged-file", error=ModelError) as issues:
        resume_newest(tmp_path)
    assert ModelError.exit_code == 4
    assert [issue.location for issue in issues] == [str(run.checkpoint_path(step) / "weights") for step in (20, 10)]
    assert {issue.hint for issue in issues} == {START_OVER_HINT}


def test_acquire_resumable_returns_newest_version_with_checkpoint(new_run: NewRun, tmp_path: Path) -> None:
    make_stopped_run(new_run, 10), make_stopped_run(new_run, 5), make_stopped_run(new_run)
    new_run().complete({}, {})
    found = acquire(tmp_path)
    assert found.path.name == "v0002"
    assert found.skipped == ["v0003 ended before its first checkpoint"]


def test_acquire_resumable_run_in_use_raises_locked(new_run: NewRun, tmp_path: Path) -> None:
    run = new_run()
    save(run, 10)
    location = str(run.path.parent)
    with raises_issue("disk.locked", error=DiskError, location=location) as issues:
        acquire(tmp_path)
    assert issues[0].message.startswith("no incomplete run to resume: v0001 is in use by process ")
    assert DiskError.exit_code == 6
    run.close()
    found = acquire(tmp_path)
    with raises_issue("disk.locked", error=DiskError, location=location):
        acquire(tmp_path)
    found.lock.release()
    acquire(tmp_path)


@pytest.mark.parametrize("smoke", [True, False])
def test_acquire_resumable_separates_smoke_and_real_runs(new_run: NewRun, tmp_path: Path, smoke: bool) -> None:
    (
        make_stopped_run(new_run, 10, smoke=True),
        make_stopped_run(new_run, 10, smoke=False),
        make_stopped_run(new_run, 10, smoke=True),
    )
    assert acquire(tmp_path, smoke=smoke).path.name == ("v0003" if smoke else "v0002")


def test_acquire_resumable_nothing_to_resume_raises_with_hint(new_run: NewRun, tmp_path: Path) -> None:
    for reason in ("", ": v0001 ended before its first checkpoint"):
        location = str(tmp_path / "bot" / "sft")
        with raises_issue("recipe.nothing-to-resume", error=RecipeError, location=location) as issues:
            acquire(tmp_path)
        assert issues[0].message == f"no incomplete run to resume{reason}."
        assert issues[0].hint == "Run the same command without --resume."
        make_stopped_run(new_run)


def test_discard_if_empty_keeps_resumed_run(new_run: NewRun, tmp_path: Path) -> None:
    make_stopped_run(new_run, 10)
    again = resume_newest(tmp_path)
    assert not again.discard_if_empty()
    assert again.path.is_dir()


@pytest.mark.parametrize(
    ("steps", "last_message", "is_running", "state"),
    [
        ((), "", True, "running, process "),
        ((10, 20), "", False, "stopped, saved at step 20"),
        ((), "careful", False, "stopped"),
        ((10,), f"{FAILURE_PREFIX}no memory", False, "failed, saved at step 10"),
        ((), f"{FAILURE_PREFIX}no memory", False, "failed"),
    ],
)
def test_describe_incomplete_gives_state_and_last_step(
    new_run: NewRun, steps: tuple[int, ...], last_message: str, is_running: bool, state: str
) -> None:
    logger = logging.getLogger("rlhf_cli.test")
    run = new_run()
    for step in steps:
        save(run, step)
    logger.info("started")
    if last_message:
        logger.debug(last_message)
    if not is_running:
        run.close()
    description = describe_incomplete(run.path)
    assert description.startswith(state)
    assert is_running or description == state


def test_is_latest_resumable_considers_only_the_newest_version(new_run: NewRun, tmp_path: Path) -> None:
    def is_resumable() -> bool:
        return is_latest_resumable(tmp_path, "bot", "sft", smoke=False)

    assert not is_resumable()
    run = new_run()
    assert is_resumable()  # a process is running
    run.close()
    assert not is_resumable()
    make_stopped_run(new_run, 10)
    assert is_resumable()
    new_run().complete({}, {})
    assert not is_resumable()


def test_provenance_is_recorded_until_the_run_is_complete(tmp_path: Path) -> None:
    reporter = RecordingReporter()
    run = Run.create(tmp_path, "bot", "sft", smoke=False, reporter=reporter, provenance={"seed": 3})
    save(run, 1)
    run.close()
    found = acquire(tmp_path)
    assert found.record.provenance == {"seed": 3}
    again, _ = Run.resume(found, reporter=reporter)
    again.complete({}, {}, keep_checkpoints=False)
    assert {path.name for path in again.path.iterdir()} == {"manifest.json", "metrics.jsonl", "samples.jsonl"}
