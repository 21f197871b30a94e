"""Overviews: how far an annotator is, and how far a project is."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

from sqlalchemy import Connection, Row, bindparam, case, func, select

from rlhf_cli.feedback.store import tables
from rlhf_cli.feedback.store.assignment import count_available, matching_queues
from rlhf_cli.feedback.store.content import read_annotator, timestamp
from rlhf_cli.feedback.store.item_state import current_judgments
from rlhf_cli.feedback.store.projects import Project
from rlhf_cli.feedback.store.qualification import update_qualification
from rlhf_cli.feedback.store.records import AnnotatorStatus, GroupStatus, Progress, QualificationState, Status

REMAINING_LIMIT = 1000  # items; counting more would take longer than an annotator looks at the number
PACE_JUDGMENTS = 50  # the latest ones, of which the median time is the pace


_judgment, _item, _lease = tables.judgment, tables.item, tables.assignment
# Built once: building a statement takes longer than running it.
_OWN = (
    current_judgments()
    .order_by(None)
    .join(_item, _item.c.id == _judgment.c.item_id)
    .where(_judgment.c.annotator_id == bindparam("annotator_id"), ~_judgment.c.is_skipped)
    .where(_item.c.kind != "qualification")
)
_LATEST = _OWN.with_only_columns(_judgment.c.answer).order_by(_judgment.c.id.desc()).limit(PACE_JUDGMENTS)
_COUNTS = _OWN.with_only_columns(
    func.count(), func.sum(case((_judgment.c.created >= bindparam("today"), 1), else_=0)), maintain_column_froms=True
)
_LEASED = (  # live leases without reopened judgments
    select(func.count())
    .select_from(_lease.join(_item, _item.c.id == _lease.c.item_id))
    .where(_lease.c.annotator_id == bindparam("annotator_id"), _lease.c.state == "leased")
    .where(_lease.c.expires >= bindparam("now"), _lease.c.reopens.is_(None), _item.c.kind != "qualification")
)


def progress(connection: Connection, project: Project, annotator: Row[Any], now: float) -> Progress:
    """Return how far an annotator is."""
    values = {"annotator_id": annotator.id, "today": timestamp(now)[:10]}
    seconds = [row.answer["seconds"] for row in connection.execute(_LATEST, values)]
    judged, today = connection.execute(_COUNTS, values).one()
    state = qualification_state(connection, project, annotator)
    queues = [] if state == "failed" else matching_queues(connection, project, annotator)
    remaining = count_available(connection, annotator, queues, REMAINING_LIMIT)
    leased = connection.execute(_LEASED, {"annotator_id": annotator.id, "now": now}).scalar_one()
    return Progress(judged, today or 0, remaining, leased, state, median(seconds) if seconds else None)


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
    own = select(table.c.id).where(table.c.project_id == project.id)
    current = current_judgments().order_by(None).where(judgment.c.annotator_id.in_(own))
    query = current.with_only_columns(
        judgment.c.annotator_id, judgment.c.is_skipped, func.count(), maintain_column_froms=True
    ).group_by(judgment.c.annotator_id, judgment.c.is_skipped)
    counts: Counter[tuple[int, bool]] = Counter()
    for annotator_id, is_skipped, count in connection.execute(query):
        counts[annotator_id, is_skipped] = count
    times = select(judgment.c.annotator_id, func.max(judgment.c.created)).where(judgment.c.annotator_id.in_(own))
    times = times.group_by(judgment.c.annotator_id)
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
