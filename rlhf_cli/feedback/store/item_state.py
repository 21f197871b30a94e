"""The state of an item that decides whether it is assigned: votes, leases, contradiction, missing judgments.

It is derived from the item's few judgments and leases whenever one of them changes, in the same transaction, so that
assignment and overviews read one indexed column.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import BindParameter, Connection, Row, Select, bindparam, case, exists, func, select, update

from rlhf_cli.feedback.store import tables
from rlhf_cli.feedback.store.content import as_tiers
from rlhf_cli.feedback.types import TaskKind, Tiers, comparisons

_item, _lease = tables.item, tables.assignment
_IDS: BindParameter[Any] = bindparam("ids", expanding=True)

# Statements are built once: building one takes longer than running it.
_LOCKED_ITEMS = (
    select(_item, tables.project.c.overlap, tables.project.c.max_overlap)
    .join(tables.project, tables.project.c.id == _item.c.project_id)
    .where(_item.c.id.in_(_IDS))
    .order_by(_item.c.id)
    # FOR NO KEY UPDATE: inserting a judgment locks its item's key, which would deadlock with FOR UPDATE of two submits.
    .with_for_update(of=_item, key_share=True)
)
_LEASES = (
    select(_lease.c.item_id, func.count().label("count"))
    .where(_lease.c.item_id.in_(_IDS), _lease.c.state == "leased", _lease.c.takes_slot)
    .group_by(_lease.c.item_id)
)
_OTHER_LEASES = select(func.count()).where(
    _lease.c.item_id == bindparam("item_id"),
    _lease.c.state == "leased",
    _lease.c.takes_slot,
    _lease.c.expires >= bindparam("at"),
    _lease.c.id != bindparam("other_than"),
)
_DECIDED = select(tables.decision.c.item_id).where(tables.decision.c.item_id.in_(_IDS))
_STATE = ("votes", "leases", "is_contradicted", "is_decided", "missing")
_SET_STATE = (
    update(_item).where(_item.c.id == bindparam("of_item")).values({name: bindparam(f"new_{name}") for name in _STATE})
)
_ADD_LEASE = (
    update(_item)
    .where(_item.c.id == bindparam("of_item"))
    .values(leases=_item.c.leases + 1, missing=_item.c.missing - 1)
)


def lock_item(connection: Connection, item_id: int) -> Row[Any]:
    """Lock an item until the end of the transaction, and return its row with the overlap of its project."""
    return connection.execute(_LOCKED_ITEMS, {"ids": [item_id]}).one()


def add_lease(connection: Connection, item_id: int) -> None:
    """Count a new lease of a locked item that lacks a judgment."""
    connection.execute(_ADD_LEASE, {"of_item": item_id})


def update_item_state(connection: Connection, item_id: int) -> None:
    """Derive the state of an item from its judgments, leases and decisions."""
    update_item_states(connection, [item_id])


def update_item_states(connection: Connection, item_ids: Collection[int]) -> None:
    """Derive the states of ordinary items from their judgments, leases and decisions."""
    locked = connection.execute(_LOCKED_ITEMS, {"ids": [*item_ids]})
    rows = [row for row in locked if row.kind == "item"]
    if not rows:
        return
    ids = {"ids": [row.id for row in rows]}
    votes: dict[int, list[tuple[Tiers, TaskKind]]] = {}
    for vote in connection.execute(_VOTES, ids):
        votes.setdefault(vote.item_id, []).append((as_tiers(vote.tiers), vote.task))
    leases = {row.item_id: row.count for row in connection.execute(_LEASES, ids)}
    decided = set(connection.execute(_DECIDED, ids).scalars())
    values = []
    for row in rows:
        given = votes.get(row.id, [])
        contradicted = is_contradicted(given)
        wanted = row.max_overlap if contradicted else row.overlap
        state = {
            "votes": len(given),
            "leases": leases.get(row.id, 0),
            "is_contradicted": contradicted,
            "is_decided": row.id in decided,
            "missing": 0 if row.id in decided else max(0, wanted - len(given) - leases.get(row.id, 0)),
        }
        values.append({f"new_{name}": state[name] for name in _STATE} | {"of_item": row.id})
    connection.execute(_SET_STATE, values)


def wanted_votes(row: Row[Any]) -> int:
    """Return how many judgments an item that `lock_item` returned should have."""
    if row.is_decided:
        return 0
    wanted: int = row.max_overlap if row.is_contradicted else row.overlap
    return wanted


def count_other_leases(connection: Connection, item_id: int, assignment_id: int, now: float) -> int:
    """Return the number of live leases of an item, other than an assignment, that count towards its overlap."""
    values = {"item_id": item_id, "other_than": assignment_id, "at": now}
    found: int = connection.execute(_OTHER_LEASES, values).scalar_one()
    return found


def votes_of(connection: Connection, item_ids: Collection[int]) -> Iterable[Row[Any]]:
    """Return the judgments that count as votes on items: current ones by people, without repeats and skipped items."""
    return connection.execute(_VOTES, {"ids": [*item_ids]})


@functools.cache  # building it takes longer than running it
def current_judgments() -> Select[Any]:
    """Return the query of all judgments that no later one supersedes, in the order of ids."""
    table, later = tables.judgment, tables.judgment.alias("later")
    return select(table).where(~exists().where(later.c.supersedes == table.c.id)).order_by(table.c.id)


_VOTES = current_judgments().where(
    tables.judgment.c.item_id.in_(_IDS),
    ~tables.judgment.c.is_skipped,
    ~tables.judgment.c.is_repeat,
    tables.judgment.c.source == "human",
)


def is_contradicted(votes: Iterable[tuple[Tiers, TaskKind]]) -> bool:
    """Return whether some pair of completions is ordered in both ways by the votes."""
    outcomes: set[tuple[int, int, int]] = set()
    for tiers, task in votes:
        outcomes.update(comparison for comparison in comparisons(tiers, task) if comparison.outcome)
    return any((first, second, -outcome) in outcomes for first, second, outcome in outcomes)


def missing_votes(wanted: Any, votes: Any, leases: Any) -> Any:
    """Return the SQL expression of the judgments that an item lacks."""
    return case((wanted > votes + leases, wanted - votes - leases), else_=0)
