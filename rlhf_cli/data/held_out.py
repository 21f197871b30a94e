"""Load the evaluation rows: a fixed sample of at most `eval.samples` held-out rows per dataset."""

from __future__ import annotations

import logging
import random
from collections.abc import Set
from typing import Any, NamedTuple

from rlhf_cli.data import sources
from rlhf_cli.data.row_policy import RowPolicy
from rlhf_cli.data.rows import PreferenceRow, PromptRow, SftRow, Split
from rlhf_cli.data.source_files import FindRun
from rlhf_cli.data.splits import prompt_key, select_shortest
from rlhf_cli.errors import DataError, Issue
from rlhf_cli.evaluation import metrics
from rlhf_cli.evaluation.slices import is_of_held_out_annotators
from rlhf_cli.recipe import smoke as smoke_recipe
from rlhf_cli.recipe.schema import Recipe, Sources
from rlhf_cli.stages import DatasetKind

logger = logging.getLogger(__name__)


class HeldOut(NamedTuple):
    """The rows to evaluate on; a list is empty if the recipe does not evaluate on its dataset."""

    sft: list[SftRow]
    preferences: list[PreferenceRow]
    prompts: list[PromptRow]


def no_rows_issue(kind: DatasetKind) -> Issue:
    """Return the issue of a dataset of which no rows are held out."""
    message = "no rows are held out; expected at least one to evaluate on."
    return Issue("data.nothing-held-out", message, f"data.{kind}", "Raise eval_fraction, or set eval_split.")


def trained_on_issue(kind: DatasetKind, count: int) -> Issue:
    """Return the issue of a dataset all of whose held-out prompts are trained on in other datasets."""
    message = f"the {count:,} held-out prompts are all trained on in data.sft or data.preferences."
    hint = "Use the same eval_fraction for all datasets with these prompts."
    return Issue("data.nothing-held-out", message, f"data.{kind}", hint)


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
    policy = RowPolicy.of(recipe)
    limit = smoke_recipe.SMOKE_CANDIDATES if smoke else None

    def split(kind: DatasetKind) -> Split[Any]:
        given: Sources | None = getattr(recipe.data, kind)
        if given is None:
            return Split([], [], {})
        return sources.load(given, kind, seed=recipe.seed, find=find, limit=limit, policy=policy)

    def sample(kind: DatasetKind, found: Split[Any], trained: Set[str] = frozenset()) -> list[Any]:
        if getattr(recipe.data, kind) is None or kind not in evaluated:
            return []
        rows = [row for row in found.held_out if prompt_key(row) not in trained]
        if smoke and not rows:  # so few rows may leave none held out, and a smoke run's metrics mean nothing
            rows = found.train
        if smoke:
            rows = select_shortest(rows, smoke_recipe.SMOKE_ROWS)
        if not rows:
            raise DataError([trained_on_issue(kind, len(found.held_out)) if found.held_out else no_rows_issue(kind)])
        skipped = len(found.held_out) - len(rows)
        if skipped and not smoke:
            logger.warning(
                f"data.{kind}: skipped {skipped:,} of {len(found.held_out):,} held-out prompts, because other datasets "
                "train on them; use the same eval_fraction for all datasets with these prompts"
            )
        votes = [row for row in rows if is_of_held_out_annotators(getattr(row, "extra", {}))]
        labels = [row for row in rows if not is_of_held_out_annotators(getattr(row, "extra", {}))]
        rng = random.Random(recipe.seed)
        return [row for part in (labels, votes) for row in rng.sample(part, min(recipe.eval.samples, len(part)))]

    demonstrations, preferences = split("sft"), split("preferences")
    trained = {prompt_key(row) for row in (*demonstrations.train, *preferences.train)}
    return HeldOut(
        sft=sample("sft", demonstrations),
        preferences=sample("preferences", preferences),
        # A policy's completions are compared only on prompts that neither it nor the reward model was trained on.
        prompts=sample("prompts", split("prompts"), trained) if "prompts" in evaluated else [],
    )
