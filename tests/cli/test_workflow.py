"""The GitHub Actions example of docs/automation.md: it parses, and its commands run and end as it says."""

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
    read = yaml.safe_load(block)
    assert {*read} == {True, "jobs"}  # `on` is a boolean to YAML 1.1, and GitHub knows
    assert isinstance(read["jobs"], dict)
    return read["jobs"]


def commands(job: dict[str, Any]) -> list[tuple[list[str], str]]:
    """The words of each rlhf command, and the file that its stdout goes to."""
    found = [step["run"].partition(">") for step in job["steps"] if step.get("run", "").startswith("rlhf ")]
    return [(shlex.split(command)[1:], file.strip()) for command, _, file in found]


def uploaded(job: dict[str, Any]) -> set[str]:
    (step,) = (step for step in job["steps"] if step.get("uses", "").startswith("actions/upload-artifact"))
    assert step["if"] == "always()"  # a failed gate is what one wants to read about
    return {*step["with"]["path"].split()}


@pytest.mark.usefixtures("stand_ins")
def test_its_commands_run(jobs: dict[str, Any], rlhf: Rlhf, recipe_file: Path) -> None:
    recipe_file.rename(recipe_file.with_name("recipe.yaml"))
    for name, expected in (("smoke", ["check", "run"]), ("train", ["doctor", "run"])):
        found = commands(jobs[name])
        assert [words[0] for words, _ in found] == expected
        for words, file in found:
            ended = rlhf(*words)
            assert ended.code == 0, ended.err
            if file:
                assert file in uploaded(jobs[name])
                assert ended.json["status"] == "ok"  # nothing but the object goes into the file
    real = rlhf("runs", "list", "--json").json["runs"]
    assert {run["state"] for run in real} == {"smoke", "complete"}


@pytest.mark.usefixtures("stand_ins")
def test_a_gate_that_fails_fails_the_job(jobs: dict[str, Any], rlhf: Rlhf, recipe_file: Path) -> None:
    text = recipe_file.read_text().replace("min: 0.5", "min: 0.99")
    recipe_file.with_name("recipe.yaml").write_text(text)
    words, _ = commands(jobs["train"])[-1]
    ended = rlhf(*words)
    assert ended.code == 8
    assert json.loads(ended.out)["exit_code"] == 8
    words, _ = commands(jobs["smoke"])[-1]
    assert rlhf(*words).code == 0  # random weights pass no gate, and are asked for none


def test_setup_finds_python_and_what_its_cache_hangs_on(jobs: dict[str, Any]) -> None:
    (setup,) = (s["with"] for s in jobs["smoke"]["steps"] if s.get("uses", "").startswith("actions/setup-python"))
    assert setup["python-version"] == "3.11"  # a string: 3.10 would else be 3.1
    assert setup["cache-dependency-path"] == ".github/workflows/rlhf.yml"  # else it wants a requirements.txt
