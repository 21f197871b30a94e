"""Runs that were stopped: which one is taken up again, from which checkpoint, and what it forgets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.errors import DiskError, ModelError, RecipeError
from rlhf_cli.runs import resume
from rlhf_cli.runs.resume import ResumableRun
from rlhf_cli.runs.run import Run
from tests.support.reporters import RecordingReporter
from tests.support.runs import NewRun


def stopped(new_run: NewRun, *steps: int, smoke: bool = False) -> Run:
    """A run that logged and saved `steps`, then lost its process."""
    run = new_run(smoke=smoke)
    run.begin(99, "steps")
    for step in steps:
        save(run, step)
    run.close()
    return run


def save(run: Run, step: int) -> None:
    run.log(step, {"loss": step / 10})
    run.sample({"step": step, "text": "one"})
    with run.checkpoint(step) as folder:
        (folder / "weights").write_bytes(b"w" * 100)
        (folder / "state").write_bytes(b"s")


def take(runs: Path, *, smoke: bool = False) -> ResumableRun:
    return resume.take(runs, "bot", "sft", smoke=smoke)


def resume(runs: Path) -> Run:
    return Run.resume(take(runs), base="org/model", reporter=RecordingReporter())[0]


def rows(run: Run, name: str = "metrics.jsonl") -> list[int]:
    return [json.loads(line)["step"] for line in (run.path / name).read_text().splitlines()]


def test_a_run_goes_on_after_its_newest_checkpoint(new_run: NewRun, tmp_path: Path) -> None:
    run = stopped(new_run, 10, 20)
    again = resume(tmp_path)
    assert (again.path, again.resumed, again.resumed_step) == (run.path, run.checkpoint_path(20), 20)
    assert (again.stage, again.name, again.version, again.runs_dir) == ("sft", "bot", "v0001", tmp_path)
    assert new_run().resumed is None
    assert new_run().resumed_step == 0


def test_what_was_made_after_the_checkpoint_is_forgotten(new_run: NewRun, tmp_path: Path) -> None:
    run = stopped(new_run, 10, 20)
    for step in (15, 20, 21):
        run.log(step, {})
        run.sample({"step": step})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 22, "lo')
    with (run.path / "samples.jsonl").open("a") as file:
        file.write('{"step": 20}')  # the next one would stand on the same line
    (run.model_dir / "half").touch()
    (run.path / "checkpoints" / ".tmp-dead").mkdir()
    again = resume(tmp_path)
    assert rows(again) == rows(again, "samples.jsonl") == [10, 20, 15, 20]
    assert not (again.path / "model").exists()
    save(again, 21)
    assert rows(again)[-1] == 21
    assert {path.name for path in (again.path / "checkpoints").iterdir()} == {"step-000020", "step-000021"}


def test_what_was_logged_is_known_to_the_one_who_goes_on(new_run: NewRun, tmp_path: Path) -> None:
    run = stopped(new_run, 1)
    assert new_run().logged() == []
    run.log(1, {"kl": float("nan")})
    first, second = resume(tmp_path).logged()
    assert first == {"loss": 0.1}
    assert second["kl"] != second["kl"]


def test_time_counts_where_it_led_to_the_checkpoint(
    new_run: NewRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    format_duration = {"now": 1000.0}
    monkeypatch.setattr("rlhf_cli.runs.run.time.monotonic", lambda: format_duration["now"])
    run = new_run()
    run._since = format_duration["now"]
    format_duration["now"] += 50
    save(run, 1)
    format_duration["now"] += 500  # lost
    run.close()
    again = resume(tmp_path)
    again._since = format_duration["now"]
    format_duration["now"] += 7
    manifest = again.complete({}, {})
    assert manifest["seconds"] == 57.0
    assert again.started == run.started


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "another content": lambda folder: flip(folder / "weights"),
    "has 99 bytes, and had 100": lambda folder: (folder / "weights").write_bytes(b"w" * 99),
    "cannot be read": lambda folder: (folder / "state").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "manifest is damaged": lambda folder: (folder / "manifest.json").write_text("{"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_named(new_run: NewRun, tmp_path: Path, how: str) -> None:
    run = stopped(new_run, 10, 20)
    DAMAGE[how](run.checkpoint_path(20))
    again, passed = Run.resume(take(tmp_path), base="org/model", reporter=RecordingReporter())
    assert again.resumed_step == 10
    assert len(passed) == 1
    assert how in passed[0]
    assert "step-000020" in passed[0]
    assert rows(again) == [10]
    save(again, 20)  # its place is free


def test_where_every_checkpoint_is_damaged_all_are_named(new_run: NewRun, tmp_path: Path) -> None:
    run = stopped(new_run, 10, 20)
    for step in (10, 20):
        flip(run.checkpoint_path(step) / "weights")
    with pytest.raises(ModelError) as raised:
        resume(tmp_path)
    assert raised.value.exit_code == 4
    assert [issue.location for issue in raised.value.issues] == [
        str(run.checkpoint_path(step) / "weights") for step in (20, 10)
    ]


def test_the_newest_version_with_a_checkpoint_is_taken(new_run: NewRun, tmp_path: Path) -> None:
    stopped(new_run, 10), stopped(new_run, 5), stopped(new_run)
    new_run().complete({}, {})
    taken = take(tmp_path)
    assert taken.path.name == "v0002"
    assert taken.passed == ["v0003 has no checkpoint: it ended before its first one"]


def test_a_version_that_someone_works_on_is_left_alone(new_run: NewRun, tmp_path: Path) -> None:
    run = new_run()
    save(run, 10)
    with pytest.raises(DiskError, match="v0001 is under way, by process") as raised:
        take(tmp_path)
    assert raised.value.exit_code == 6
    run.close()
    taken = take(tmp_path)
    with pytest.raises(DiskError, match="under way"):
        take(tmp_path)
    taken.lock.release()
    take(tmp_path)


@pytest.mark.parametrize("smoke", [True, False])
def test_smoke_runs_and_real_ones_are_not_taken_for_each_other(new_run: NewRun, tmp_path: Path, smoke: bool) -> None:
    stopped(new_run, 10, smoke=True), stopped(new_run, 10, smoke=False), stopped(new_run, 10, smoke=True)
    assert take(tmp_path, smoke=smoke).path.name == ("v0003" if smoke else "v0002")


def test_where_there_is_nothing_to_resume_the_way_out_is_told(new_run: NewRun, tmp_path: Path) -> None:
    for says in ("no incomplete run", "v0001 has no checkpoint"):
        with pytest.raises(RecipeError, match=says) as raised:
            take(tmp_path)
        assert raised.value.issues[0].hint == "Run the same command without --resume."
        stopped(new_run)


def test_a_run_that_was_resumed_is_never_thrown_away(new_run: NewRun, tmp_path: Path) -> None:
    stopped(new_run, 10)
    again = resume(tmp_path)
    assert not again.discard_if_empty()
    assert again.path.is_dir()


@pytest.mark.parametrize(
    ("steps", "log", "alive", "state"),
    [
        ((), "", True, "running, process "),
        ((10, 20), "", False, "stopped, saved at step 20"),
        ((), "warning: careful", False, "stopped"),
        ((10,), "warning: failed: no memory", False, "failed, saved at step 10"),
        ((), "warning: failed: no memory", False, "failed"),
    ],
)
def test_how_a_run_stands_is_told(new_run: NewRun, steps: tuple[int, ...], log: str, alive: bool, state: str) -> None:
    run = new_run()
    for step in steps:
        save(run, step)
    run.say("begun")
    if log:
        run.note(log)
    if not alive:
        run.close()
    told = resume.state(run.path)
    assert told.startswith(state)
    assert alive or told == state


def test_only_the_newest_version_counts_as_the_one_to_go_on_with(new_run: NewRun, tmp_path: Path) -> None:
    def last() -> bool:
        return resume.is_latest_resumable(tmp_path, "bot", "sft", smoke=False)

    assert not last()
    run = new_run()
    assert last()  # someone works on it
    run.close()
    assert not last()
    stopped(new_run, 10)
    assert last()
    new_run().complete({}, {})
    assert not last()


def test_what_the_run_is_made_of_is_kept_until_it_is_complete(tmp_path: Path) -> None:
    provenance: dict[str, Any] = {"made_of": {"seed": 3}}
    run = Run.create(tmp_path, "bot", "sft", smoke=False, base="b", reporter=RecordingReporter(), origin=provenance)
    save(run, 1)
    run.close()
    taken = take(tmp_path)
    assert taken.origin["made_of"] == {"seed": 3}
    again, _ = Run.resume(taken, base="b", reporter=RecordingReporter())
    again.complete({}, {}, keep_checkpoints=False)
    assert {path.name for path in again.path.iterdir()} == {"manifest.json", "metrics.jsonl", "samples.jsonl"}
