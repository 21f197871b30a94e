"""Convert between the records of feedback and the values of the tables."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row

from rlhf_cli.data.splits import prompt_key
from rlhf_cli.errors import DataError
from rlhf_cli.feedback.blind import MARK
from rlhf_cli.feedback.types import (
    FLAGS,
    MAX_STRENGTH,
    RATINGS,
    Annotator,
    Answer,
    Completion,
    Item,
    Judgment,
    NewItem,
    TaskKind,
    Tiers,
)


def sha256(text: str) -> str:
    """Return the SHA-256 of a text, which may hold lone surrogates, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def canonical(value: Any) -> str:
    """Return the JSON text of a value, the same for equal values."""
    return json.dumps(value, ensure_ascii=True, sort_keys=True, separators=(",", ":"))


def timestamp(seconds: float) -> str:
    """Return a time in UTC as ISO 8601 with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def item_key(item: NewItem) -> str:
    """Return the hash that two items share if they have the same kind, prompt, completions and evaluation."""
    content = [item.kind, item.prompt, [completion.text for completion in item.completions]]
    evaluation = item.extra.get(MARK)
    return sha256(canonical([*content, evaluation] if evaluation else content))


def stable_prompt_key(item: NewItem) -> str:
    """Return a hash that two prompts share if they ask the same; see `data.splits.prompt_key`."""
    return sha256(prompt_key(item))[:16]


def as_tiers(value: Iterable[Iterable[int]]) -> Tiers:
    """Return lists of numbers as tiers."""
    return tuple(tuple(tier) for tier in value)


def answer_values(answer: Answer) -> dict[str, Any]:
    """Return the fields of an answer, apart from its tiers, as JSON values."""
    return {
        "strength": answer.strength,
        "all_bad": answer.all_bad,
        "criteria": {str(key): dict(ratings) for key, ratings in answer.criteria.items()},
        "flags": {str(key): list(flags) for key, flags in answer.flags.items()},
        "rationale": answer.rationale,
        "skip_reason": answer.skip_reason,
        "seconds": answer.seconds,
    }


def read_answer(tiers: Any, values: Mapping[str, Any]) -> Answer:
    """Return the answer that `answer_values` converted."""
    return Answer(
        tiers=as_tiers(tiers),
        strength=values["strength"],
        all_bad=values["all_bad"],
        criteria={int(key): ratings for key, ratings in values["criteria"].items()},
        flags={int(key): tuple(flags) for key, flags in values["flags"].items()},
        rationale=values["rationale"],
        skip_reason=values["skip_reason"],
        seconds=values["seconds"],
    )


def read_annotator(row: Row[Any]) -> Annotator:
    """Return the annotator of a row of its table."""
    return Annotator(
        id=row.id,
        name=row.name,
        pseudonym=row.pseudonym,
        role=row.role,
        languages=tuple(row.languages),
        fields=tuple(row.fields),
        source=row.source,
        is_active=row.is_active,
    )


def read_item(row: Row[Any], completions: Iterable[Row[Any]]) -> Item:
    """Return the item of a row with the columns of its table and its queue, and of the rows of its completions."""
    found = tuple(Completion(id=c.id, text=c.text, source=c.source) for c in completions)
    return Item(
        id=row.id,
        prompt_key=row.prompt_key,
        prompt=row.prompt,
        completions=found,
        kind=row.kind,
        language=row.language,
        field=row.field,
        answer=tuple(tuple(found[index].id for index in tier) for tier in row.answer),
        explanation=row.explanation,
        is_random=row.is_random,
        extra=row.extra,
    )


def read_judgment(row: Row[Any]) -> Judgment:
    """Return the judgment of a row of its table."""
    return Judgment(
        id=row.id,
        item_id=row.item_id,
        annotator_id=row.annotator_id,
        task=row.task,
        answer=read_answer(row.tiers, row.answer),
        order=tuple(row.order),
        guideline=row.guideline,
        is_repeat=row.is_repeat,
        source=row.source,
        principle=row.principle,
        created=row.created,
    )


# --- validation -----------------------------------------------------------------------------------------------------


def check_answer(
    answer: Answer, task: TaskKind, ids: Sequence[int], *, criteria: Collection[str] | None = None, whole: int = 0
) -> None:
    """Raise DataError unless an answer fits its task and the completions of its item.

    Args:
        answer: The answer.
        task: The kind of task.
        ids: Ids of the completions, in the order of the item.
        criteria: The aspects that may be rated; None: any.
        whole: The key of `flags` that stands for the whole item.
    """
    problems = itertools.chain(
        _tier_problems(answer, task, ids), _strength_problems(answer, task, ids), _detail_problems(answer, ids, whole)
    )
    unknown = {name for ratings in answer.criteria.values() for name in ratings} - set(criteria or ())
    if criteria is not None and unknown:
        expected = ", ".join(criteria) or "none"
        problems = itertools.chain(problems, [f"found ratings of {', '.join(sorted(unknown))}, expected {expected}"])
    for problem in problems:
        raise DataError("feedback.invalid-answer", f"invalid judgment: {problem}.")


def _tier_problems(answer: Answer, task: TaskKind, ids: Sequence[int]) -> Iterator[str]:
    placed = [number for tier in answer.tiers for number in tier]
    if answer.skip_reason:
        if placed:
            yield "it is skipped and has tiers"
    elif placed or not answer.all_bad:
        if sorted(placed) != sorted(ids) or not all(answer.tiers):
            yield f"found the completions {placed}, expected each of {sorted(ids)} once"
        elif task == "best-worst" and not _is_best_worst(answer.tiers):
            yield "found other tiers, expected one best and one worst completion"


def _is_best_worst(tiers: Tiers) -> bool:
    sizes = [len(tier) for tier in tiers]
    return sizes == [1, 1] or (len(sizes) == 3 and sizes[0] == sizes[2] == 1)


def _strength_problems(answer: Answer, task: TaskKind, ids: Sequence[int]) -> Iterator[str]:
    """Yield the problem of a strength that contradicts the tiers: it is negative if the first completion is better."""
    if answer.strength is None:
        return
    if task != "pair":
        yield f"found a strength, which only the task pair has, not {task}"
    elif not -MAX_STRENGTH <= answer.strength <= MAX_STRENGTH:
        yield f"found strength {answer.strength}, expected -{MAX_STRENGTH} to {MAX_STRENGTH}"
    elif answer.tiers:
        sign = 0 if len(answer.tiers) == 1 else -1 if answer.tiers[0] == (ids[0],) else 1
        if sign != (answer.strength > 0) - (answer.strength < 0):
            yield f"strength {answer.strength} contradicts the tiers {answer.tiers}"


def _detail_problems(answer: Answer, ids: Sequence[int], whole: int) -> Iterator[str]:
    if not answer.flags.keys() <= {whole, *ids} or any(set(found) - set(FLAGS) for found in answer.flags.values()):
        yield f"found flags {dict(answer.flags)}, expected {', '.join(FLAGS)} of its completions"
    if not answer.criteria.keys() <= set(ids):
        yield f"found ratings of {sorted(answer.criteria)}, expected {sorted(ids)}"
    if any(rating not in RATINGS for ratings in answer.criteria.values() for rating in ratings.values()):
        yield f"found ratings {dict(answer.criteria)}, expected {RATINGS[0]} to {RATINGS[-1]}"
    if not (math.isfinite(answer.seconds) and answer.seconds >= 0):
        yield f"found {answer.seconds} seconds, expected 0 or more"
