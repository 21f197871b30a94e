"""Let people compare the completions of two models without knowing which model wrote which: `rlhf eval --blind`.

The pairs are ordinary items of the store, with a mark that keeps them out of the training data.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from rlhf_cli.data.rows import PromptRow, Text
from rlhf_cli.feedback.types import Item, NewCompletion, NewItem, Snapshot, comparisons

MARK = "rlhf_evaluation"  # in `extra` of an item: the evaluation that it belongs to
CANDIDATE, BASELINE = "candidate", "baseline"  # sources of the completions, which no annotator sees


def is_evaluation(item: Item) -> bool:
    """Return whether an item compares two models and must not be trained on."""
    return MARK in item.extra


def without_evaluations(snapshot: Snapshot) -> Snapshot:
    """Return the snapshot without the items that compare two models, and without their judgments and decisions."""
    kept = [item for item in snapshot.items if not is_evaluation(item)]
    if len(kept) == len(snapshot.items):
        return snapshot
    ids = {item.id for item in kept}
    return replace(
        snapshot,
        items=kept,
        judgments=[one for one in snapshot.judgments if one.item_id in ids],
        decisions=[one for one in snapshot.decisions if one.item_id in ids],
    )


def evaluation_items(
    key: str, rows: Iterable[PromptRow], candidate: Sequence[Text], baseline: Sequence[Text]
) -> Iterator[NewItem]:
    """Yield one item per prompt whose completions differ.

    Args:
        key: Identifies the evaluation.
        rows: The prompts; the columns `language` and `field` say who is asked.
        candidate: The candidate's completion of each prompt.
        baseline: The baseline's completion of each prompt.
    """
    for row, first, second in zip(rows, candidate, baseline, strict=True):
        if first != second:
            completions = (NewCompletion(first, CANDIDATE), NewCompletion(second, BASELINE))
            # Experts see completions in the order of the item, which must not tell which model wrote them.
            if random.Random(json.dumps([key, row.prompt])).random() < 0.5:
                completions = completions[::-1]
            language, field = (str(row.extra.get(name) or "") for name in ("language", "field"))
            yield NewItem(row.prompt, completions, language=language, field=field, extra={MARK: key})


def people_outcomes(snapshot: Snapshot, key: str) -> list[float]:
    """Return the verdict of people on each judged item of an evaluation: 1 for the candidate, -1, or 0 for a tie.

    It is the sign of the sum of their judgments; an expert's decision outranks them.
    """
    items = {item.id: item for item in snapshot.items if item.extra.get(MARK) == key}
    candidates = {i: next(c.id for c in item.completions if c.source == CANDIDATE) for i, item in items.items()}
    votes: dict[int, int] = defaultdict(int)
    for judgment in snapshot.judgments:
        if judgment.item_id in items and judgment.source == "human" and not judgment.is_repeat:
            for pair in comparisons(judgment.answer.tiers, judgment.task):
                sign = 1 if pair.first == candidates[judgment.item_id] else -1
                votes[judgment.item_id] += sign * pair.outcome
    for decision in snapshot.decisions:
        if decision.item_id in items:
            ((first, _, outcome),) = comparisons(decision.tiers, "rank")
            votes[decision.item_id] = outcome if first == candidates[decision.item_id] else -outcome
    return [float((vote > 0) - (vote < 0)) for vote in votes.values()]
