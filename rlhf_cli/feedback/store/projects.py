"""Projects of a store: their settings, and the versions of their guideline."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, case, select, update

from rlhf_cli.feedback.store import tables
from rlhf_cli.feedback.store.content import sha256, timestamp
from rlhf_cli.feedback.store.engine import wait_for_others
from rlhf_cli.feedback.store.errors import NotFoundError
from rlhf_cli.feedback.store.item_state import missing_votes
from rlhf_cli.feedback.store.records import Guideline
from rlhf_cli.recipe.schema import Feedback

_CURRENT_GUIDELINE = select(tables.project.c.guideline).where(tables.project.c.id == bindparam("project_id"))


@dataclass(frozen=True)
class Project:
    """A project of the store: one per recipe name."""

    id: int
    name: str
    settings: Feedback


def open_project(connection: Connection, name: str, settings: Feedback) -> Project:
    """Return the project, which is created if needed. If the overlap changed, it is applied to all items."""
    wait_for_others(connection)
    table = tables.project
    overlap, max_overlap = settings.overlap, max(settings.overlap, settings.max_overlap)
    row = connection.execute(select(table).where(table.c.name == name).with_for_update()).first()
    if row is None:
        inserted = table.insert().values(name=name, overlap=overlap, max_overlap=max_overlap)
        row_id: int = connection.execute(inserted.returning(table.c.id)).scalar_one()
        return Project(row_id, name, settings)
    if (row.overlap, row.max_overlap) != (overlap, max_overlap):
        connection.execute(update(table).where(table.c.id == row.id).values(overlap=overlap, max_overlap=max_overlap))
        item = tables.item
        wanted = case((item.c.is_contradicted, max_overlap), else_=overlap)
        connection.execute(
            update(item)
            .where(item.c.project_id == row.id, item.c.kind == "item")
            .values(missing=case((item.c.is_decided, 0), else_=missing_votes(wanted, item.c.votes, item.c.leases)))
        )
    return Project(row.id, name, settings)


def set_guideline(connection: Connection, project: Project, text: str, now: float) -> str:
    """Store a version of the guideline, make it the current one, and return its SHA-256."""
    digest, table = sha256(text), tables.guideline
    current = current_guideline(connection, project)
    if current == digest:
        return digest
    known = select(table.c.id).where(table.c.project_id == project.id, table.c.sha256 == digest)
    if connection.execute(known).first() is None:
        values = {"project_id": project.id, "sha256": digest, "text": text, "created": timestamp(now)}
        connection.execute(table.insert().values(values))
    connection.execute(update(tables.project).where(tables.project.c.id == project.id).values(guideline=digest))
    return digest


def current_guideline(connection: Connection, project: Project) -> str:
    """Return the SHA-256 of the guideline that is in force, or "" if there is none."""
    found: str = connection.execute(_CURRENT_GUIDELINE, {"project_id": project.id}).scalar_one()
    return found


def find_guideline(connection: Connection, project: Project, digest: str) -> Guideline:
    """Return one version of the guideline."""
    table = tables.guideline
    query = select(table).where(table.c.project_id == project.id, table.c.sha256 == digest)
    row = connection.execute(query).first()
    if row is None:
        raise NotFoundError("guideline", digest)
    return Guideline(row.sha256, row.text, row.created)
