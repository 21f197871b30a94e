"""A sample run that was killed or stopped and then resumed writes the same rows as an unbroken one: on a CPU."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.errors import StoppedError
from rlhf_cli.inference import generation
from rlhf_cli.pipeline.runner import StageResult
from rlhf_cli.runs.run import Run
from rlhf_cli.stages import sample
from tests.support.issues import raises_issue
from tests.support.stage_harness import StageHarness, kill_this_process, logged_steps, write_ppo_project

pytestmark = pytest.mark.subprocess

# 36 prompts with two completions of each model, 10 prompts in a step: four steps for each model.
SETTINGS = ("sample.of=[base, base]", "sample.batch_size=5", "sample.max_new_tokens=6")
STEPS = 8


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> StageHarness:
    """Write a recipe and its prompts."""
    return StageHarness(write_ppo_project(tmp_path_factory.mktemp("sample-resume"), tiny_base), "sample", *SETTINGS)


@pytest.fixture(scope="module")
def unbroken(harness: StageHarness) -> StageResult:
    """Run the stage to its end."""
    return harness.run("unbroken")


def artifacts(result: StageResult) -> dict[str, Any]:
    """Return the rows and the samples of a run, and its metrics without times."""
    found: dict[str, Any] = {name: (result.path / name).read_bytes() for name in ("data/train.jsonl", "samples.jsonl")}
    timed = ("time", "tokens_per_second")
    found["steps"] = [{k: v for k, v in row.items() if k not in timed} for row in logged_steps(result.path)]
    return found | {"metrics": result.manifest["metrics"], "files": result.manifest["files"]}


def act_at_call(number: int, module: Any, name: str, act: Callable[[], object]) -> Callable[[], None]:
    """Return a trap: act when the function is called for this time, counted from 1."""

    def set_trap(patch: pytest.MonkeyPatch | None = None) -> None:
        function, calls = getattr(module, name), 0

        def call(*args: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls == number:
                act()
            return function(*args, **options)

        (patch or pytest.MonkeyPatch()).setattr(module, name, call)

    return set_trap


@pytest.mark.parametrize(
    ("trap", "last"),
    [
        pytest.param(act_at_call(3, generation, "generate", kill_this_process), 2, id="in a batch"),
        pytest.param(act_at_call(6, generation, "generate", kill_this_process), 5, id="in the second model"),
        # Two lines of the third step are written, of which the resumed run knows nothing.
        pytest.param(act_at_call(2 * 10 + 3, Run, "sample", kill_this_process), 2, id="between two lines"),
        pytest.param(act_at_call(20, sample, "distinct", kill_this_process), STEPS, id="while writing the rows"),
    ],
)
def test_killed_run_resumes_exactly(
    harness: StageHarness,
    unbroken: StageResult,
    trap: Callable[[], None],
    last: int,
    request: pytest.FixtureRequest,
) -> None:
    runs = request.node.name
    harness.run_killed(runs, trap)
    assert harness.checkpoint_names(runs)[-1] == f"step-{last:06d}"
    resumed = harness.run(runs, resume=True)
    assert artifacts(resumed) == artifacts(unbroken)
    assert not (resumed.path / "checkpoints").exists()


def test_signal_stops_after_its_step_and_the_run_resumes_exactly(
    harness: StageHarness, unbroken: StageResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        act_at_call(2, generation, "generate", lambda: os.kill(os.getpid(), signal.SIGTERM))(patch)  # type: ignore[call-arg]
        with raises_issue("run.stopped", error=StoppedError, location="sample"):
            harness.run("stopped")
    assert harness.checkpoint_names("stopped")[-1] == "step-000002"
    assert artifacts(harness.run("stopped", resume=True)) == artifacts(unbroken)
