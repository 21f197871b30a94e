"""Load the evaluation rows: a fixed sample of at most `eval.samples` held-out rows per dataset."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from rlhf_cli.data import sources
from rlhf_cli.data.row_policy import RowPolicy
from rlhf_cli.data.rows import PreferenceRow, PromptRow, SftRow
from rlhf_cli.data.source_files import FindRun
from rlhf_cli.errors import DataError, Issue
from rlhf_cli.evaluation import metrics
from rlhf_cli.recipe import smoke as smoke_recipe
from rlhf_cli.recipe.schema import Recipe, Sources
from rlhf_cli.stages import DatasetKind


class HeldOut(NamedTuple):
    """The rows to evaluate on; a list is empty if the recipe does not evaluate on its dataset."""

    sft: list[SftRow]
    preferences: list[PreferenceRow]
    prompts: list[PromptRow]


def no_rows_issue(kind: DatasetKind) -> Issue:
    """Return the issue of a dataset of which no rows are held out."""
    message = "no rows are held out; expected at least one to evaluate on."
    return Issue("data.nothing-held-out", message, f"data.{kind}", "Raise eval_fraction, or set eval_split.")


def load(recipe: Recipe, find: FindRun, *, smoke: bool) -> HeldOut:
    """Load the rows of each dataset that the recipe evaluates on.

    Args:
        recipe: The recipe.
        find: Function from a run reference to the run's directory.
        smoke: Whether to read only a few rows, and to use training rows if none are held out.

    Raises:
        DataError: A row is invalid, or no rows of a dataset are held out.
    """
    evaluated = metrics.evaluated_datasets(recipe)

    def sample(kind: DatasetKind, given: Sources | None) -> list[Any]:
        if given is None or kind not in evaluated:
            return []
        limit = smoke_recipe.SMOKE_ROWS if smoke else None
        policy = RowPolicy.of(recipe)
        split = sources.load(given, kind, seed=recipe.seed, find=find, limit=limit, policy=policy)
        rows = split.held_out
        if smoke and not rows:  # so few rows may leave none held out, and a smoke run's metrics mean nothing
            rows = split.train
        if not rows:
            raise DataError([no_rows_issue(kind)])
        return random.Random(recipe.seed).sample(rows, min(recipe.eval.samples, len(rows)))

    return HeldOut(
        sft=sample("sft", recipe.data.sft),
        preferences=sample("preferences", recipe.data.preferences),
        prompts=sample("prompts", recipe.data.prompts),
    )
