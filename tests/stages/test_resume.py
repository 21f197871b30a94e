"""`--resume` around a stage: which run goes on, what keeps it from going on, and how a chain takes it up."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.errors import DiskError, ModelError, RecipeError, StoppedError
from rlhf_cli.pipeline.runner import StageResult, run_chain, run_stage
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.runs.lock import acquire_lock, lock_holder
from rlhf_cli.runs.manifest import read_manifest
from rlhf_cli.runs.run import Run, StageMetrics
from tests.pipeline.test_runner import CHAIN, Case
from tests.support.recipe_files import load_recipe
from tests.support.stand_ins import SetStage

STEPS = 4


class Stopping(Case):
    """A case whose stages can be resumed, and stop where they are told to."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.stop_at: dict[str, int] = {}  # stage: the step in which a signal comes
        self.warned: list[str] = []
        self.went: list[str] = []  # stage and the step that it began after
        self.reporter.warn = self.warned.append  # type: ignore[method-assign]

    def stand_in(self, recipe: Recipe, run: Run) -> StageMetrics:
        self.went.append(f"{run.stage} {run.resumed_step}")
        run.begin(STEPS, "steps", handles_signals=True)
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
        (run.model_dir / "weights").write_text(f"{run.stage} {recipe.seed}")
        return StageMetrics({f"{run.stage}.loss": 0.5, "reward.accuracy": 0.75})

    def resume(self, stage: str, *overrides: str) -> StageResult:
        recipe = load_recipe(self.file, overrides, (stage,))
        return run_stage(stage, recipe, self.runs, smoke=False, reporter=self.reporter, resume=True)

    def stopped(self, stage: str, at: int, *overrides: str) -> Path:
        """A run of `stage` that was stopped in the step `at`."""
        self.stop_at[stage] = at
        with pytest.raises(StoppedError):
            self.stage(stage, *overrides)
        del self.stop_at[stage]
        self.went.clear()
        return max((self.runs / "bot" / stage).glob("v*"))

    def resumed_chain(self, *overrides: str) -> dict[str, bool]:
        recipe = load_recipe(self.file, overrides, CHAIN)
        chain = run_chain(recipe, CHAIN, self.runs, smoke=False, reporter=self.reporter, resume=True)
        return {outcome.stage: outcome.skipped for outcome in chain}


@pytest.fixture
def case(recipe_file: Path, set_stage: SetStage) -> Stopping:
    made = Stopping(recipe_file)
    for stage in CHAIN:
        set_stage(stage, made.stand_in)
    return made


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_stopped_run_is_finished_in_its_own_folder(case: Stopping) -> None:
    path = case.stopped("sft", 2)
    assert read_manifest(path) is None
    assert {".lock", "started.json"} <= {p.name for p in path.iterdir()}
    assert lock_holder(path) == ""
    outcome = case.resume("sft")
    assert (outcome.path, case.went) == (path, ["sft 2"])
    assert steps(path) == [1, 2, 3, 4]
    assert {p.name for p in path.iterdir()} == {"recipe.yaml", "manifest.json", "metrics.jsonl", "model", "log.txt"}
    assert "stopped by a signal after step 2" in (path / "log.txt").read_text()
    assert "goes on after step 2" in (path / "log.txt").read_text()


def test_ppo_keeps_its_checkpoints_when_it_is_done(case: Stopping) -> None:
    case.stage("sft"), case.stage("reward")
    path = case.stage("ppo").path
    assert sorted(p.name for p in (path / "checkpoints").iterdir()) == ["step-000002", "step-000003"]


def refused(case: Stopping, *overrides: str) -> dict[str, str]:
    """Where and what of each issue of a resume."""
    with pytest.raises(RecipeError) as raised:
        case.resume("sft", *overrides)
    first, *rest = raised.value.issues
    assert "another recipe or other inputs" in first.message
    assert all("start anew without --resume" in issue.hint for issue in rest)
    return {issue.location: issue.message for issue in rest}


def test_what_changed_in_the_recipe_is_told_all_at_once(case: Stopping) -> None:
    case.stopped("sft", 2)
    changed = ("sft.learning_rate=0.5", "seed=7", "adapter.rank=3", "data.sft.eval_fraction=0.5")
    assert refused(case, *changed) == {
        "sft.learning_rate": "was 0.0002 when the run began, and is 0.5.",
        "seed": "was 0 when the run began, and is 7.",
        "adapter.rank": "was 16 when the run began, and is 3.",
        "data.sft.eval_fraction": "was null when the run began, and is 0.5.",
    }
    assert case.resume("sft").path.name == "v0001"  # nothing was lost by it


def test_another_base_or_other_rows_are_told(case: Stopping) -> None:
    case.stopped("sft", 2)
    (case.file.parent / "base" / "weights").write_text("another")
    with (case.file.parent / "rows.jsonl").open("a") as file:
        file.write('{"prompt": "x", "completion": "y"}\n')
    found = refused(case)
    assert {*found} == {"base", "data.sft"}
    assert "rows.jsonl is not what it was" in found["data.sft"]


def test_a_newer_input_is_told_with_how_to_keep_the_old_one(case: Stopping) -> None:
    case.stage("sft")
    case.stopped("reward", 2)
    case.stage("sft", "seed=5")
    with pytest.raises(RecipeError) as raised:
        case.resume("reward")
    issue = raised.value.issues[1]
    assert (issue.location, issue.message) == ("start", "sft was v0001 when the run began, and is v0002.")
    assert "Write sft@v0001 to go on" in issue.hint
    case.resume("reward", "reward.start=sft@v0001")
    assert case.went[-1] == "reward 2"


def test_how_often_it_saves_may_change(case: Stopping) -> None:
    case.stopped("sft", 2)
    assert case.resume("sft", "sft.save_every=7").path.name == "v0001"


def test_another_library_or_device_is_said_and_goes_on(case: Stopping) -> None:
    path = case.stopped("sft", 2)
    origin: dict[str, Any] = json.loads((path / "started.json").read_text())
    origin["provenance"]["packages"]["torch"] = "1.0"
    origin["provenance"]["device"] = "abacus"
    (path / "started.json").write_text(json.dumps(origin))
    case.resume("sft")
    assert any("torch was 1.0 when the run began" in text and "not bit-exact" in text for text in case.warned)
    assert any("device was abacus" in text for text in case.warned)


def test_a_damaged_checkpoint_is_passed_over_and_said(case: Stopping) -> None:
    path = case.stopped("sft", 3)
    (path / "checkpoints" / "step-000003" / "state").write_text("?")
    case.resume("sft")
    assert case.went == ["sft 2"]
    assert any("step-000003" in text and "passed over" in text for text in case.warned)
    assert steps(path) == [1, 2, 3, 4]


def test_nothing_to_resume_makes_no_folder(case: Stopping) -> None:
    with pytest.raises(RecipeError, match="no incomplete run to resume"):
        case.resume("sft")
    assert not case.runs.exists()


def test_a_run_that_is_under_way_cannot_be_resumed(case: Stopping) -> None:
    path = case.stopped("sft", 2)
    lock = acquire_lock(path)
    with pytest.raises(DiskError, match="under way"):
        case.resume("sft")
    lock.release()
    case.resume("sft")


def test_a_resumed_run_that_is_stopped_before_it_trains_keeps_what_it_has(case: Stopping, set_stage: SetStage) -> None:
    path = case.stopped("sft", 2)

    def interrupted(recipe: Recipe, run: Run) -> StageMetrics:
        raise KeyboardInterrupt

    set_stage("sft", interrupted)
    with pytest.raises(StoppedError, match="step-000002") as raised:
        case.resume("sft")
    assert "--resume" in raised.value.issues[0].hint
    set_stage("sft", case.stand_in)
    assert case.resume("sft").path == path


def test_a_chain_takes_up_the_stage_that_was_stopped(case: Stopping) -> None:
    case.stop_at["reward"] = 3
    with pytest.raises(StoppedError):
        case.chain()
    assert case.went == ["sft 0", "reward 0"]
    del case.stop_at["reward"]
    assert case.resumed_chain() == {"sft": True, "reward": False, "ppo": False, "eval": False, "export": False}
    assert case.went[2:] == ["reward 3", "ppo 0", "eval 0", "export 0"]
    assert case.versions("reward") == ["v0001"]
    with pytest.raises(RecipeError, match="no stage has an incomplete run"):
        case.resumed_chain()


def test_a_chain_starts_a_stage_anew_that_had_nothing_saved(case: Stopping, set_stage: SetStage) -> None:
    def interrupted(recipe: Recipe, run: Run) -> StageMetrics:
        run.begin(3, "steps")
        raise KeyboardInterrupt

    set_stage("reward", interrupted)
    with pytest.raises(StoppedError):
        case.chain()
    set_stage("reward", case.stand_in)
    case.resumed_chain()
    assert case.versions("reward") == ["v0001", "v0002"]
    assert case.went[1] == "reward 0"


def test_a_signal_in_a_stages_last_step_ends_the_chain_after_it(case: Stopping) -> None:
    case.stop_at["reward"] = STEPS
    with pytest.raises(StoppedError, match="reward is complete") as raised:
        case.chain()
    assert raised.value.exit_code == 75
    assert read_manifest(case.runs / "bot/reward/v0001") is not None
    assert case.versions("ppo") == []
    del case.stop_at["reward"]
    assert case.chain()["reward"] is True


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda file: file.write_text("x" + file.read_text()[1:]), "has another content"),
        (lambda file: file.write_text("sh"), "has 2 bytes, and had 5"),
        (lambda file: file.unlink(), "cannot be read"),
    ],
)
def test_a_damaged_model_is_named_before_it_is_loaded(case: Stopping, harm: Any, says: str) -> None:
    case.stage("sft")
    file = case.runs / "bot/sft/v0001/model/weights"
    harm(file)
    case.went.clear()
    with pytest.raises(ModelError, match=says) as raised:
        case.stage("reward")
    (issue,) = raised.value.issues
    assert (raised.value.exit_code, issue.location) == (4, str(file))
    assert "Run `rlhf sft` again" in issue.hint
    assert case.went == case.versions("reward") == []
