"""Let a judge rank the completions of stored items, one ranking per item and principle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rlhf_cli.ai_feedback.judge import Judge, Pair, Verdict, all_pairs, tiers_of
from rlhf_cli.feedback.blind import is_evaluation
from rlhf_cli.feedback.store import Store
from rlhf_cli.feedback.types import Answer, Item, NewJudgment
from rlhf_cli.recipe.constitution import Principle

ITEMS_AT_ONCE = 16  # whose judgments are stored together; a stopped command loses at most the last ones


class JudgedItems(NamedTuple):
    """What a judge did.

    Attributes:
        judged: Rankings that are new.
        existing: Rankings that were stored already.
        too_long: Rankings that a question beyond the judge's context prevents.
        verdicts: The new verdicts on pairs.
    """

    judged: int
    existing: int
    too_long: int
    verdicts: Sequence[Verdict]


def judge_items(
    store: Store, judge: Judge, progress: Callable[[int, int], None] = lambda _done, _all: None
) -> JudgedItems:
    """Rank the completions of every ordinary item by every principle, and store the rankings with source ai.

    Items that are ranked already are skipped, so the command can be stopped and started again.

    Args:
        store: The store.
        judge: The judge, loaded.
        progress: Called with the number of finished rankings and of all.
    """
    snapshot = store.snapshot()
    names = {annotator.id: annotator.name for annotator in snapshot.annotators}
    known = {(judgment.item_id, names[judgment.annotator_id]) for judgment in snapshot.judgments}
    items = [item for item in snapshot.items if item.kind == "item" and not is_evaluation(item)]
    todo = [
        (principle, [item for item in items if (item.id, judge.annotator_name(principle)) not in known])
        for principle in judge.constitution.principles
    ]
    total = sum(len(missing) for _, missing in todo)
    done, judged, verdicts = 0, 0, list[Verdict]()
    for principle, missing in todo:
        for start in range(0, len(missing), ITEMS_AT_ONCE):
            part = missing[start : start + ITEMS_AT_ONCE]
            found = _judge_part(judge, principle, part)
            store.record(_new_judgment(judge, principle, item, one) for item, one in found)
            judged += len(found)
            verdicts += [verdict for _, one in found for verdict in one]
            done += len(part)
            progress(done, total)
    existing = len(items) * len(todo) - total
    return JudgedItems(judged, existing, total - judged, verdicts)


def _judge_part(judge: Judge, principle: Principle, items: Sequence[Item]) -> list[tuple[Item, list[Verdict]]]:
    """Return each item with the verdicts on all its pairs, without those that exceed the judge's context."""
    pairs: list[list[Pair]] = [all_pairs(item.prompt, [c.text for c in item.completions]) for item in items]
    verdicts = iter(judge.compare([pair for of_item in pairs for pair in of_item], principle))
    found = []
    for item, of_item in zip(items, pairs, strict=True):
        answers = [next(verdicts) for _ in of_item]
        known = [verdict for verdict in answers if verdict is not None]
        if len(known) == len(answers):
            found.append((item, known))
    return found


def _new_judgment(judge: Judge, principle: Principle, item: Item, verdicts: Sequence[Verdict]) -> NewJudgment:
    """Return the judgment to store; its order is that of the item, although both orders were asked."""
    return NewJudgment(
        item=item.id,
        annotator=judge.annotator_name(principle),
        task="rank",
        answer=Answer(tiers_of(len(item.completions), verdicts)),
        source="ai",
        principle=principle.id,
    )
