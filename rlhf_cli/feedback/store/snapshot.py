"""All feedback of a project at one moment, and its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict

from sqlalchemy import Connection, func, select

from rlhf_cli.feedback.store import tables
from rlhf_cli.feedback.store.annotators import all_annotators
from rlhf_cli.feedback.store.content import as_tiers, canonical, read_judgment
from rlhf_cli.feedback.store.item_state import current_judgments
from rlhf_cli.feedback.store.items import find_items
from rlhf_cli.feedback.store.projects import Project
from rlhf_cli.feedback.types import Decision, Snapshot


def snapshot(connection: Connection, project: Project) -> Snapshot:
    """Return all items, annotators and current judgments, and the latest decision about each item."""
    of_project = select(tables.item.c.id).where(tables.item.c.project_id == project.id)
    rows = connection.execute(current_judgments().where(tables.judgment.c.item_id.in_(of_project)))
    versions = select(tables.guideline).where(tables.guideline.c.project_id == project.id)
    return Snapshot(
        items=find_items(connection, of_project),
        annotators=all_annotators(connection, project),
        judgments=[read_judgment(row) for row in rows],
        decisions=_decisions(connection, project),
        guidelines={row.sha256: row.text for row in connection.execute(versions.order_by(tables.guideline.c.id))},
    )


def _decisions(connection: Connection, project: Project) -> list[Decision]:
    table, item = tables.decision, tables.item
    latest = (
        select(func.max(table.c.id))
        .join(item, item.c.id == table.c.item_id)
        .where(item.c.project_id == project.id)
        .group_by(table.c.item_id)
    )
    rows = connection.execute(select(table).where(table.c.id.in_(latest)).order_by(table.c.item_id))
    return [Decision(row.item_id, row.expert_id, as_tiers(row.tiers), row.rationale, row.created) for row in rows]


def digest(found: Snapshot) -> str:
    """Return the SHA-256 of a snapshot's content, without times: equal feedback has equal digests."""
    state = hashlib.sha256()
    for part in _parts(found):
        state.update(part.encode())
        state.update(b"\n")
    return state.hexdigest()


def _parts(found: Snapshot) -> Iterator[str]:
    for records in (found.items, found.annotators, found.judgments, found.decisions):
        for record in records:
            values = asdict(record)
            values.pop("created", None)
            yield canonical([type(record).__name__, values])
    yield canonical(dict(found.guidelines))
