"""`--resume` around a stage: which run is resumed, what prevents it, and how a chain continues."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.errors import DiskError, ModelError, RecipeError, StoppedError
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.runs.lock import acquire_lock, lock_holder
from rlhf_cli.runs.manifest import read_manifest
from rlhf_cli.runs.run import Run, StageMetrics
from tests.support.chain_project import CHAIN, ChainProject
from tests.support.issues import raises_issue
from tests.support.stand_ins import SetStage

STEPS = 4


class ResumableStages:
    """A project whose stages save a checkpoint after each of four steps, and can be stopped in any of them.

    Attributes:
        project: The recipe and its runs directory.
        stop_at: Stage and the step in which it receives a signal.
        starts: Each stage that was called, with the step that it resumed from.
    """

    def __init__(self, project: ChainProject) -> None:
        self.project = project
        self.stop_at: dict[str, int] = {}
        self.starts: list[str] = []

    def stand_in(self, stage: ResolvedStage, run: Run) -> StageMetrics:
        """Stand in for every stage."""
        self.starts.append(f"{run.stage} {run.resumed_step}")
        run.begin(STEPS, "step", handles_signals=True)
        for step in range(run.resumed_step + 1, STEPS + 1):
            if self.stop_at.get(run.stage) == step:
                os.kill(os.getpid(), signal.SIGTERM)
            run.log(step, {"loss": 1 / step})
            if step == STEPS:
                break
            with run.checkpoint(step) as folder:
                (folder / "state").write_text(str(step))
            if run.stop_requested:
                raise run.stopped(step)
        (run.model_dir / "weights").write_text(f"{run.stage} {stage.recipe.seed}")
        return StageMetrics({f"{run.stage}.loss": 0.5})

    def stop(self, stage: str, at: int, *overrides: str) -> Path:
        """Run a stage that is stopped in the step `at`. Return its run."""
        self.stop_at[stage] = at
        with raises_issue("run.stopped", error=StoppedError):
            self.project.run_stage(stage, *overrides)
        del self.stop_at[stage]
        self.starts.clear()
        return max(self.project.stage_dir(stage).glob("v*"))

    def resume(self, stage: str, *overrides: str) -> Path:
        """Resume a stage. Return its run."""
        return self.project.run_stage(stage, *overrides, resume=True).path


@pytest.fixture
def stages(recipe_file: Path, set_stage: SetStage) -> ResumableStages:
    """Replace every stage of the chain with the resumable stand-in."""
    made = ResumableStages(ChainProject(recipe_file))
    for stage in CHAIN:
        set_stage(stage, made.stand_in)
    return made


def logged_steps(path: Path) -> list[int]:
    """Return the steps in a run's metrics.jsonl."""
    return [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_stopped_run_is_completed_in_its_own_folder(stages: ResumableStages) -> None:
    path = stages.stop("sft", 2)
    assert read_manifest(path) is None
    assert {".lock", "started.json"} <= {p.name for p in path.iterdir()}
    assert lock_holder(path) == ""
    assert stages.resume("sft") == path
    assert stages.starts == ["sft 2"]
    assert logged_steps(path) == [1, 2, 3, 4]
    assert {p.name for p in path.iterdir()} == {"recipe.yaml", "manifest.json", "metrics.jsonl", "model", "log.txt"}
    log = (path / "log.txt").read_text()
    assert "stopped by a signal after step 2" in log
    assert "resuming from step 2" in log


def test_ppo_keeps_its_checkpoints_after_completion(stages: ResumableStages) -> None:
    for stage in ("sft", "reward"):
        stages.project.run_stage(stage)
    path = stages.project.run_stage("ppo").path
    assert sorted(p.name for p in (path / "checkpoints").iterdir()) == ["step-000002", "step-000003"]


def refused_changes(stages: ResumableStages, *overrides: str) -> dict[str, str]:
    """Return location and message of each change for which a resume of sft is refused."""
    with raises_issue("recipe.resume-changed", error=RecipeError) as issues:
        stages.resume("sft", *overrides)
    summary, *changes = issues
    assert summary.location == str(stages.project.stage_dir("sft") / "v0001")
    assert all("start a new run without --resume" in change.hint for change in changes)
    return {change.location: change.message for change in changes}


def test_resume_reports_all_changed_settings(stages: ResumableStages) -> None:
    stages.stop("sft", 2)
    overrides = ("sft.learning_rate=0.5", "seed=7", "adapter.rank=3", "data.sft.eval_fraction=0.5")
    assert refused_changes(stages, *overrides) == {
        "sft.learning_rate": "was 0.0002 when the run started and is now 0.5.",
        "seed": "was 0 when the run started and is now 7.",
        "adapter.rank": "was 16 when the run started and is now 3.",
        "data.sft.eval_fraction": "was null when the run started and is now 0.5.",
    }
    assert stages.resume("sft").name == "v0001"  # the refused resume changed nothing


def test_resume_reports_changed_base_and_rows(stages: ResumableStages) -> None:
    stages.stop("sft", 2)
    folder = stages.project.folder
    (folder / "base" / "weights").write_text("another")
    with (folder / "rows.jsonl").open("a") as file:
        file.write('{"prompt": "x", "completion": "y"}\n')
    found = refused_changes(stages)
    assert {*found} == {"base", "data.sft"}
    assert found["data.sft"] == f"the content of {folder / 'rows.jsonl'} changed since the run started."


def test_resume_with_newer_input_names_the_old_version(stages: ResumableStages) -> None:
    stages.project.run_stage("sft")
    stages.stop("reward", 2)
    stages.project.run_stage("sft", "seed=5")
    with raises_issue("recipe.resume-changed", error=RecipeError) as issues:
        stages.resume("reward")
    change = issues[1]
    assert (change.location, change.message) == ("reward.start", "sft was v0001 when the run started and is now v0002.")
    assert "Use sft@v0001 to resume" in change.hint
    stages.resume("reward", "reward.start=sft@v0001")
    assert stages.starts[-1] == "reward 2"


def test_resume_accepts_other_save_interval(stages: ResumableStages) -> None:
    stages.stop("sft", 2)
    assert stages.resume("sft", "sft.save_every=7").name == "v0001"


def test_resume_with_other_library_or_device_warns(stages: ResumableStages) -> None:
    path = stages.stop("sft", 2)
    started: dict[str, Any] = json.loads((path / "started.json").read_text())
    started["provenance"]["packages"]["torch"] = "1.0"
    started["provenance"]["device"] = "abacus"
    (path / "started.json").write_text(json.dumps(started))
    stages.resume("sft")
    library, device = stages.project.reporter.texts("warning")
    assert library.startswith("torch was 1.0 when the run started and is now ")
    assert library.endswith(": the result may not be bit-identical")
    assert device.startswith("the device was abacus when the run started and is now ")


def test_resume_skips_damaged_checkpoint_with_warning(stages: ResumableStages) -> None:
    path = stages.stop("sft", 3)
    (path / "checkpoints" / "step-000003" / "state").write_text("?")
    stages.resume("sft")
    assert stages.starts == ["sft 2"]
    (warning,) = [text for text in stages.project.reporter.texts("warning") if "step-000003" in text]
    assert warning.startswith("skipped: ")
    assert logged_steps(path) == [1, 2, 3, 4]


def test_resume_starts_first_resumes_when_interrupted_and_skips_at_the_end(stages: ResumableStages) -> None:
    """A batch system that requeues a job always runs the same command."""
    stages.stop_at["sft"] = 2
    with raises_issue("run.stopped", error=StoppedError):
        stages.resume("sft")
    del stages.stop_at["sft"]
    path = stages.resume("sft")
    assert stages.resume("sft") == path
    assert stages.starts == ["sft 0", "sft 2"]
    assert stages.project.versions("sft") == ["v0001"]


def test_resume_after_a_change_of_a_complete_run_starts_the_next_version(stages: ResumableStages) -> None:
    stages.resume("sft")
    stages.project.run_stage("sft", "seed=7", resume=True)
    assert stages.project.versions("sft") == ["v0001", "v0002"]


def test_resume_of_run_in_use_is_refused(stages: ResumableStages) -> None:
    path = stages.stop("sft", 2)
    lock = acquire_lock(path)
    with raises_issue("disk.locked", error=DiskError):
        stages.resume("sft")
    lock.release()
    stages.resume("sft")


def test_resumed_run_stopped_before_training_keeps_its_checkpoints(
    stages: ResumableStages, set_stage: SetStage
) -> None:
    path = stages.stop("sft", 2)

    def interrupted(*_: object) -> StageMetrics:
        raise KeyboardInterrupt

    set_stage("sft", interrupted)
    with raises_issue("run.stopped", error=StoppedError) as issues:
        stages.resume("sft")
    assert issues[0].message == f"stopped by a signal; last checkpoint: {path / 'checkpoints/step-000002'}."
    assert "--resume" in issues[0].hint
    set_stage("sft", stages.stand_in)
    assert stages.resume("sft") == path


def test_resumed_chain_continues_with_the_stopped_stage(stages: ResumableStages) -> None:
    project = stages.project
    stages.stop_at["reward"] = 3
    with raises_issue("run.stopped", error=StoppedError):
        project.run_chain()
    assert stages.starts == ["sft 0", "reward 0"]
    del stages.stop_at["reward"]
    skipped = {"sft": True, "reward": False, "ppo": False, "eval": False, "export": False}
    assert project.run_chain(resume=True) == skipped
    assert stages.starts[2:] == ["reward 3", "ppo 0", "eval 0", "export 0"]
    assert project.versions("reward") == ["v0001"]
    assert set(project.run_chain(resume=True).values()) == {True}


def test_resumed_chain_restarts_a_stage_without_checkpoint(stages: ResumableStages, set_stage: SetStage) -> None:
    def interrupted(_: ResolvedStage, run: Run) -> StageMetrics:
        run.begin(3, "step")
        raise KeyboardInterrupt

    project = stages.project
    set_stage("reward", interrupted)
    with raises_issue("run.stopped", error=StoppedError):
        project.run_chain()
    set_stage("reward", stages.stand_in)
    project.run_chain(resume=True)
    assert project.versions("reward") == ["v0001", "v0002"]
    assert stages.starts[1] == "reward 0"


def test_signal_in_last_step_ends_the_chain_after_the_stage(stages: ResumableStages) -> None:
    project = stages.project
    stages.stop_at["reward"] = STEPS
    with raises_issue("run.stopped", error=StoppedError, location="reward") as issues:
        project.run_chain()
    assert issues[0].message == "stopped by a signal; reward is complete."
    assert read_manifest(project.stage_dir("reward") / "v0001") is not None
    assert project.versions("ppo") == []
    del stages.stop_at["reward"]
    assert project.run_chain()["reward"] is True


def change_content(file: Path) -> None:
    """Change a byte of the file."""
    file.write_text("x" + file.read_text()[1:])


def truncate(file: Path) -> None:
    """Keep two bytes of the file."""
    file.write_text("sh")


@pytest.mark.parametrize("damage", [change_content, truncate, Path.unlink])
def test_damaged_input_model_is_refused_before_it_is_loaded(
    stages: ResumableStages, damage: Callable[[Path], None]
) -> None:
    project = stages.project
    project.run_stage("sft")
    file = project.stage_dir("sft") / "v0001/model/weights"
    damage(file)
    stages.starts.clear()
    with raises_issue("model.damaged-file", error=ModelError, location=str(file)) as issues:
        project.run_stage("reward")
    (issue,) = issues
    assert issue.hint == "Run `rlhf sft` again, or restore the file."
    assert stages.starts == project.versions("reward") == []
