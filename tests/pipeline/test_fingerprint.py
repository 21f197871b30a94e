"""Which settings and contents change a stage's fingerprint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_cli.stages import STAGES
from tests.support.full_project import RECIPE, FullProject, write_full_project
from tests.support.made_runs import make_run


@pytest.fixture
def project_with_reward_sources(project: FullProject) -> FullProject:
    """Add a reward model, a server and a rule to the recipe."""
    (project.folder / "scorer").mkdir()
    (project.folder / "scorer" / "config.json").write_text("s")
    added = [{"model": "./scorer"}, {"http": "http://host/score"}, {"rule": {"pattern": "x"}}]
    recipe = RECIPE.replace("[{run: reward}", f"[{{run: reward}}, {json.dumps(added)[1:-1]}")
    project.recipe_file.write_text(recipe)
    return project


@pytest.mark.parametrize("stage", STAGES)
def test_fingerprint_of_same_recipe_is_equal(project: FullProject, stage: str) -> None:
    assert project.resolve(stage).fingerprint == project.resolve(stage).fingerprint


@pytest.mark.parametrize(
    ("stage", "override"),
    [
        ("sft", "sft.learning_rate=0.5"),
        ("sft", "sft.trainer.optim=sgd"),
        ("sft", "adapter.rank=8"),
        ("sft", "adapter=null"),
        ("sft", "seed=1"),
        ("sft", "base.quantize=nf4"),
        ("sft", "base.chat_template=auto"),
        ("sft", "data.sft.eval_fraction=0.5"),
        ("pretrain", "pretrain.architecture.layers=2"),
        ("reward", "reward.start=base"),
        ("ppo", "ppo.kl.coef=0.5"),
        ("ppo", "ppo.reward.1.weight=0.6"),
        ("eval", "eval.baseline=null"),
        ("eval", "ppo.max_new_tokens=9"),  # limits the completions that are compared
        ("eval", "ppo.stop=[x]"),  # ends them
        ("export", "export.dtype=float16"),
    ],
)
def test_fingerprint_changes_with_setting_of_stage(project: FullProject, stage: str, override: str) -> None:
    assert project.resolve(stage, override).fingerprint != project.resolve(stage).fingerprint


def test_fingerprint_of_ppo_changes_with_length_of_demonstrations_that_it_mixes_in(project: FullProject) -> None:
    for coef, changes in ((0.0, False), (0.5, True)):
        plain = project.resolve("ppo", f"ppo.ptx_coef={coef}").fingerprint
        shorter = project.resolve("ppo", f"ppo.ptx_coef={coef}", "sft.max_length=99").fingerprint
        assert (plain != shorter) == changes


def test_fingerprint_of_eval_counts_the_value_that_is_used(project: FullProject) -> None:
    by_ppo = project.resolve("eval", "ppo.max_new_tokens=9").fingerprint
    assert project.resolve("eval", "ppo.max_new_tokens=9", "eval.max_new_tokens=9").fingerprint == by_ppo
    assert project.resolve("eval", "ppo.max_new_tokens=8", "eval.max_new_tokens=9").fingerprint == by_ppo


@pytest.mark.parametrize(
    ("stage", "override"),
    [
        ("sft", "ppo.kl.coef=0.5"),
        ("sft", "name=bot"),
        ("sft", "data.prompts.eval_fraction=0.5"),
        ("ppo", "sft.learning_rate=0.5"),
        ("ppo", "eval.samples=3"),
        ("pretrain", "adapter.rank=8"),
        ("pretrain", "base.quantize=nf4"),
        ("export", "ppo.clip=0.5"),
        ("sft", "sft.learning_rate=0.0002"),  # the default
    ],
)
def test_fingerprint_ignores_setting_that_stage_does_not_read(project: FullProject, stage: str, override: str) -> None:
    assert project.resolve(stage, override).fingerprint == project.resolve(stage).fingerprint


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("sft", "a.jsonl"),
        ("sft", "base/config.json"),
        ("sft", "t.jinja"),
        ("reward", "rows/b.jsonl"),
        ("ppo", "f.py"),
        ("eval", "f.py"),
        ("eval", "rows/b.jsonl"),
        ("export", "base/config.json"),
    ],
)
def test_fingerprint_changes_with_content_of_file(project: FullProject, stage: str, file: str) -> None:
    before = project.resolve(stage).fingerprint
    path = project.folder / file
    path.write_text(path.read_text() + " ")
    assert project.resolve(stage).fingerprint != before


def test_fingerprint_changes_with_added_file_in_data_folder(project: FullProject) -> None:
    before = project.resolve("reward").fingerprint
    (project.folder / "rows" / "c.jsonl").touch()
    assert project.resolve("reward").fingerprint != before


IMPORTING_REWARD = """
import os, json, words.lists as lists
from tone import polite
def score(): from late import later
"""


@pytest.mark.parametrize("stage", ["ppo", "eval"])
@pytest.mark.parametrize(
    "imported", ["words/__init__.py", "words/lists.py", "words/more.py", "words/deep/there.py", "tone.py", "late.py"]
)
def test_fingerprint_changes_with_local_import_of_reward_file(project: FullProject, stage: str, imported: str) -> None:
    folder = project.folder
    (folder / "words" / "deep").mkdir(parents=True)
    (folder / "f.py").write_text(IMPORTING_REWARD)
    (folder / "tone.py").write_text("import f  # a circular import\n")
    for name in ("words/__init__.py", "words/more.py", "words/deep/there.py", "late.py", "unused.py"):
        (folder / name).touch()
    outside = f"from ... import outside\nfrom {'.' * 99} import x\n"
    (folder.parent / "outside.py").touch()
    (folder / "words" / "lists.py").write_text(f"from . import more\nfrom .deep import there\n{outside}")
    before = project.resolve(stage).fingerprint
    (folder / "unused.py").write_text("1")
    assert project.resolve(stage).fingerprint == before
    (folder / imported).write_text((folder / imported).read_text() + "\n")
    assert project.resolve(stage).fingerprint != before


@pytest.mark.parametrize(("stage", "field"), [("ppo", "ppo.reward.1.python"), ("eval", "eval.python.0")])
def test_fingerprint_changes_with_function_of_same_file(project: FullProject, stage: str, field: str) -> None:
    other = project.resolve(stage, f"{field}={project.folder}/f.py:other")
    assert other.fingerprint != project.resolve(stage).fingerprint


@pytest.mark.parametrize(
    "override",
    ["ppo.reward.2.http=http://other/score", "ppo.reward.3.rule.pattern=y", "ppo.reward.1.weight=2"],
)
def test_fingerprint_changes_with_setting_of_reward_source(
    project_with_reward_sources: FullProject, override: str
) -> None:
    project = project_with_reward_sources
    assert project.resolve("ppo", override).fingerprint != project.resolve("ppo").fingerprint


def test_fingerprint_changes_with_weights_of_reward_model(project_with_reward_sources: FullProject) -> None:
    project = project_with_reward_sources
    before = project.resolve("ppo").fingerprint
    (project.folder / "scorer" / "config.json").write_text("others")
    assert project.resolve("ppo").fingerprint != before


@pytest.mark.parametrize("field", ["timeout=3", "batch_size=3", "retries=0"])
def test_fingerprint_ignores_how_reward_server_is_reached(project_with_reward_sources: FullProject, field: str) -> None:
    """So that a run that a server's failure ended can be resumed with a longer timeout."""
    project = project_with_reward_sources
    assert project.resolve("ppo", f"ppo.reward.2.{field}").fingerprint == project.resolve("ppo").fingerprint


@pytest.mark.parametrize(
    ("stage", "input_stage"), [("ppo", "sft"), ("ppo", "reward"), ("reward", "sft"), ("export", "ppo")]
)
def test_fingerprint_changes_with_newer_input_run(project: FullProject, stage: str, input_stage: str) -> None:
    before = project.resolve(stage).fingerprint
    make_run(project.runs_dir, input_stage, started="later")
    assert project.resolve(stage).fingerprint != before


@pytest.mark.parametrize("stage", STAGES)
def test_fingerprint_ignores_path_of_project(project: FullProject, tmp_path: Path, stage: str) -> None:
    moved = write_full_project(tmp_path / "elsewhere")
    assert project.resolve(stage, folder=moved).fingerprint == project.resolve(stage).fingerprint


def test_fingerprint_of_smoke_run_differs(project: FullProject) -> None:
    assert project.resolve("pretrain", smoke=True).fingerprint != project.resolve("pretrain").fingerprint
