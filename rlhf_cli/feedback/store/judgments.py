"""Store the answers of annotators, each acknowledged once."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, bindparam, select, update

from rlhf_cli.errors import DataError
from rlhf_cli.feedback.store import tables
from rlhf_cli.feedback.store.annotators import lock_annotator
from rlhf_cli.feedback.store.assignment import current_judgment_of
from rlhf_cli.feedback.store.content import (
    answer_values,
    check_answer,
    read_answer,
    timestamp,
)
from rlhf_cli.feedback.store.errors import LeaseExpiredError, NotFoundError
from rlhf_cli.feedback.store.item_state import (
    count_other_leases,
    lock_item,
    update_item_state,
    wanted_votes,
)
from rlhf_cli.feedback.store.items import completion_ids, find_item
from rlhf_cli.feedback.store.projects import Project
from rlhf_cli.feedback.store.qualification import grade, update_qualification
from rlhf_cli.feedback.store.records import QualificationFeedback, Receipt
from rlhf_cli.feedback.types import MAX_NAME, Answer

_judgment, _assignment = tables.judgment, tables.assignment
# Built once: building a statement takes longer than running it.
_ASSIGNMENT = (
    select(_assignment)
    .where(_assignment.c.id == bindparam("assignment_id"), _assignment.c.annotator_id == bindparam("annotator_id"))
    .with_for_update()
)
_SET_DONE = (
    update(_assignment)
    .where(_assignment.c.id == bindparam("assignment_id"))
    .values(state="done", judgment_id=bindparam("judgment"))
)
_INSERT = _judgment.insert().returning(_judgment.c.id)
_WITH_KEY = select(_judgment.c.id).where(
    _judgment.c.annotator_id == bindparam("annotator_id"), _judgment.c.key == bindparam("given_key")
)
_WITH_KIND = (
    select(_judgment, tables.item.c.kind)
    .join(tables.item, tables.item.c.id == _judgment.c.item_id)
    .where(_judgment.c.id == bindparam("judgment_id"))
)


def submit(
    connection: Connection,
    project: Project,
    annotator_id: int,
    assignment_id: int,
    answer: Answer,
    *,
    key: str,
    now: float,
) -> Receipt:
    """Store the answer to an assignment, unless it has one.

    Raises:
        NotFoundError: The assignment does not exist, or belongs to another annotator.
        LeaseExpiredError: The lease expired or the item was skipped, and it got enough judgments since.
        DataError: The answer does not fit the item.
    """
    if not 0 < len(key) <= MAX_NAME:
        message = f"invalid idempotency key; found {len(key)} characters, expected 1 to {MAX_NAME}."
        raise DataError("feedback.invalid-answer", message)
    annotator = lock_annotator(connection, project, annotator_id)
    acknowledged = _judgment_with_key(connection, annotator_id, key)
    if acknowledged is not None:
        return _receipt(connection, project, annotator, acknowledged, is_duplicate=False)
    row = connection.execute(_ASSIGNMENT, {"assignment_id": assignment_id, "annotator_id": annotator_id}).first()
    if row is None:
        raise NotFoundError("assignment", assignment_id)
    earlier = _earlier_judgment(connection, row)
    if earlier is not None:
        return _receipt(connection, project, annotator, earlier, is_duplicate=True)
    completions, settings = completion_ids(connection, row.item_id), project.settings
    check_answer(answer, settings.task, completions, criteria=settings.criteria)
    is_late = row.takes_slot and (row.state == "expired" or row.expires < now)
    if is_late or (not answer.skip_reason and _gave_slot_up(connection, row)):
        _check_room(connection, row, now)
    values = {
        "item_id": row.item_id,
        "annotator_id": annotator_id,
        "assignment_id": assignment_id,
        "key": key,
        "task": project.settings.task,
        "order": row.order,
        "guideline": row.guideline,
        "is_repeat": row.is_repeat,
        "source": annotator.source,
        "principle": "",
        "supersedes": row.reopens,
        "created": timestamp(now),
    }
    judgment_id = _insert(connection, values, answer)
    connection.execute(_SET_DONE, {"assignment_id": row.id, "judgment": judgment_id})
    update_item_state(connection, row.item_id)
    return _receipt(connection, project, annotator, judgment_id, is_duplicate=False)


def _insert(connection: Connection, values: dict[str, Any], answer: Answer) -> int:
    content = {"tiers": answer.tiers, "is_skipped": bool(answer.skip_reason), "answer": answer_values(answer)}
    inserted: int = connection.execute(_INSERT, values | content).scalar_one()
    return inserted


def _judgment_with_key(connection: Connection, annotator_id: int, key: str) -> int | None:
    found: int | None = connection.execute(_WITH_KEY, {"annotator_id": annotator_id, "given_key": key}).scalar()
    return found


def _earlier_judgment(connection: Connection, row: Row[Any]) -> int | None:
    """Return the judgment that answers an assignment already, be it in another tab or by another lease, or None."""
    if row.state == "done":
        found: int = row.judgment_id
        return found
    if row.reopens is not None:
        table = tables.judgment
        later: int | None = connection.execute(select(table.c.id).where(table.c.supersedes == row.reopens)).scalar()
        return later
    return current_judgment_of(connection, row.annotator_id, row.item_id, is_repeat=row.is_repeat)


def _gave_slot_up(connection: Connection, row: Row[Any]) -> bool:
    """Return whether an assignment reopens a skipped item, whose slot others may have taken since."""
    if row.reopens is None or row.is_repeat:
        return False
    found: bool = connection.execute(select(_judgment.c.is_skipped).where(_judgment.c.id == row.reopens)).scalar_one()
    return found


def _check_room(connection: Connection, row: Row[Any], now: float) -> None:
    """Raise LeaseExpiredError if an item needs no further judgment than those that others have leased."""
    item = lock_item(connection, row.item_id)
    others = count_other_leases(connection, row.item_id, row.id, now)
    if item.votes + others >= wanted_votes(item):
        raise LeaseExpiredError


def _receipt(
    connection: Connection, project: Project, annotator: Row[Any], judgment_id: int, *, is_duplicate: bool
) -> Receipt:
    """Return the acknowledgment of a stored judgment."""
    row = connection.execute(_WITH_KIND, {"judgment_id": judgment_id}).one()
    if row.kind != "qualification":
        return Receipt(judgment_id, is_duplicate=is_duplicate)
    item = find_item(connection, project, row.item_id)
    state = update_qualification(connection, project, annotator)
    correct, pairs = grade(read_answer(row.tiers, row.answer).tiers, item.answer, row.task)
    feedback = QualificationFeedback(correct, pairs, item.answer, item.explanation, state)
    return Receipt(judgment_id, feedback, is_duplicate)
