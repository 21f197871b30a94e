"""Overviews: how far an annotator is, and how far a project is."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

from sqlalchemy import Connection, Row, Select, case, func, select

from rlhf_cli.feedback.store import tables
from rlhf_cli.feedback.store.assignment import available, matching_queues
from rlhf_cli.feedback.store.content import read_annotator, timestamp
from rlhf_cli.feedback.store.item_state import current_judgments
from rlhf_cli.feedback.store.projects import Project
from rlhf_cli.feedback.store.qualification import update_qualification
from rlhf_cli.feedback.store.records import AnnotatorStatus, GroupStatus, Progress, QualificationState, Status

REMAINING_LIMIT = 1000  # items; counting more would take longer than an annotator looks at the number
PACE_JUDGMENTS = 50  # the latest ones, of which the median time is the pace


def progress(connection: Connection, project: Project, annotator: Row[Any], now: float) -> Progress:
    """Return how far an annotator is."""
    judgment, item = tables.judgment, tables.item
    own = current_judgments().order_by(None).where(judgment.c.annotator_id == annotator.id, ~judgment.c.is_skipped)
    own = own.join(item, item.c.id == judgment.c.item_id).where(item.c.kind != "qualification")
    latest = own.order_by(judgment.c.id.desc()).limit(PACE_JUDGMENTS)
    seconds = [row.answer["seconds"] for row in connection.execute(latest)]
    counted = own.with_only_columns(
        func.count(),
        func.sum(case((judgment.c.created >= timestamp(now)[:10], 1), else_=0)),
        maintain_column_froms=True,
    )
    judged, today = connection.execute(counted).one()
    state = qualification_state(connection, project, annotator)
    remaining = 0
    if state != "failed":
        for queue_id in matching_queues(connection, project, annotator):
            limited = available(annotator, queue_id).order_by(None).limit(REMAINING_LIMIT - remaining).subquery()
            remaining += connection.execute(select(func.count()).select_from(limited)).scalar_one()
            if remaining >= REMAINING_LIMIT:
                break
    leased = connection.execute(_leases_query(annotator.id, now)).scalar_one()
    return Progress(judged, today or 0, remaining, leased, state, median(seconds) if seconds else None)


def _leases_query(annotator_id: int, now: float) -> Select[Any]:
    """Return the query of the number of live leases of an annotator, without reopened judgments."""
    table, item = tables.assignment, tables.item
    return (
        select(func.count())
        .select_from(table.join(item, item.c.id == table.c.item_id))
        .where(table.c.annotator_id == annotator_id, table.c.state == "leased", table.c.expires >= now)
        .where(table.c.reopens.is_(None), item.c.kind != "qualification")
    )


def qualification_state(connection: Connection, project: Project, annotator: Row[Any]) -> QualificationState:
    """Return the state of an annotator's qualification test."""
    return update_qualification(connection, project, annotator, store=False)


def status(connection: Connection, project: Project) -> Status:
    """Return the numbers of the project."""
    kinds = _kinds(connection, project)
    groups = _groups(connection, project)
    people = _annotators(connection, project)
    votes = select(func.sum(tables.item.c.votes)).where(tables.item.c.project_id == project.id)
    return Status(
        items=kinds.get("item", 0),
        open=sum(group.open for group in groups),
        done=sum(group.done for group in groups),
        disputed=sum(group.disputed for group in groups),
        judgments=connection.execute(votes).scalar() or 0,
        annotators=people,
        groups=groups,
        kinds=kinds,
    )


def _kinds(connection: Connection, project: Project) -> dict[str, int]:
    table = tables.item
    query = select(table.c.kind, func.count()).where(table.c.project_id == project.id).group_by(table.c.kind)
    return {row.kind: row.count_1 for row in connection.execute(query)}


def _groups(connection: Connection, project: Project) -> list[GroupStatus]:
    item, queue = tables.item, tables.queue
    enough = item.c.votes >= project.settings.overlap
    is_disputed = enough & item.c.is_contradicted & ~item.c.is_decided
    is_done = (enough & ~item.c.is_contradicted) | item.c.is_decided
    query = (
        select(
            queue.c.language,
            queue.c.field,
            func.count(),
            func.sum(case((is_done, 1), else_=0)),
            func.sum(case((is_disputed, 1), else_=0)),
        )
        .join(item, item.c.queue_id == queue.c.id)
        .where(queue.c.project_id == project.id, item.c.kind == "item")
        .group_by(queue.c.id, queue.c.language, queue.c.field)
    )
    return sorted(
        (
            GroupStatus(language, field, items, items - done - contested, done, contested)
            for language, field, items, done, contested in connection.execute(query)
        ),
        key=lambda group: (group.language, group.field),
    )


def _annotators(connection: Connection, project: Project) -> list[AnnotatorStatus]:
    table, judgment = tables.annotator, tables.judgment
    current = current_judgments().order_by(None).subquery()
    query = select(current.c.annotator_id, current.c.is_skipped, func.count()).group_by(
        current.c.annotator_id, current.c.is_skipped
    )
    counts: Counter[tuple[int, bool]] = Counter()
    for annotator_id, is_skipped, count in connection.execute(query):
        counts[annotator_id, is_skipped] = count
    times = select(judgment.c.annotator_id, func.max(judgment.c.created)).group_by(judgment.c.annotator_id)
    latest = {row.annotator_id: row.max_1 for row in connection.execute(times)}
    rows = connection.execute(select(table).where(table.c.project_id == project.id).order_by(table.c.id)).all()
    return [
        AnnotatorStatus(
            read_annotator(row),
            counts[row.id, False],
            counts[row.id, True],
            qualification_state(connection, project, row),
            latest.get(row.id, ""),
        )
        for row in rows
    ]
