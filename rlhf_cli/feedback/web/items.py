"""An assignment as the page shows it, and the page's answer as the store keeps it.

The browser knows completions only by their shown position, from 1. Ids would tell in which order they were imported,
and with it often which model wrote them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from rlhf_cli.feedback.store import Assignment
from rlhf_cli.feedback.types import FLAGS, MAX_STRENGTH, RATINGS, Answer, Flag, Item, TaskKind, Tiers
from rlhf_cli.feedback.web.markdown import Turn, render_completion, render_turns

MAX_TEXT = 20_000  # characters of a rationale or of a reason
MAX_SECONDS = 24 * 3600.0
WHOLE_PLACE = 0  # the position, and the id, that stand for the prompt or the whole item in flags


class InvalidAnswerError(ValueError):
    """Raised when a request does not hold an answer to its item."""


@dataclass(frozen=True)
class ShownAnswer:
    """A completion as the page shows it.

    Attributes:
        position: Its label, from 1.
        html: Its text.
    """

    position: int
    html: str


@dataclass(frozen=True)
class ItemView:
    """What a template shows of an item. It holds neither a source nor the right answer.

    Attributes:
        earlier: The turns of the prompt before the last one.
        last: The last turn of the prompt.
        answers: The completions in the order in which they are shown.
        task: The kind of task.
    """

    earlier: Sequence[Turn]
    last: Turn
    answers: Sequence[ShownAnswer]
    task: TaskKind

    @property
    def places(self) -> list[str]:
        """Return the names of the places into which completions are put."""
        if self.task == "best-worst":
            return ["Best", "Worst"]
        return [ordinal(place) for place in range(1, len(self.answers) + 1)]


def view_of_item(item: Item, task: TaskKind = "rank") -> ItemView:
    """Return how the page shows an item, with the completions in the order that it has."""
    *earlier, last = render_turns(item.prompt) or [Turn("user", "")]
    answers = [ShownAnswer(index, render_completion(shown.text)) for index, shown in enumerate(item.completions, 1)]
    return ItemView(earlier, last, answers, task)


def ordinal(number: int) -> str:
    """Return a number as 1st, 2nd, 3rd and so on."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def format_tiers(tiers: Tiers, order: Sequence[int]) -> str:
    """Return tiers as shown positions, such as `2 › 1 = 3`."""
    return " › ".join(" = ".join(str(position) for position in tier) for tier in positions_of(tiers, order))


def positions_of(tiers: Tiers, order: Sequence[int]) -> list[list[int]]:
    """Return tiers of completion ids as tiers of shown positions."""
    return [sorted(order.index(completion) + 1 for completion in tier) for tier in tiers]


def answer_to_json(answer: Answer, assignment: Assignment) -> dict[str, Any]:
    """Return an answer by shown positions, the inverse of `answer_from_json`."""
    position = {completion: index for index, completion in enumerate(assignment.order, 1)} | {WHOLE_PLACE: WHOLE_PLACE}
    return {
        "tiers": positions_of(answer.tiers, assignment.order),
        "strength": None if answer.strength is None else answer.strength * _strength_sign(assignment),
        "all_bad": answer.all_bad,
        "criteria": {str(position[key]): dict(ratings) for key, ratings in answer.criteria.items()},
        "flags": {str(position[key]): list(flags) for key, flags in answer.flags.items()},
        "rationale": answer.rationale,
    }


def answer_from_json(values: Any, assignment: Assignment) -> Answer:
    """Return the answer of a request.

    Raises:
        InvalidAnswerError: It is not an answer to this item.
    """
    if not isinstance(values, dict):
        raise InvalidAnswerError("it must be an object.")
    skip_reason, all_bad = _text(values, "skip_reason"), values.get("all_bad") is True
    has_tiers = not skip_reason and not (all_bad and values.get("tiers") == [] and assignment.task != "pair")
    tiers = tiers_from_positions(values.get("tiers"), assignment.order) if has_tiers else ()
    return Answer(
        tiers=tiers,
        strength=None if skip_reason else _strength(values.get("strength"), tiers, assignment),
        all_bad=all_bad,
        criteria=_criteria(values.get("criteria") or {}, assignment),
        flags=_flags(values.get("flags") or {}, assignment),
        rationale=_text(values, "rationale"),
        skip_reason=skip_reason,
        seconds=_seconds(values.get("seconds", 0.0)),
    )


def tiers_from_positions(value: Any, order: Sequence[int]) -> Tiers:
    """Return tiers of completion ids, of which each must occur once.

    Raises:
        InvalidAnswerError: They are not tiers of the positions 1 to the number of completions.
    """
    count = len(order)
    if not isinstance(value, list) or not all(isinstance(tier, list) and tier for tier in value):
        raise InvalidAnswerError("tiers must be a list of lists of positions.")
    positions = [position for tier in value for position in tier]
    if not all(type(position) is int for position in positions) or sorted(positions) != [*range(1, count + 1)]:
        raise InvalidAnswerError(f"tiers must name each of the positions 1 to {count} once.")
    return tuple(tuple(order[position - 1] for position in tier) for tier in value)


def _strength(value: Any, tiers: Tiers, assignment: Assignment) -> int | None:
    """Return the strength of a pair, which must agree with its tiers; None for other tasks."""
    if assignment.task != "pair":
        return None
    if type(value) is not int or abs(value) > MAX_STRENGTH:
        raise InvalidAnswerError(f"strength must be an integer from -{MAX_STRENGTH} to {MAX_STRENGTH}.")
    better = 0 if len(tiers) == 1 else (-1 if tiers[0] == (assignment.order[0],) else 1)
    if (value > 0) - (value < 0) != better:
        raise InvalidAnswerError("strength and tiers must agree.")
    return value * _strength_sign(assignment)


def _strength_sign(assignment: Assignment) -> int:
    """Return -1 if the completions are shown in the reverse of the order in which they were imported, else 1."""
    return 1 if assignment.order[0] == min(assignment.order) else -1


def _criteria(values: Any, assignment: Assignment) -> dict[int, dict[str, int]]:
    ratings = {}
    for key, by_name in _by_completion(values, assignment).items():
        if not isinstance(by_name, dict) or key == WHOLE_PLACE:
            raise InvalidAnswerError("criteria must be ratings by completion.")
        if not all(name in assignment.criteria and type(n) is int and n in RATINGS for name, n in by_name.items()):
            raise InvalidAnswerError("a rating must be an integer from 1 to 5 of one of the project's criteria.")
        ratings[key] = dict(by_name)
    return ratings


def _flags(values: Any, assignment: Assignment) -> dict[int, tuple[Flag, ...]]:
    flags: dict[int, tuple[Flag, ...]] = {}
    for key, names in _by_completion(values, assignment).items():
        if not isinstance(names, list) or not all(name in get_args(Flag) for name in names):
            raise InvalidAnswerError(f"flags must be among {', '.join(FLAGS)}.")
        if names:
            flags[key] = tuple(flag for flag in FLAGS if flag in names)
    return flags


def _by_completion(values: Any, assignment: Assignment) -> dict[int, Any]:
    """Return values by completion id instead of by shown position; 0 remains 0, the whole item."""
    ids = {str(position): completion for position, completion in enumerate((WHOLE_PLACE, *assignment.order))}
    if not isinstance(values, dict) or not values.keys() <= ids.keys():
        raise InvalidAnswerError("criteria and flags must be objects by position.")
    return {ids[position]: value for position, value in values.items()}


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name) or ""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise InvalidAnswerError(f"{name} must be a text of at most {MAX_TEXT} characters.")
    return value


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise InvalidAnswerError("seconds must be a non-negative number.")
    return min(float(value), MAX_SECONDS)
