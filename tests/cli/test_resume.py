"""Tests of stopping and resuming from the command line: exit codes, messages and JSON objects."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from rlhf_cli.cli import output
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.stages import STAGES
from tests.support.command import Rlhf
from tests.support.stand_ins import SetStage

if TYPE_CHECKING:
    from rlhf_cli.pipeline.resolve import ResolvedStage

StopSteps = dict[str, int]  # stage: the step in which it receives a SIGTERM


@pytest.fixture
def stops(set_stage: SetStage) -> StopSteps:
    """Replace every stage with one that saves after each of its three steps; return when they are stopped."""
    stops: StopSteps = {}

    def run(_stage: ResolvedStage, run: Run) -> StageMetrics:
        run.begin(3, "step", handles_signals=True)
        for step in range(run.resumed_step + 1, 4):
            run.log(step, {"loss": 0.5})
            if stops.get(run.stage) == step:
                del stops[run.stage]
                os.kill(os.getpid(), signal.SIGTERM)
            with run.checkpoint(step) as folder:
                (folder / "state").touch()
            if run.stop_requested:
                raise run.stopped(step)
        (run.model_dir / "weights").touch()
        return StageMetrics({f"{run.stage}.loss": 0.5, "reward.accuracy": 0.75})

    for stage in STAGES:
        set_stage(stage, run)
    return stops


def test_stopped_stage_exits_75_names_its_checkpoint_and_resumes(rlhf: Rlhf, stops: StopSteps) -> None:
    stops["sft"] = 2
    result = rlhf("sft", "-r", "r.yaml")
    assert (result.code, result.codes) == (75, ["run.stopped"])
    assert "Ctrl-C again" in result.err
    assert "runs/bot/sft/v0001/checkpoints/step-000002" in result.err
    assert "--resume" in result.err
    assert "Traceback" not in result.err
    result = rlhf("sft", "-r", "r.yaml", "--resume")
    assert result.code == 0
    assert "resuming from step 2" in result.out
    assert "v0001" in result.out


def test_stop_in_json_mode_is_one_object(rlhf: Rlhf, stops: StopSteps) -> None:
    stops["sft"] = 1
    result = rlhf("sft", "-r", "r.yaml", "--json")
    assert (result.code, result.json["status"], result.json["exit_code"]) == (75, "error", 75)
    assert result.issue["code"] == "run.stopped"
    assert "--resume" in result.issue["hint"]
    assert rlhf("sft", "-r", "r.yaml", "--json", "--resume").json["run"] == "bot/sft@v0001"


def test_stopped_chain_resumes_the_stopped_stage_and_skips_those_before(rlhf: Rlhf, stops: StopSteps) -> None:
    stops["ppo"] = 2
    assert rlhf("run", "-r", "r.yaml", "--quiet").code == 75
    stages = rlhf("run", "-r", "r.yaml", "--resume", "--json").json["stages"]
    assert [(stage["run"], stage["skipped"]) for stage in stages] == [
        ("bot/sft@v0001", True),
        ("bot/reward@v0001", True),
        ("bot/ppo@v0001", False),
        ("bot/eval@v0001", False),
        ("bot/export@v0001", False),
    ]


@pytest.mark.usefixtures("stops")
@pytest.mark.parametrize("command", ["sft", "run"])
def test_resume_without_incomplete_run_starts_and_then_skips(rlhf: Rlhf, command: str) -> None:
    for is_skipped in (False, True):
        result = rlhf(command, "-r", "r.yaml", "--resume", "--json")
        assert result.code == 0
        stage = result.json["stages"][0] if command == "run" else result.json
        assert (stage["run"], stage["skipped"]) == ("bot/sft@v0001", is_skipped)


def test_resume_with_changed_recipe_exits_2_and_names_the_change(rlhf: Rlhf, stops: StopSteps) -> None:
    stops["sft"] = 2
    rlhf("sft", "-r", "r.yaml")
    result = rlhf("sft", "-r", "r.yaml", "--resume", "--set", "sft.learning_rate=0.5", "--json")
    assert result.code == 2
    assert {issue["code"] for issue in result.json["issues"]} == {"recipe.resume-changed"}
    (changed,) = (issue for issue in result.json["issues"] if "sft.learning_rate" in issue["location"])
    assert "0.0002" in changed["message"]
    assert "0.5" in changed["message"]


def test_signal_while_the_first_one_is_reported_does_not_change_the_exit_code(
    rlhf: Rlhf, stops: StopSteps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "print_issues", lambda _: os.kill(os.getpid(), signal.SIGINT))
    stops["sft"] = 1
    result = rlhf("sft", "-r", "r.yaml")
    assert result.code == 75
    assert "Traceback" not in result.err
