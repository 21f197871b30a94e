"""The stage revise on a tiny model: rows, samples, smoke, resume, and sft on its rows."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.errors import StoppedError
from rlhf_cli.inference import generation
from rlhf_cli.pipeline.dry_run import preview
from rlhf_cli.pipeline.runner import run_stage
from tests.support.issues import raises_issue
from tests.support.judges import CONSTITUTION
from tests.support.stage_harness import StageHarness, kill_this_process, write_ppo_project
from tests.support.training_project import TrainingProject, training_project

__all__ = ["training_project"]  # a fixture

SETTINGS = (
    "revise={of: base, constitution: c.yaml, max_new_tokens: 8, batch_size: 3, prompts: 30, max_prompt_length: 64}"
)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a .jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def project(training_project: TrainingProject, monkeypatch: pytest.MonkeyPatch) -> TrainingProject:
    """Return the project with a constitution in the working directory."""
    monkeypatch.chdir(training_project.folder)
    (training_project.folder / "c.yaml").write_text(CONSTITUTION)
    return training_project


def test_revisions_are_written_as_demonstrations_on_which_sft_trains(project: TrainingProject) -> None:
    result = project.train("revise", SETTINGS)
    samples, rows = (read_lines(result.path / name) for name in ("samples.jsonl", "data/train.jsonl"))
    assert len(samples) == 6
    kept = [line for line in samples if not line["too_long"] and line["rounds"][-1]["revision"].strip()]
    assert rows == [{"prompt": line["prompt"], "completion": line["rounds"][-1]["revision"]} for line in kept]
    assert {line["rounds"][0]["principle"] for line in samples} <= {"helpful", "brief"}
    metrics = result.manifest["metrics"]
    assert metrics["revise.rows"] + metrics["revise.empty"] + metrics["revise.too_long"] == 6
    assert metrics["revise.rows"] == len(rows) > 0
    assert "train.jsonl" in result.manifest["files"]
    roles = [item["role"] for item in result.manifest["inputs"]]
    assert roles == ["base", "data.prompts", "constitution"]
    trained = project.train("sft", "data.sft={run: revise@latest}")
    assert trained.manifest["metrics"]["sft.train_loss"] > 0


def test_revise_without_a_constitution_of_its_own_takes_the_one_of_the_judge(project: TrainingProject) -> None:
    judge = "feedback={judge: {constitution: c.yaml, model: base}}"
    result = project.train("revise", "revise={of: base, max_new_tokens: 4, prompts: 3, max_prompt_length: 64}", judge)
    assert "constitution" in {item["role"] for item in result.manifest["inputs"]}


def test_smoke_run_revises_four_prompts(project: TrainingProject) -> None:
    recipe = project.load("revise", SETTINGS)
    result = run_stage("revise", recipe, project.runs_dir, smoke=True, reporter=project.reporter)
    assert len(read_lines(result.path / "samples.jsonl")) == 4


def test_dry_run_counts_the_prompts(project: TrainingProject) -> None:
    shown = preview("revise", project.load("revise", SETTINGS), project.runs_dir, smoke=False)
    assert shown["facts"]["rows train"] == 6


# --- resume ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> StageHarness:
    """Write a recipe, its prompts and a constitution: 30 prompts, 12 in a step."""
    folder = write_ppo_project(tmp_path_factory.mktemp("revise-resume"), tiny_base)
    (folder / "c.yaml").write_text(CONSTITUTION)
    return StageHarness(folder, "revise", SETTINGS.replace("c.yaml", str(folder / "c.yaml")))


def act_at_call(number: int, act: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Act when `generate` is called for this time, counted from 1."""
    generate, calls = generation.generate, 0

    def call(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            act()
        return generate(*args, **options)

    patch.setattr(generation, "generate", call)


@pytest.mark.subprocess
def test_killed_or_stopped_run_resumes_exactly(harness: StageHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = harness.run("unbroken")
    names = ("data/train.jsonl", "samples.jsonl")
    expected = [(unbroken.path / name).read_bytes() for name in names]
    # Three calls per step: drafts, critiques, revisions. The fifth is within the second step.
    harness.run_killed("killed", lambda: act_at_call(5, kill_this_process, pytest.MonkeyPatch()))
    assert harness.checkpoint_names("killed") == ["step-000001"]
    resumed = harness.run("killed", resume=True)
    assert [(resumed.path / name).read_bytes() for name in names] == expected
    with monkeypatch.context() as patch:
        act_at_call(5, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        with raises_issue("run.stopped", error=StoppedError, location="revise"):
            harness.run("stopped")
    assert harness.checkpoint_names("stopped")[-1] == "step-000002"
    resumed = harness.run("stopped", resume=True)
    assert [(resumed.path / name).read_bytes() for name in names] == expected
