"""Measure how often a judge agrees with people, and refuse one below `min_agreement`.

A pair counts if people order it, by the majority of their judgments or by an expert's decision, and the judge does too.
Pairs that either side ties, or that people judge evenly, are left out: they say nothing about which one is better.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping

from rlhf_cli.ai_feedback.judge import Judge
from rlhf_cli.errors import DataError, RecipeError
from rlhf_cli.evaluation import statistics
from rlhf_cli.evaluation.statistics import Interval
from rlhf_cli.feedback.store_input import store_may_exist
from rlhf_cli.feedback.types import Judgment, Snapshot, comparisons
from rlhf_cli.recipe.schema import Recipe

LOCATION = "feedback.judge.min_agreement"

logger = logging.getLogger(__name__)

ItemPair = tuple[int, int, int]  # ids of an item and of two of its completions, the smaller one first


def measure(snapshot: Snapshot, weights: Mapping[str, float]) -> Interval | None:
    """Return the fraction of pairs that a judge orders as people do, with a Wilson interval, or None without pairs.

    Args:
        snapshot: The judgments of both.
        weights: The annotators that are the judge, by name, each with the weight of its votes.
    """
    names = {annotator.id: annotator.name for annotator in snapshot.annotators}
    by_judge = {annotator_id: weights[name] for annotator_id, name in names.items() if name in weights}
    people = _votes((judgment, 1.0) for judgment in snapshot.judgments if judgment.source == "human")
    for decision in snapshot.decisions:  # an expert's decision outranks the votes
        for first, second, outcome in comparisons(decision.tiers, "rank"):
            people[decision.item_id, first, second] = float(outcome)
    judged = _votes((j, by_judge[j.annotator_id]) for j in snapshot.judgments if j.annotator_id in by_judge)
    ordered = [people[pair] * vote > 0 for pair, vote in judged.items() if vote and people.get(pair)]
    return statistics.wilson(sum(ordered), len(ordered)) if ordered else None


def _votes(judgments: Iterable[tuple[Judgment, float]]) -> dict[ItemPair, float]:
    """Return the sum of the weighted outcomes of each pair."""
    votes: dict[ItemPair, float] = defaultdict(float)
    for judgment, weight in judgments:
        if not judgment.is_repeat:
            for first, second, outcome in comparisons(judgment.answer.tiers, judgment.task):
                votes[judgment.item_id, first, second] += weight * outcome
    return votes


def describe(found: Interval | None) -> str:
    """Return an agreement as text."""
    if found is None:
        return "agreement with people not measured"
    share, low, high = (f"{100 * value:.0f}" for value in found[:3])
    return f"agrees with people on {share}% [{low}, {high}] of {found.n:,} pairs"


def check(found: Interval | None, minimum: float | None, label: str) -> None:
    """Refuse a judge whose agreement with people is below the minimum, or unknown. No-op without a minimum.

    Args:
        found: The agreement, or None if it is unknown.
        minimum: Value of `min_agreement`.
        label: What messages call the judge.

    Raises:
        DataError: The judge is refused.
    """
    if minimum is None:
        return
    if found is None:
        message = f"{label}: agreement with people not measured; found no pair that both ordered, expected {minimum:g}."
        hint = "Run `rlhf annotate judge` on items that people have judged."
        raise DataError("feedback.judge-not-measured", message, location=LOCATION, hint=hint)
    if found.value < minimum:
        message = f"{label}: {describe(found)}, expected at least {100 * minimum:g}%."
        hint = "Improve the constitution, use another model, or lower min_agreement."
        raise DataError("feedback.judge-below-agreement", message, location=LOCATION, hint=hint)


def check_judge(judge: Judge, recipe: Recipe) -> Interval | None:
    """Log the agreement of a recipe's judge with people, and return it, or None if it is unknown.

    Raises:
        DataError: It is below `min_agreement`.
    """
    assert recipe.feedback.judge is not None
    minimum = recipe.feedback.judge.min_agreement
    found = _measure_in_store(judge, recipe, is_required=minimum is not None)
    check(found, minimum, judge.label)
    logger.info(f"judge {judge.label}: {describe(found)}")
    return found


def check_export(snapshot: Snapshot, recipe: Recipe) -> Interval | None:
    """Log how often all judgments of models in a snapshot agree with people, and return it, or None if it is unknown.

    Raises:
        DataError: It is below `min_agreement`.
    """
    judge = recipe.feedback.judge
    weights = {annotator.name: 1.0 for annotator in snapshot.annotators if annotator.source == "ai"}
    found = measure(snapshot, weights)
    check(found, judge.min_agreement if judge else None, "judgments with source ai")
    logger.info(f"judgments with source ai: {describe(found)}")
    return found


def _measure_in_store(judge: Judge, recipe: Recipe, *, is_required: bool) -> Interval | None:
    """Return the agreement by the recipe's store; None if there is no store, unless it is required."""
    if not store_may_exist(recipe):
        return None
    try:
        from rlhf_cli.feedback.store import open_store
    except RecipeError:  # its packages are not installed
        if is_required:
            raise
        return None
    with open_store(recipe) as store:
        return measure(store.snapshot(), judge.weights)
