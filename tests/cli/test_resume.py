"""Stopping and resuming from the command line: exit codes, what is said, and what `--json` has."""

from __future__ import annotations

import os
import signal

import pytest

from rlhf_cli.cli import output
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.stages import STAGES
from tests.support.command import Rlhf
from tests.support.stand_ins import SetStage

StoppingRules = dict[str, int]


@pytest.fixture
def stops(set_stage: SetStage) -> StoppingRules:
    """Stage: the step in which it gets a SIGTERM. Every stage saves after each of its three steps."""
    stops: StoppingRules = {}

    def run(recipe: Recipe, run: Run) -> StageMetrics:
        run.begin(3, "steps", handles_signals=True)
        for step in range(run.resumed_step + 1, 4):
            run.log(step, {"loss": 0.5})
            if stops.get(run.stage) == step:
                del stops[run.stage]
                os.kill(os.getpid(), signal.SIGTERM)
            with run.checkpoint(step) as folder:
                (folder / "state").touch()
            if run.stopping:
                raise run.stopped(step)
        (run.model_dir / "weights").touch()
        return StageMetrics({f"{run.stage}.loss": 0.5, "reward.accuracy": 0.75})

    for stage in STAGES:
        set_stage(stage, run)
    return stops


def test_a_stopped_stage_exits_75_names_its_checkpoint_and_goes_on(rlhf: Rlhf, stops: StoppingRules) -> None:
    stops["sft"] = 2
    told = rlhf("sft", "-r", "r.yaml")
    assert told.code == 75
    assert "stopping at the next step; Ctrl-C again stops at once" in told.err
    assert "runs/bot/sft/v0001/checkpoints/step-000002" in told.err
    assert "Run the same command with --resume" in told.err
    assert "Traceback" not in told.err
    told = rlhf("sft", "-r", "r.yaml", "--resume")
    assert told.code == 0
    assert "goes on after step 2" in told.out
    assert "v0001" in told.out


def test_the_json_of_a_stop_is_one_object(rlhf: Rlhf, stops: StoppingRules) -> None:
    stops["sft"] = 1
    told = rlhf("sft", "-r", "r.yaml", "--json")
    assert (told.code, told.json["status"], told.json["code"]) == (75, "error", 75)
    assert "--resume" in told.json["issues"][0]["hint"]
    assert rlhf("sft", "-r", "r.yaml", "--json", "--resume").json["run"] == "bot/sft@v0001"


def test_the_chain_goes_on_where_it_was_stopped(rlhf: Rlhf, stops: StoppingRules) -> None:
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
def test_where_there_is_nothing_to_resume_it_exits_2(rlhf: Rlhf, command: str) -> None:
    told = rlhf(command, "-r", "r.yaml", "--resume")
    assert told.code == 2
    assert "incomplete run to resume" in told.err
    assert "without --resume" in told.err


def test_a_changed_recipe_exits_2_and_says_what_changed(rlhf: Rlhf, stops: StoppingRules) -> None:
    stops["sft"] = 2
    rlhf("sft", "-r", "r.yaml")
    told = rlhf("sft", "-r", "r.yaml", "--resume", "--set", "sft.learning_rate=0.5")
    assert told.code == 2
    assert "sft.learning_rate" in told.err
    assert "was 0.0002 when the run began, and is 0.5." in told.err


def test_a_signal_that_comes_while_the_first_one_is_told_changes_nothing(
    rlhf: Rlhf, stops: StoppingRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "print_issues", lambda issues: os.kill(os.getpid(), signal.SIGINT))
    stops["sft"] = 1
    told = rlhf("sft", "-r", "r.yaml")
    assert told.code == 75
    assert "Traceback" not in told.err
