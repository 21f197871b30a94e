"""A PPO run that was killed and then resumed is bit-identical to an unbroken one: on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from rlhf_cli.inference import generation
from rlhf_cli.pipeline.runner import StageResult
from rlhf_cli.ppo import trainer, update
from tests.support.stage_harness import StageHarness, kill_this_process, ppo_artifacts, write_ppo_project

pytestmark = pytest.mark.subprocess


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """Write a recipe for ppo, and its data."""
    return write_ppo_project(tmp_path_factory.mktemp("ppo-resume"), tiny_base)


@pytest.fixture(scope="module")
def unbroken(project: Path) -> StageResult:
    """Run ppo to its end."""
    return StageHarness(project, "ppo").run("unbroken")


def die_at_call(number: int, module: ModuleType, name: str) -> Callable[[], None]:
    """Return a trap: die when the function is called for this time, counted from 1."""

    def set_trap() -> None:
        function, calls = getattr(module, name), 0

        def call(*args: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls == number:
                kill_this_process()
            return function(*args, **options)

        setattr(module, name, call)

    return set_trap


@pytest.mark.parametrize(
    "trap",
    [
        # Samples are generated before the first and after the second iteration.
        pytest.param(die_at_call(5, generation, "generate"), id="in a rollout"),
        pytest.param(die_at_call(4 * 2 + 3, update, "optimizer_step"), id="between two minibatches"),
        pytest.param(die_at_call(2, trainer, "save_state"), id="in a checkpoint"),
        pytest.param(die_at_call(3 * 4 + 1, update, "ptx_loss"), id="in a minibatch"),
    ],
)
def test_killed_ppo_run_resumes_exactly(
    project: Path, unbroken: StageResult, trap: Callable[[], None], request: pytest.FixtureRequest
) -> None:
    harness, runs = StageHarness(project, "ppo"), request.node.name
    harness.run_killed(runs, trap)
    committed = [name for name in harness.checkpoint_names(runs) if not name.startswith(".tmp-")]
    assert committed == ["step-000002"]
    found, expected = ppo_artifacts(harness.run(runs, resume=True)), ppo_artifacts(unbroken)
    assert found.keys() == expected.keys()
    assert "checkpoints/step-000004/state/state.safetensors" in found  # optimizer, generators and the rest
    for name, content in expected.items():
        assert found[name] == content, name
