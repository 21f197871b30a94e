"""Killed at random moments, again and again, and resumed each time: nothing is lost, and the end is bit-equal."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from rlhf_cli.errors import RecipeError
from rlhf_cli.runs import layout, lineage
from rlhf_cli.runs.manifest import read_manifest
from rlhf_cli.stages.dispatch import Outcome

from . import test_exact_resume, test_ppo_resume
from .test_exact_resume import Stage

KILLS = {"sft": 20, "reward": 20, "ppo": 10}


def killed(stage: Stage, runs: str, after: float) -> bool:
    """Start or resume in a child that is killed `after` seconds; whether it was, and had not ended by then.

    SIGALRM, which nobody handles, ends a process where it stands, as SIGKILL does; the kernel keeps the time.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.setitimer(signal.ITIMER_REAL, after)
            begun(stage, runs)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGALRM)
    return code != 0


def begun(stage: Stage, runs: str) -> Outcome:
    """Go on where there is what to go on with, else begin."""
    try:
        return stage.run(runs, resume=True)
    except RecipeError:
        return stage.run(runs)


@pytest.mark.parametrize("name", KILLS)
def test_a_run_that_is_killed_at_random_moments_ends_as_one_that_never_was(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, name: str
) -> None:
    made = test_ppo_resume if name == "ppo" else test_exact_resume
    stage = Stage(made.folder.__wrapped__(tmp_path_factory, tiny_base), name)  # type: ignore[attr-defined]
    stage.run("warm")  # what is imported at the first time
    start = time.monotonic()
    expected = stage.run("unbroken")
    seconds = time.monotonic() - start
    draw = random.Random(f"kills of {name}")
    kills, complete = 0, 0
    while kills < KILLS[name]:
        runs = f"killed {complete}"
        if killed(stage, runs, draw.uniform(0, seconds)):
            kills += 1
        else:
            complete += 1
        for entry in layout.all_runs(stage.folder / runs):
            if read_manifest(entry.path) is not None:
                assert lineage.verify(entry).faults == []
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
