"""Errors hold issues, and can be sent between processes."""

from __future__ import annotations

import pickle

import pytest

from rlhf_cli.errors import ErrorCollector, GateError, Issue, ModelError, RecipeError, RlhfError

ISSUES = [Issue("data.not-utf8", "one.", "a.jsonl:1", "Fix it."), Issue("data.no-rows", "two.")]


@pytest.mark.parametrize("error", [ModelError(ISSUES), RecipeError("recipe.usage", "x", location="y", hint="z")])
def test_error_pickled_keeps_its_issues(error: RlhfError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (copy.issues, str(copy), copy.exit_code) == (error.issues, str(error), error.exit_code)


def test_gate_error_pickled_keeps_its_result() -> None:
    copy = pickle.loads(pickle.dumps(GateError(ISSUES, {"metrics": {"kl": 1.0}})))
    assert (list(copy.issues), copy.result) == (ISSUES, {"metrics": {"kl": 1.0}})


def test_error_collector_raises_all_issues_as_recipe_error_if_one_was_collected() -> None:
    errors = ErrorCollector()
    for error in (ModelError("model.not-found", "a"), RecipeError("recipe.usage", "b"), ModelError("model.gated", "c")):
        with errors.collect():
            raise error
    with pytest.raises(RecipeError) as raised:
        errors.raise_all()
    assert [issue.code for issue in raised.value.issues] == ["model.not-found", "recipe.usage", "model.gated"]


def test_error_collector_without_errors_raises_nothing() -> None:
    ErrorCollector().raise_all()
