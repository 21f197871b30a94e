"""Find issues that span several fields or concern files outside the recipe, before torch is imported.

What a single field can show is validated by the schema. Whether the runs exist that a recipe refers to is checked when
a stage is resolved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.recipe.validation.adapter import adapter_issues
from rlhf_cli.recipe.validation.data import data_issues, missing_data_issues
from rlhf_cli.recipe.validation.evaluation import gate_issues
from rlhf_cli.recipe.validation.feedback import feedback_issues
from rlhf_cli.recipe.validation.judge import judge_issues
from rlhf_cli.recipe.validation.keyed_issue import KeyedIssue
from rlhf_cli.recipe.validation.paths import path_issues
from rlhf_cli.recipe.validation.ppo import ppo_issues
from rlhf_cli.recipe.validation.sample import sample_issues
from rlhf_cli.recipe.validation.secrets import secret_issues
from rlhf_cli.recipe.validation.training import training_issues
from rlhf_cli.stages import STAGES


def named_stages(recipe: Recipe) -> list[str]:
    """Return the stages that the recipe has a section for, in the order of the chain."""
    return [stage for stage, spec in STAGES.items() if spec.section in recipe.model_fields_set]


def find_issues(recipe: Recipe, stages: Sequence[str]) -> Iterator[KeyedIssue]:
    """Yield all issues of a recipe, each with its key and without location.

    Args:
        recipe: A recipe that the schema accepts, with absolute paths.
        stages: The stages that will run: the recipe must have their data.
    """
    yield from secret_issues(recipe)
    yield from training_issues(recipe)
    yield from missing_data_issues(recipe, stages)
    yield from data_issues(recipe)
    yield from sample_issues(recipe)
    yield from ppo_issues(recipe, stages)
    yield from gate_issues(recipe)
    yield from feedback_issues(recipe)
    yield from judge_issues(recipe, stages)
    yield from path_issues(recipe)
    yield from adapter_issues(recipe)
