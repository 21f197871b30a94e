"""Killed at random moments, again and again, and resumed each time: nothing is lost, and the end is bit-equal."""

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
from rlhf_cli.runs.manifest import read_manifest

from . import test_exact_resume, test_ppo_resume
from .test_exact_resume import Stage

KILLS = {"sft": 20, "reward": 20, "ppo": 10}


def killed(stage: Stage, runs: str, steps: int, after: float) -> bool:
    """Start or resume in a child, SIGKILL it `after` seconds from when it has logged `steps`; whether it was there."""
    child = os.fork()
    if child == 0:
        try:
            begun(stage, runs)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    ended = 0
    while not ended and logged(stage, runs) < steps:
        time.sleep(0.002)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def newest(stage: Stage, runs: str) -> Path | None:
    folders = sorted((stage.folder / runs / "t" / stage.stage).glob("v*"))
    return folders[-1] if folders and not (folders[-1] / "manifest.json").exists() else None


def logged(stage: Stage, runs: str) -> int:
    file = (newest(stage, runs) or stage.folder) / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def begun(stage: Stage, runs: str) -> StageResult:
    """Go on where there is a checkpoint to go on from, else begin anew."""
    path = newest(stage, runs)
    saved = path is not None and any((path / "checkpoints").glob("step-*"))
    return stage.run(runs, resume=saved)


@pytest.mark.parametrize("name", KILLS)
def test_a_run_that_is_killed_at_random_moments_ends_as_one_that_never_was(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, name: str
) -> None:
    made = test_ppo_resume if name == "ppo" else test_exact_resume
    stage = Stage(made.folder.__wrapped__(tmp_path_factory, tiny_base), name)  # type: ignore[attr-defined]
    start = time.monotonic()
    expected = stage.run("unbroken")
    total = len((expected.path / "metrics.jsonl").read_text().splitlines())
    a_step = (time.monotonic() - start) / total
    draw = random.Random(f"kills of {name}")
    kills, complete, resumed = 0, 0, 0
    while kills < KILLS[name]:
        runs = f"killed {complete}"
        path = newest(stage, runs)
        resumed += path is not None and any((path / "checkpoints").glob("step-*"))
        # Somewhere behind what is done: a few steps on, or so far that it ends before.
        if killed(stage, runs, logged(stage, runs) + draw.randrange(0, total), draw.uniform(0, a_step)):
            kills += 1
        else:
            complete += 1
        for entry in layout.all_runs(stage.folder / runs):
            if read_manifest(entry.path) is not None:
                assert lineage.verify(entry).issues == []
    assert resumed >= KILLS[name] // 4
    last = begun(stage, f"killed {complete}")
    for number in range(complete):
        entry = layout.find(stage.folder / f"killed {number}", f"{name}@latest", "t", smoke=False)
        assert entry.manifest is not None
        assert files(entry.manifest) == files(expected.manifest)
    if name == "ppo":
        assert test_ppo_resume.left(last) == test_ppo_resume.left(expected)
    else:
        test_exact_resume.equal(last, expected)


def files(manifest: dict[str, dict[str, object]]) -> dict[str, object]:
    """What the model consists of, with hashes; its README has the seconds that it took."""
    return {name: file for name, file in manifest["files"].items() if name != "README.md"}
