"""Grade the qualification test."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, select, update

from rlhf_cli.feedback.store import tables
from rlhf_cli.feedback.store.assignment import matching_queues, qualification_items
from rlhf_cli.feedback.store.content import as_tiers
from rlhf_cli.feedback.store.items import find_items
from rlhf_cli.feedback.store.projects import Project
from rlhf_cli.feedback.store.records import QualificationState
from rlhf_cli.feedback.types import Comparison, TaskKind, Tiers, comparisons


class Grade(NamedTuple):
    """Pairs that were ordered correctly, of all pairs that count."""

    correct: int
    pairs: int


def grade(tiers: Tiers, answer: Tiers, task: TaskKind) -> Grade:
    """Compare tiers with the right ones, pair by pair.

    A pair counts if the right answer orders or ties it and the task compares it: of a best-worst answer, the pairs of
    the best and of the worst. A skipped item has all of its pairs wrong.
    """
    given = {_pair(comparison): comparison.outcome for comparison in comparisons(tiers, task)}
    right = {_pair(comparison): comparison.outcome for comparison in comparisons(answer, "rank")}
    counted = right.keys() & given.keys() if given else right.keys()
    return Grade(sum(given.get(pair) == right[pair] for pair in counted), len(counted))


def _pair(comparison: Comparison) -> tuple[int, int]:
    return comparison.first, comparison.second


def update_qualification(
    connection: Connection, project: Project, annotator: Row[Any], *, store: bool = True
) -> QualificationState:
    """Return the state of an annotator's test, and store it once every item is answered, unless `store` is False."""
    settings = project.settings.qualification
    if settings is None:
        return "none"
    if annotator.qualification:
        state: QualificationState = annotator.qualification
        return state
    items = find_items(connection, qualification_items(matching_queues(connection, project, annotator)))
    if not items:
        return "none"
    table = tables.judgment
    query = select(table).where(table.c.annotator_id == annotator.id, table.c.item_id.in_([item.id for item in items]))
    rows = {row.item_id: row for row in connection.execute(query)}
    if len(rows) < len(items):
        return "open"
    grades = [grade(as_tiers(rows[item.id].tiers), item.answer, rows[item.id].task) for item in items]
    correct, pairs = sum(found.correct for found in grades), sum(found.pairs for found in grades)
    state = "passed" if correct >= settings.min_accuracy * pairs else "failed"
    if store:
        values = {"qualification": state}
        connection.execute(update(tables.annotator).where(tables.annotator.c.id == annotator.id).values(values))
    return state
