"""The rows that `eval` measures on: held out of training, at most `eval.samples` of each kind, always the same."""

from __future__ import annotations

import random
from typing import Any, Literal, NamedTuple

from rlhf_cli.data import sources
from rlhf_cli.data.rows import PreferenceRow, PromptRow, SftRow
from rlhf_cli.data.sources import Find
from rlhf_cli.errors import DataError, Issue
from rlhf_cli.evaluation import metrics
from rlhf_cli.recipe import smoke as smoke_recipe
from rlhf_cli.recipe.schema import Recipe, Sources

Kind = Literal["sft", "preferences", "prompts"]


class HeldOut(NamedTuple):
    """The rows to measure on; a list is empty where the recipe gives no data for its part."""

    sft: list[SftRow]
    preferences: list[PreferenceRow]
    prompts: list[PromptRow]


def nothing(kind: str) -> Issue:
    """What is wrong where none of a data set's rows is held out."""
    hint = "Raise its eval_fraction, or name an eval_split."
    return Issue("no row is held out, so there is nothing to evaluate on.", location=f"data.{kind}", hint=hint)


def load(recipe: Recipe, find: Find, *, smoke: bool) -> HeldOut:
    """The rows of every part that the recipe gives data for.

    Raises:
        DataError: none are held out, or the data are faulty.
    """
    given = metrics.parts(recipe)
    data = recipe.data

    def rows(kind: Kind, chosen: Sources | None, wanted: bool) -> list[Any]:
        if chosen is None or not wanted:
            return []
        limit = smoke_recipe.ROWS if smoke else None
        split = sources.load(chosen, kind, seed=recipe.seed, find=find, limit=limit)
        # sixteen rows may leave none held out, and a smoke run measures nothing anyway
        found = split.held_out or (split.train if smoke else [])
        if not found:
            raise DataError([nothing(kind)])
        most = recipe.eval.samples
        return random.Random(recipe.seed).sample(found, min(most, len(found)))

    return HeldOut(
        sft=rows("sft", data.sft, given.sft),
        preferences=rows("preferences", data.preferences, given.reward),
        prompts=rows("prompts", data.prompts, given.policy),
    )
