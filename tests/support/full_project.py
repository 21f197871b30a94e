"""A project whose recipe refers to everything that a stage can read, and to runs written as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from rlhf_cli.pipeline.resolve import ResolvedStage, resolve
from tests.support.made_runs import make_run
from tests.support.recipe_files import load_recipe

RECIPE = """
name: bot
base: {model: ./base, chat_template: t.jinja}
adapter: {rank: 4}
data: {sft: {path: a.jsonl}, preferences: {path: rows}, prompts: {path: a.jsonl}, pretrain: {path: a.jsonl}}
ppo: {reward: [{run: reward}, {python: "f.py:score", weight: 0.5}]}
eval: {python: ["f.py:score"]}
revise: {constitution: principles.yaml}
"""


class FullProject:
    """A recipe with its base model, chat template, data and reward functions.

    Attributes:
        folder: The folder with all files. The base model and the data are placeholders.
        runs_dir: The runs directory, outside the folder.
    """

    def __init__(self, folder: Path, runs_dir: Path) -> None:
        self.folder, self.runs_dir = folder, runs_dir

    @property
    def recipe_file(self) -> Path:
        """The recipe."""
        return self.folder / "r.yaml"

    def resolve(self, stage: str, *overrides: str, smoke: bool = False, folder: Path | None = None) -> ResolvedStage:
        """Resolve a stage of the recipe in `folder`, by default the project's own."""
        recipe = load_recipe((folder or self.folder) / "r.yaml", overrides, (stage,))
        return resolve(stage, recipe, self.runs_dir, smoke=smoke)

    def make_runs(self, stages: Sequence[str] = ("sft", "reward", "ppo")) -> None:
        """Write a complete run of each stage."""
        for stage in stages:
            make_run(self.runs_dir, stage)


def write_full_project(folder: Path) -> Path:
    """Write the recipe and all files that it refers to. Return `folder`."""
    (folder / "base").mkdir(parents=True)
    (folder / "rows").mkdir()
    (folder / "base" / "config.json").write_text("w")
    (folder / "a.jsonl").write_text("{}\n")
    (folder / "rows" / "b.jsonl").write_text("{}\n")
    (folder / "t.jinja").write_text("{{ messages }}")
    (folder / "f.py").write_text("def score(): ...\ndef other(): ...\n")
    (folder / "principles.yaml").write_text("principles: [{id: kind, text: The response is kind.}]\n")
    (folder / "r.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def new_project(tmp_path: Path) -> FullProject:
    """Write a project without runs."""
    return FullProject(write_full_project(tmp_path / "project"), tmp_path / "runs")


@pytest.fixture
def project(new_project: FullProject) -> FullProject:
    """Write a project with a run of sft, reward and ppo."""
    new_project.make_runs()
    return new_project
