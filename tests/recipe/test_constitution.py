"""Constitutions: principles with defaults, and issues with the line and column of the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_cli.errors import RecipeError
from rlhf_cli.recipe.constitution import read_constitution
from rlhf_cli.recipe.loader import read_recipe
from tests.support.recipe_files import WriteRecipe


def write(folder: Path, text: str) -> Path:
    """Write a constitution into the working directory."""
    path = folder / "c.yaml"
    path.write_text(text)
    return path


def test_principles_are_read_with_defaults(tmp_path: Path) -> None:
    text = "principles:\n- {id: a, text: ' Be kind. ', weight: 2}\n- id: b\n  text: Be brief.\n  critique: Too long?\n"
    first, second = read_constitution(write(tmp_path, text)).principles
    assert (first.id, first.text, first.weight) == ("a", "Be kind.", 2.0)
    assert first.critique_request.endswith("this principle: Be kind.")
    assert first.revision_request.endswith("this principle: Be kind.")
    assert (second.weight, second.critique_request) == (1.0, "Too long?")


def test_hash_depends_on_the_principles_and_not_on_the_layout(tmp_path: Path) -> None:
    flow = read_constitution(write(tmp_path, "principles: [{id: a, text: Be kind.}]"))
    block = read_constitution(write(tmp_path, "# comment\nprinciples:\n- id: a\n  text: Be kind.\n  weight: 1\n"))
    other = read_constitution(write(tmp_path, "principles: [{id: a, text: Be kind!}]"))
    assert flow.sha256 == block.sha256 != other.sha256


@pytest.mark.parametrize(
    ("text", "location", "code"),
    [
        ("", "c.yaml", "recipe.not-a-mapping"),
        ("- {id: a, text: x}", "c.yaml", "recipe.not-a-mapping"),
        ("principles: []", "c.yaml:1:1", "recipe.invalid-value"),
        ("principal: [{id: a, text: x}]\nprinciples: [{id: a, text: x}]", "c.yaml:1:1", "recipe.unknown-key"),
        ("principles:\n- {id: a}", "c.yaml:2:3", "recipe.missing-key"),
        ("principles:\n- {id: a, txt: x, text: x}", "c.yaml:2:11", "recipe.unknown-key"),
        ("principles:\n- {id: a, text: ' '}", "c.yaml:2:11", "recipe.invalid-value"),
        ("principles:\n- {id: 'a b', text: x}", "c.yaml:2:4", "recipe.invalid-value"),
        ("principles:\n- {id: a, text: x, weight: 0}", "c.yaml:2:20", "recipe.invalid-value"),
        ("principles:\n- {id: a, text: x, text: y}", "c.yaml:2:20", "recipe.duplicate-key"),
        ("principles:\n- {id: a, text: x", "c.yaml", "recipe.invalid-yaml"),
    ],
)
def test_invalid_constitution_is_located(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, location: str, code: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as raised:
        read_constitution(write(tmp_path, text))
    assert raised.value.issues[0].code == code
    assert raised.value.issues[0].location.startswith(location)


def test_principles_with_the_same_id_are_each_an_issue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as raised:
        read_constitution(write(tmp_path, "principles:\n- {id: a, text: x}\n- {id: a, text: y}\n- {id: b, text: z}"))
    assert [issue.location for issue in raised.value.issues] == ["c.yaml:2:4", "c.yaml:3:4"]


def test_recipe_reports_issues_of_its_constitution_at_their_own_lines(write_recipe: WriteRecipe) -> None:
    path = write_recipe("feedback: {judge: {constitution: c.yaml, model: base}}\nsft: {epochs: 0}\n")
    write(path.parent, "principles:\n- {id: a, text: 3}\n- {id: b, text: x, wieght: 1}\n")
    with pytest.raises(RecipeError) as raised:
        read_recipe(path, stages=[])
    found = [(issue.code, issue.location) for issue in raised.value.issues]
    assert found == [
        ("recipe.invalid-value", "c.yaml:2:11"),
        ("recipe.unknown-key", "c.yaml:3:20"),
        ("recipe.invalid-value", "r.yaml:4:7"),
    ]


@pytest.mark.parametrize(
    ("text", "code", "key"),
    [
        ("feedback: {judge: {constitution: c.yaml}}", "recipe.missing-key", "feedback.judge"),
        (
            "feedback: {judge: {constitution: no.yaml, model: base}}",
            "recipe.path-not-found",
            "feedback.judge.constitution",
        ),
        (
            "feedback: {judge: {constitution: c.yaml, model: base, http: 'http://h/v1'}}",
            "recipe.conflicting-keys",
            "feedback.judge",
        ),
        (
            "feedback: {judge: {constitution: c.yaml, http: 'http://h/v1'}}",
            "recipe.missing-key",
            "feedback.judge.http_model",
        ),
        (
            "feedback: {judge: {constitution: c.yaml, http: 'http://u:p@h/v1', http_model: m}}",
            "recipe.contains-secret",
            "feedback.judge.http",
        ),
        (
            "eval: {judge: true, baseline: null}\nfeedback: {judge: {constitution: c.yaml, model: base}}",
            "recipe.no-effect",
            "eval.judge",
        ),
        ("eval: {judge: true}", "recipe.conflicting-keys", "eval.judge"),
        ("ppo: {reward: [{judge: true}]}", "recipe.conflicting-keys", "ppo.reward.0.judge"),
    ],
)
def test_judge_settings_that_cannot_work_are_issues(write_recipe: WriteRecipe, text: str, code: str, key: str) -> None:
    path = write_recipe(text)
    write(path.parent, "principles: [{id: a, text: x}]")
    with pytest.raises(RecipeError) as raised:
        read_recipe(path, stages=[])
    assert [(issue.code, issue.message.partition(":")[0]) for issue in raised.value.issues] == [(code, key)]
