"""Runs killed at random moments, again and again, and resumed each time: nothing is lost, the end is bit-identical."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from pathlib import Path

import pytest

from rlhf_cli.pipeline.runner import StageResult
from rlhf_cli.runs import layout, lineage
from rlhf_cli.runs.manifest import MANIFEST_FILE, read_manifest
from tests.support.processes import count_lines
from tests.support.stage_harness import (
    StageHarness,
    assert_bit_identical,
    model_files,
    ppo_artifacts,
    write_ppo_project,
    write_training_project,
)

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]

KILLS = {"sft": 20, "reward": 20, "ppo": 10}


def run_and_kill(harness: StageHarness, runs: str, *, steps: int, seconds: float) -> bool:
    """Start or resume the stage in a child, and kill it `seconds` after it has logged `steps`.

    Returns:
        Whether the child was killed; False if it had completed before.
    """
    child = os.fork()
    if child == 0:
        try:
            start_or_resume(harness, runs)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    ended = 0
    while not ended and count_logged_steps(harness, runs) < steps:
        time.sleep(0.002)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def newest_incomplete(harness: StageHarness, runs: str) -> Path | None:
    """Return the newest version if it is incomplete, or None."""
    versions = sorted(harness.stage_dir(runs).glob("v*"))
    return versions[-1] if versions and not (versions[-1] / MANIFEST_FILE).exists() else None


def has_checkpoint(run: Path | None) -> bool:
    """Return whether the run has a committed checkpoint."""
    return run is not None and any((run / "checkpoints").glob("step-*"))


def count_logged_steps(harness: StageHarness, runs: str) -> int:
    """Return the number of steps that the newest incomplete version has logged."""
    run = newest_incomplete(harness, runs)
    return 0 if run is None else count_lines(run / "metrics.jsonl")


def start_or_resume(harness: StageHarness, runs: str) -> StageResult:
    """Resume the newest version if it has a checkpoint; otherwise start a new one."""
    return harness.run(runs, resume=has_checkpoint(newest_incomplete(harness, runs)))


def assert_complete_runs_are_undamaged(runs_dir: Path) -> None:
    """Assert that every complete run matches its manifest."""
    for entry in layout.all_runs(runs_dir):
        if read_manifest(entry.path) is not None:
            assert lineage.verify(entry).issues == []


@pytest.mark.parametrize("stage", KILLS)
def test_run_killed_at_random_moments_ends_as_an_unbroken_one(tmp_path: Path, tiny_base: Path, stage: str) -> None:
    write_project = write_ppo_project if stage == "ppo" else write_training_project
    harness = StageHarness(write_project(tmp_path, tiny_base), stage)
    start = time.monotonic()
    expected = harness.run("unbroken")
    total = count_lines(expected.path / "metrics.jsonl")
    seconds_per_step = (time.monotonic() - start) / total
    draw = random.Random(f"kills of {stage}")
    kills, completed, resumed = 0, 0, 0
    while kills < KILLS[stage]:
        runs = f"killed {completed}"
        if has_checkpoint(newest_incomplete(harness, runs)):
            resumed += 1
        # A few steps later than what is done, or so much later that it completes before.
        steps = count_logged_steps(harness, runs) + draw.randrange(0, total)
        if run_and_kill(harness, runs, steps=steps, seconds=draw.uniform(0, seconds_per_step)):
            kills += 1
        else:
            completed += 1
        assert_complete_runs_are_undamaged(harness.project / runs)
    assert resumed >= KILLS[stage] // 4
    last = start_or_resume(harness, f"killed {completed}")
    for number in range(completed):
        entry = layout.find(harness.project / f"killed {number}", f"{stage}@latest", "t", smoke=False)
        assert entry.manifest is not None
        assert model_files(entry.manifest) == model_files(expected.manifest)
    if stage == "ppo":
        assert ppo_artifacts(last) == ppo_artifacts(expected)
    else:
        assert_bit_identical(last, expected)
