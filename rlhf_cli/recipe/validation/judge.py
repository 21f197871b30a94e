"""Validate the judge, and the constitutions of the judge and of critique-and-revise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rlhf_cli.errors import RecipeError
from rlhf_cli.recipe.constitution import read_constitution
from rlhf_cli.recipe.schema import Key, Recipe, Revise
from rlhf_cli.recipe.validation.keyed_issue import KeyedIssue, dependent_issues, exactly_one_issues, keyed_issue
from rlhf_cli.recipe.validation.paths import not_found_issue
from rlhf_cli.recipe.validation.secrets import url_issues
from rlhf_cli.stages import STAGES

JUDGE_KEY: Key = ("feedback", "judge")
JUDGE_OWNERS = (("revision", "model"), ("http_model", "http"))
TOKEN_VARIABLE = "RLHF_JUDGE_TOKEN"


def judge_issues(recipe: Recipe, stages: Sequence[str]) -> Iterator[KeyedIssue]:
    """Yield issues of the judge, of settings that need one, and of every constitution."""
    judge = recipe.feedback.judge
    if judge is not None:
        yield from exactly_one_issues(judge, ("model", "http"), JUDGE_KEY)
        yield from dependent_issues(judge, JUDGE_OWNERS, JUDGE_KEY)
        if judge.http is not None:
            yield from url_issues(judge.http, (*JUDGE_KEY, "http"), TOKEN_VARIABLE)
            if judge.http_model is None and judge.model is None:
                problem = "missing key; expected the name of a model at the endpoint."
                yield keyed_issue("recipe.missing-key", (*JUDGE_KEY, "http_model"), problem, "Add `http_model:`.")
        yield from _constitution_issues(judge.constitution, (*JUDGE_KEY, "constitution"))
    if recipe.revise.constitution is not None:
        yield from _constitution_issues(recipe.revise.constitution, ("revise", "constitution"))
    elif judge is None and any(isinstance(getattr(recipe, STAGES[stage].section), Revise) for stage in stages):
        problem = "missing key; expected revise.constitution or feedback.judge.constitution."
        yield keyed_issue("recipe.missing-key", ("revise",), problem, "Set revise.constitution.")
    if judge is not None and recipe.eval.judge and (recipe.eval.baseline is None or recipe.data.prompts is None):
        problem = "no effect without eval.baseline and data.prompts, whose completions are compared."
        yield keyed_issue("recipe.no-effect", ("eval", "judge"), problem, "Set both, or remove it.")
    for key in _uses(recipe) if judge is None else ():
        yield keyed_issue("recipe.conflicting-keys", key, "needs feedback.judge, which is not set.", "Set it.")


def _uses(recipe: Recipe) -> Iterator[Key]:
    """Yield the keys that use the judge."""
    if recipe.eval.judge:
        yield ("eval", "judge")
    for index, source in enumerate(recipe.ppo.reward):
        if source.judge is not None:
            yield ("ppo", "reward", index, "judge")


def _constitution_issues(path: str, key: Key) -> Iterator[KeyedIssue]:
    if not Path(path).is_file():
        yield not_found_issue("file", Path(path), key)
        return
    try:
        read_constitution(Path(path))
    except RecipeError as error:
        yield from ((key, issue) for issue in error.issues)
