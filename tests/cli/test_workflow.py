"""Tests of the GitHub Actions workflow in docs/automation.md: it parses, and its commands run as described."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.command import Rlhf

GUIDE = Path(__file__).parents[2] / "docs" / "automation.md"


@pytest.fixture(scope="module")
def jobs() -> dict[str, Any]:
    blocks = re.findall(r"```yaml\n(# \.github/workflows/.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = blocks
    workflow = yaml.safe_load(block)
    assert {*workflow} == {True, "jobs"}  # YAML 1.1 reads `on` as a boolean; GitHub allows for that
    assert isinstance(workflow["jobs"], dict)
    return workflow["jobs"]


def commands(job: dict[str, Any]) -> list[tuple[list[str], str]]:
    """Return the words of each rlhf command and the file that its stdout is redirected to."""
    found = [step["run"].partition(">") for step in job["steps"] if step.get("run", "").startswith("rlhf ")]
    return [(shlex.split(command)[1:], file.strip()) for command, _, file in found]


def uploaded(job: dict[str, Any]) -> set[str]:
    """Return the paths that the job uploads, also if a step failed."""
    (step,) = (step for step in job["steps"] if step.get("uses", "").startswith("actions/upload-artifact"))
    assert step["if"] == "always()"  # the report of a failed gate is the one to read
    return {*step["with"]["path"].split()}


@pytest.mark.usefixtures("stand_ins")
def test_workflow_commands_succeed_and_json_goes_to_uploaded_file(
    jobs: dict[str, Any], rlhf: Rlhf, recipe_file: Path
) -> None:
    recipe_file.rename(recipe_file.with_name("recipe.yaml"))
    for name, expected in (("smoke", ["check", "run"]), ("train", ["doctor", "run"])):
        found = commands(jobs[name])
        assert [words[0] for words, _ in found] == expected
        for words, file in found:
            result = rlhf(*words)
            assert result.code == 0, result.err
            if file:
                assert file in uploaded(jobs[name])
                assert result.json["status"] == "ok"  # the file contains only the object
    runs = rlhf("runs", "list", "--json").json["runs"]
    assert {run["state"] for run in runs} == {"smoke", "complete"}


@pytest.mark.usefixtures("stand_ins")
def test_failed_gate_fails_the_train_job_and_not_the_smoke_job(
    jobs: dict[str, Any], rlhf: Rlhf, recipe_file: Path
) -> None:
    text = recipe_file.read_text().replace("min: 0.5", "min: 0.99")
    recipe_file.with_name("recipe.yaml").write_text(text)
    words, _ = commands(jobs["train"])[-1]
    result = rlhf(*words)
    assert result.code == 8
    assert json.loads(result.out)["exit_code"] == 8
    words, _ = commands(jobs["smoke"])[-1]
    assert rlhf(*words).code == 0  # a smoke run has random weights and no gates


def test_setup_python_has_version_as_string_and_an_existing_cache_key(jobs: dict[str, Any]) -> None:
    (setup,) = (s["with"] for s in jobs["smoke"]["steps"] if s.get("uses", "").startswith("actions/setup-python"))
    assert setup["python-version"] == "3.11"  # a string: the number 3.10 would be 3.1
    assert setup["cache-dependency-path"] == ".github/workflows/rlhf.yml"  # the default is requirements.txt
