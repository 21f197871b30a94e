"""Issues of the paths in a recipe: models, templates and Python functions."""

from __future__ import annotations

from pathlib import Path

from tests.support.recipe_files import FindIssues, WriteRecipe, load_recipe


def test_chat_template_that_is_not_a_file_has_issue(find_issues: FindIssues) -> None:
    (issue,) = find_issues("name: x\nbase: {model: a/b, chat_template: t.jinja}", bare=True)
    assert (issue.code, issue.location) == ("recipe.path-not-found", "r.yaml:2:20")
    assert str(issue).endswith("base.chat_template: file not found: t.jinja. Write auto, or the path of a .jinja file.")


def test_base_model_path_that_is_not_a_folder_has_issue(find_issues: FindIssues) -> None:
    (issue,) = find_issues("name: x\nbase: {model: ./gone}", bare=True)
    assert (issue.code, issue.message) == ("recipe.path-not-found", "base.model: directory not found: gone.")


def test_base_model_with_too_many_parts_for_a_hub_id_is_a_path(find_issues: FindIssues) -> None:
    (issue,) = find_issues("name: x\nbase: {model: runs/demo/pretrain}", bare=True)
    assert (issue.code, issue.message) == (
        "recipe.path-not-found",
        "base.model: directory not found: runs/demo/pretrain.",
    )


def test_path_outside_the_working_directory_is_shown_in_full(find_issues: FindIssues, tmp_path: Path) -> None:
    (tmp_path.parent / "models").mkdir(exist_ok=True)
    (issue,) = find_issues(f"name: x\nbase: {{model: {tmp_path.parent}/modls/small}}", bare=True)
    assert issue.message == f"base.model: directory not found: {tmp_path.parent}/modls/small."
    assert issue.hint == f"Did you mean {tmp_path.parent}/models?"


def test_python_function_is_found_without_running_its_file(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def score(): ...\nraise SystemExit\n")
    load_recipe(write_recipe("eval: {python: ['f.py:score']}"), stages=())


def test_python_file_with_missing_module_is_reported_once(find_issues: FindIssues, tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("import not_there.deep\ndef score(): ...\ndef other(): ...\n")
    (issue,) = find_issues("ppo: {reward: [{python: 'f.py:score'}]}\neval: {python: ['f.py:other']}")
    assert (issue.code, issue.location) == ("recipe.missing-module", "r.yaml:3:17")
    assert issue.message == "ppo.reward.0.python: f.py: imports not_there, which is not installed."


IMPORTS_THAT_MAY_FAIL = """
import beside, package.inner, json, os.path, torch
from . import anything
try:
    import not_there
except ImportError:
    not_there = None
def score():
    import not_there
"""


def test_python_file_with_available_or_optional_imports_has_no_issue(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    (tmp_path / "beside.py").touch()
    (tmp_path / "package").mkdir()
    (tmp_path / "f.py").write_text(IMPORTS_THAT_MAY_FAIL)
    load_recipe(write_recipe("eval: {python: ['f.py:score']}"), stages=())
