"""Validate the section `sample`: the completions are divided evenly among the models."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.recipe.validation.keyed_issue import KeyedIssue, keyed_issue


def sample_issues(recipe: Recipe) -> Iterator[KeyedIssue]:
    """Yield an issue if the models of `sample.of` cannot sample equally many completions per prompt."""
    completions, models = recipe.sample.samples_per_prompt, len(recipe.sample.of)
    if completions % models:
        problem = f"not divisible; found {completions}, expected a multiple of {models}, the number of models in of."
        hint = f"Set it to {-(-completions // models) * models}."
        yield keyed_issue("recipe.not-divisible", ("sample", "samples_per_prompt"), problem, hint)
