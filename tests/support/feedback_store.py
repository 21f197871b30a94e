"""Stores with a clock that tests set, and short ways to fill them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from rlhf_cli.feedback.store import Assignment, Store
from rlhf_cli.feedback.types import Answer, ItemKind, NewCompletion, NewItem, Tiers
from rlhf_cli.recipe.schema import Feedback

START = 1_800_000_000.0  # 15 January 2027, 08:00 UTC


class Clock:
    """A clock that moves only if a test sets it."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class Stores:
    """Opens stores on one database, all with the same clock, and closes them at the end."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = Clock()
        self._stack = ExitStack()

    def __call__(self, *, project: str = "project", **settings: Any) -> Store:
        """Open the store with some settings of the section `feedback`; without gold items and repeats by default."""
        section = Feedback.model_validate({"repeats": 0.0, **settings})
        return self._stack.enter_context(Store(self.url, project, section, clock=self.clock))

    @contextmanager
    def closing(self) -> Iterator[Stores]:
        """Yield self, and close all stores at the end."""
        with self._stack:
            yield self


def new_item(
    name: object = 0,
    *,
    completions: int = 4,
    kind: ItemKind = "item",
    answer: Tiers | None = None,
    **fields: Any,
) -> NewItem:
    """Return an item whose prompt holds `name`; a gold or qualification item's completions are in the right order."""
    if answer is None:
        answer = () if kind == "item" else tuple((index,) for index in range(completions))
    texts = tuple(NewCompletion(f"completion {index} of {name}", "base") for index in range(completions))
    return NewItem(f"prompt {name}", texts, kind, answer=answer, **fields)


def new_items(count: int, **fields: Any) -> list[NewItem]:
    """Return different items."""
    return [new_item(number, **fields) for number in range(count)]


def ranking(ids: Sequence[int], **fields: Any) -> Answer:
    """Return the answer that ranks completions in the given order, without ties."""
    return Answer(tuple((number,) for number in ids), **fields)


def agreeing(assignment: Assignment) -> Answer:
    """Return the answer that ranks the completions in the order of the import, as every agreeing annotator does."""
    return ranking(sorted(assignment.order))


def contradicting(assignment: Assignment) -> Answer:
    """Return the answer that ranks the completions in the reverse order of `agreeing`."""
    return ranking(sorted(assignment.order, reverse=True))


def judge(store: Store, annotator_id: int, count: int = 1, *, agree: bool = True) -> list[int]:
    """Let an annotator judge the next items, and return the ids of the judgments."""
    made: list[int] = []
    for _ in range(count):
        (assignment,) = store.assign(annotator_id)
        answer = agreeing(assignment) if agree else contradicting(assignment)
        made.append(store.submit(annotator_id, assignment.id, answer, f"key {assignment.id}").judgment_id)
    return made
