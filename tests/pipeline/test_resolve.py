"""Resolving a stage: its references, and the recipe with all versions pinned."""

from __future__ import annotations

import pytest

from rlhf_cli.errors import RecipeError
from rlhf_cli.recipe.schema import Source
from tests.support.full_project import FullProject
from tests.support.issues import raises_issue
from tests.support.made_runs import make_run
from tests.support.recipe_files import load_recipe


def test_missing_runs_are_all_reported_by_key(new_project: FullProject) -> None:
    with raises_issue("recipe.run-not-found", error=RecipeError) as issues:
        new_project.resolve("ppo")
    assert [issue.location for issue in issues] == ["ppo.start", "ppo.reward.0"]


@pytest.mark.parametrize(
    ("override", "location"),
    [("ppo.start=reward", "ppo.start"), ("ppo.reward.0.run=sft", "ppo.reward.0"), ("base.model=sft", "base.model")],
)
def test_run_of_wrong_stage_is_refused(project: FullProject, override: str, location: str) -> None:
    with raises_issue("recipe.wrong-stage", error=RecipeError, location=location):
        project.resolve("ppo", override)


def test_each_run_of_a_list_is_pinned(project: FullProject) -> None:
    make_run(project.runs_dir, "ppo", name="round1")
    resolved = project.resolve("sample", "sample.of=[sft, base, round1/ppo@v0001, ppo]")
    assert resolved.section.of == ["bot/sft@v0001", "base", "round1/ppo@v0001", "bot/ppo@v0001"]
    assert [item.role for item in resolved.inputs if item.kind == "run"] == ["of.0", "of.2", "of.3"]


def test_missing_run_of_a_list_is_reported_by_its_index(project: FullProject) -> None:
    with raises_issue("recipe.run-not-found", error=RecipeError, location="sample.of.1"):
        project.resolve("sample", "sample.of=[sft, gone/ppo@v0002]")


def test_folder_of_run_is_resolved_to_its_version(project: FullProject) -> None:
    (project.runs_dir / "bot" / "sft" / "latest").symlink_to("v0001")
    stage = project.resolve("ppo", f"ppo.start={project.runs_dir}/bot/sft/latest")
    start = next(item for item in stage.inputs if item.role == "start")
    assert (start.kind, start.version, start.path) == ("run", "v0001", str(project.runs_dir / "bot/sft/v0001"))


@pytest.mark.parametrize(
    ("stage", "smoke", "code"), [("sft", True, "recipe.smoke-run"), ("reward", False, "recipe.wrong-stage")]
)
def test_folder_of_run_must_fit_like_a_reference(project: FullProject, stage: str, smoke: bool, code: str) -> None:
    folder = make_run(project.runs_dir, stage, smoke=smoke)
    with raises_issue(code, error=RecipeError, location="ppo.start"):
        project.resolve("ppo", f"ppo.start={folder}")


def test_hub_reward_model_is_pinned_to_its_commit(project: FullProject, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def resolve_commit(repo_type: str, repo: str, revision: str, *, location: str) -> str:
        asked.append((repo_type, repo, revision, location))
        return f"{revision}-commit"

    monkeypatch.setattr("rlhf_cli.models.hub.resolve_commit", resolve_commit)
    model, revision = "ppo.reward.1={model: org/scorer}", "ppo.reward.1.revision=v1"
    stage = project.resolve("ppo", model, revision)
    found = next(item for item in stage.inputs if item.role == "ppo.reward.1")
    assert (found.kind, found.version, found.sha256) == ("hub", "v1-commit", "v1-commit")
    sources = stage.recipe.ppo.reward
    assert [(source.model, source.revision) for source in sources] == [(None, None), ("org/scorer", "v1-commit")]
    assert sources[0].run == "bot/reward@v0001"
    newest = project.resolve("ppo", model)
    assert asked == [
        ("model", "org/scorer", "v1", "ppo.reward.1"),
        ("model", "org/scorer", "main", "ppo.reward.1"),
    ]
    assert stage.fingerprint != newest.fingerprint


def test_hub_base_and_dataset_are_pinned_to_their_commits(
    project: FullProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve_commit(repo_type: str, repo: str, revision: str, **_: str) -> str:
        return f"{repo_type}-{repo}-{revision}"

    monkeypatch.setattr("rlhf_cli.models.hub.resolve_commit", resolve_commit)
    rows = f"data.sft=[{{path: {project.folder}/a.jsonl}}, {{hub: org/rows}}]"
    stage = project.resolve("sft", "base.model=org/base", rows)
    assert stage.recipe.base.revision == "model-org/base-main"
    assert stage.base_path == "org/base"
    sources: list[Source] = stage.recipe.data.sft or []
    assert [source.revision for source in sources] == [None, "dataset-org/rows-main"]


def test_pinned_recipe_keeps_which_fields_were_set(project: FullProject) -> None:
    """A field that the user left out must not look as if set: `rlhf run` takes the stages from the set sections."""
    recipe = load_recipe(project.recipe_file, (), ("ppo",))
    pinned = project.resolve("ppo").recipe
    assert pinned.ppo.start == "bot/sft@v0001"
    assert pinned.model_fields_set == recipe.model_fields_set
    assert pinned.ppo.model_fields_set == recipe.ppo.model_fields_set == {"reward"}


def test_dataset_of_run_is_pinned_and_found(project: FullProject) -> None:
    run = make_run(project.runs_dir, "feedback")
    stage = project.resolve("reward", "data.preferences={run: feedback}")
    (source,) = stage.recipe.data.preferences or []
    assert source.run == "bot/feedback@v0001"
    assert stage.dataset_path(source.run) == run
    assert [item.path for item in stage.inputs if item.role == "data.preferences"] == [str(run)]


def test_dataset_of_run_is_found_by_export(project: FullProject) -> None:
    run = make_run(project.runs_dir, "feedback")
    stage = project.resolve("export", "data.prompts={run: feedback}")
    (source,) = stage.recipe.data.prompts or []
    assert stage.dataset_path(str(source.run)) == run


def test_model_path_is_model_folder_of_run_or_none(project: FullProject) -> None:
    model = project.runs_dir / "bot/sft/v0001/model"
    model.mkdir()
    assert project.resolve("ppo").model_path("start") == model
    assert project.resolve("ppo", "ppo.start=base").model_path("start") is None


def test_stage_without_base_has_no_base_path(project: FullProject) -> None:
    assert project.resolve("pretrain").base_path == "scratch"
    assert project.resolve("pretrain", f"pretrain.start={project.folder}/base").base_path == f"{project.folder}/base"
    assert project.resolve("sft").base_path == f"{project.folder}/base"
