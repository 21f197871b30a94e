"""Snapshots of a feedback store, built record by record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlhf_cli.data.rows import Text
from rlhf_cli.feedback.types import (
    Annotator,
    Answer,
    Completion,
    Decision,
    Item,
    Judgment,
    Snapshot,
    TaskKind,
    Tiers,
)

Order = Sequence[Sequence[int]]  # completions by index from 0, best first; those of one group are tied


class SnapshotBuilder:
    """Adds items, judgments and decisions; ids count from 1. Completions of item i have the ids 10 i, 10 i + 1, …"""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.annotators: dict[str, Annotator] = {}
        self.judgments: list[Judgment] = []
        self.decisions: list[Decision] = []

    def item(self, prompt: Text = "p", completions: Sequence[Text] = (" a", " b"), **fields: Any) -> int:
        """Add an item and return its id."""
        number = len(self.items) + 1
        of_item = tuple(Completion(10 * number + index, text) for index, text in enumerate(completions))
        self.items.append(Item(number, f"key-{prompt}", prompt, of_item, **fields))
        return number

    def annotator(self, name: str, **fields: Any) -> Annotator:
        """Return an annotator, added on the first call."""
        if name not in self.annotators:
            number = len(self.annotators) + 1
            self.annotators[name] = Annotator(number, name, f"annotator-{number}", **fields)
        return self.annotators[name]

    def judge(self, name: str, item: int, order: Order, *, task: TaskKind = "rank", **fields: Any) -> None:
        """Add a judgment. `strength`, `skip_reason` and `all_bad` go to its answer, other fields to the judgment."""
        of_answer = {key: fields.pop(key) for key in ("strength", "skip_reason", "all_bad") if key in fields}
        answer = Answer(tiers=self._tiers(item, order), **of_answer)
        number = len(self.judgments) + 1
        who = self.annotator(name, source=fields.get("source", "human"))
        created = f"2026-01-{number % 28 + 1:02}T00:00:00Z"
        values = {"created": created, "order": (), **fields}
        self.judgments.append(Judgment(number, item, who.id, task, answer, **values))

    def decide(self, name: str, item: int, order: Order) -> None:
        """Add the decision of an expert."""
        expert = self.annotator(name, role="expert")
        self.decisions.append(Decision(item, expert.id, self._tiers(item, order), created="2026-02-01T00:00:00Z"))

    def build(self, **fields: Any) -> Snapshot:
        """Return the snapshot."""
        return replace(Snapshot(self.items, list(self.annotators.values()), self.judgments, self.decisions), **fields)

    def _tiers(self, item: int, order: Order) -> Tiers:
        return tuple(tuple(10 * item + index for index in tier) for tier in order)
