"""Annotators, their one-time invites, and their sessions. Of every token, only the hash is stored."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, select, update

from rlhf_cli.errors import DataError
from rlhf_cli.feedback.store import tables
from rlhf_cli.feedback.store.content import read_annotator, sha256, timestamp
from rlhf_cli.feedback.store.errors import NotFoundError
from rlhf_cli.feedback.store.item_state import update_item_states
from rlhf_cli.feedback.store.projects import Project
from rlhf_cli.feedback.store.records import Invite, Session
from rlhf_cli.feedback.types import MAX_NAME, Annotator, Role, Source

SESSION_SECONDS = 30 * 24 * 3600.0
TOKEN_BYTES = 32

_annotator, _session = tables.annotator, tables.session
# Statements that run with every request are built once: building one takes longer than running it.
_ROW = select(_annotator).where(
    _annotator.c.id == bindparam("annotator_id"),
    _annotator.c.project_id == bindparam("project_id"),
    _annotator.c.is_active,
)
_LOCKED_ROW = _ROW.with_for_update()
_OF_SESSION = (
    select(_annotator)
    .join(_session, _session.c.annotator_id == _annotator.c.id)
    .where(_session.c.token_sha256 == bindparam("token_sha256"), _session.c.is_valid)
    .where(_session.c.expires > bindparam("now"))
    .where(_annotator.c.project_id == bindparam("project_id"), _annotator.c.is_active)
)


def add_annotator(
    connection: Connection,
    project: Project,
    name: str,
    *,
    role: Role = "annotator",
    languages: Sequence[str] = (),
    fields: Sequence[str] = (),
    source: Source = "human",
) -> Annotator:
    """Add an annotator. The pseudonym is a number, or the name if the annotator is a model."""
    if not 0 < len(name.strip()) <= MAX_NAME:
        message = f"invalid name of an annotator; found {len(name)} characters, expected 1 to {MAX_NAME}."
        raise DataError("feedback.invalid-annotator", message)
    table = tables.annotator
    connection.execute(select(tables.project.c.id).where(tables.project.c.id == project.id).with_for_update())
    if connection.execute(select(table.c.id).where(table.c.project_id == project.id, table.c.name == name)).first():
        hint = "Choose another name, or renew the invite with `rlhf annotate user renew`."
        raise DataError("feedback.duplicate-annotator", f"the annotator exists already: {name}.", hint=hint)
    count: int = connection.execute(select(func.count()).where(table.c.project_id == project.id)).scalar_one()
    values = {
        "project_id": project.id,
        "name": name,
        "pseudonym": name if source == "ai" else f"annotator-{count + 1:03}",
        "role": role,
        "languages": list(languages),
        "fields": list(fields),
        "source": source,
    }
    row_id: int = connection.execute(table.insert().values(values).returning(table.c.id)).scalar_one()
    return read_annotator(lock_annotator(connection, project, row_id))


def find_annotator(connection: Connection, project: Project, name: str) -> Annotator | None:
    """Return the annotator of that name, or None if there is none."""
    table = tables.annotator
    query = select(table).where(table.c.project_id == project.id, table.c.name == name)
    row = connection.execute(query).first()
    return None if row is None else read_annotator(row)


def all_annotators(connection: Connection, project: Project) -> list[Annotator]:
    """Return all annotators in the order of ids."""
    table = tables.annotator
    query = select(table).where(table.c.project_id == project.id).order_by(table.c.id)
    return [read_annotator(row) for row in connection.execute(query)]


def lock_annotator(connection: Connection, project: Project, annotator_id: int) -> Row[Any]:
    """Return the row of an active annotator, locked until the end of the transaction.

    Two tabs of one annotator therefore wait for each other.
    """
    return find_row(connection, project, annotator_id, lock=True)


def find_row(connection: Connection, project: Project, annotator_id: int, *, lock: bool = False) -> Row[Any]:
    """Return the row of an active annotator."""
    values = {"annotator_id": annotator_id, "project_id": project.id}
    row = connection.execute(_LOCKED_ROW if lock else _ROW, values).first()
    if row is None:
        raise NotFoundError("annotator", annotator_id)
    return row


def new_invite(connection: Connection, project: Project, name: str, now: float) -> Invite:
    """Return a new invite of an annotator, who becomes active. Earlier invites become invalid."""
    found = find_annotator(connection, project, name)
    if found is None:
        known = ", ".join(annotator.name for annotator in all_annotators(connection, project)[:10])
        raise NotFoundError("annotator", name, hint=f"The annotators are {known}." if known else "Add one first.")
    token = secrets.token_urlsafe(TOKEN_BYTES)
    # The row of the annotator is locked by this, so that of two invites only the later one is valid.
    connection.execute(update(tables.annotator).where(tables.annotator.c.id == found.id).values(is_active=True))
    _invalidate(connection, tables.invite, found.id)
    values = {"annotator_id": found.id, "token_sha256": sha256(token), "created": timestamp(now)}
    connection.execute(tables.invite.insert().values(values))
    return Invite(read_annotator(lock_annotator(connection, project, found.id)), token)


def deactivate(connection: Connection, project: Project, name: str) -> None:
    """Deactivate an annotator: invites and sessions become invalid, and leases expire. Judgments are kept."""
    found = find_annotator(connection, project, name)
    if found is None:
        raise NotFoundError("annotator", name)
    for table in (tables.invite, tables.session):
        _invalidate(connection, table, found.id)
    connection.execute(update(tables.annotator).where(tables.annotator.c.id == found.id).values(is_active=False))
    lease = tables.assignment
    expired = update(lease).where(lease.c.annotator_id == found.id, lease.c.state == "leased").values(state="expired")
    update_item_states(connection, set(connection.execute(expired.returning(lease.c.item_id)).scalars()))


def _invalidate(connection: Connection, table: Any, annotator_id: int) -> None:
    connection.execute(
        update(table).where(table.c.annotator_id == annotator_id, table.c.is_valid).values(is_valid=False)
    )


def redeem(connection: Connection, project: Project, token: str, now: float) -> Session:
    """Return a new session for an invite, which becomes invalid.

    Raises:
        NotFoundError: The invite is unknown, was used, or its annotator is not active.
    """
    invite = tables.invite
    used = update(invite).where(invite.c.token_sha256 == sha256(token), invite.c.is_valid).values(is_valid=False)
    annotator_id = connection.execute(used.returning(invite.c.annotator_id)).scalar()
    if annotator_id is None:
        raise NotFoundError("invite", "unknown or used", hint="Ask the owner of the project for a new link.")
    annotator = read_annotator(lock_annotator(connection, project, annotator_id))
    session = secrets.token_urlsafe(TOKEN_BYTES)
    values = {"annotator_id": annotator_id, "token_sha256": sha256(session), "expires": now + SESSION_SECONDS}
    connection.execute(tables.session.insert().values(values))
    return Session(annotator, session)


def annotator_of(connection: Connection, project: Project, token: str, now: float) -> Annotator | None:
    """Return the active annotator whose session has the token, or None if there is none."""
    values = {"token_sha256": sha256(token), "now": now, "project_id": project.id}
    row = connection.execute(_OF_SESSION, values).first()
    return None if row is None else read_annotator(row)


def end_session(connection: Connection, token: str) -> None:
    """End a session. No-op if it is unknown."""
    session = tables.session
    connection.execute(update(session).where(session.c.token_sha256 == sha256(token)).values(is_valid=False))
