"""The state of an item that decides whether it is assigned: votes, leases, contradiction, missing judgments.

It is derived from the item's few judgments and leases whenever one of them changes, in the same transaction, so that
assignment and overviews read one indexed column.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, bindparam, case, exists, func, select, update

from rlhf_cli.feedback.store import tables
from rlhf_cli.feedback.store.content import as_tiers
from rlhf_cli.feedback.types import TaskKind, Tiers, comparisons


def lock_item(connection: Connection, item_id: int) -> Row[Any]:
    """Lock an item until the end of the transaction, and return its row with the overlap of its project."""
    query = (
        select(tables.item, tables.project.c.overlap, tables.project.c.max_overlap)
        .join(tables.project, tables.project.c.id == tables.item.c.project_id)
        .where(tables.item.c.id == item_id)
        .with_for_update(of=tables.item)
    )
    return connection.execute(query).one()


def update_item_state(connection: Connection, item_id: int) -> None:
    """Derive the state of an item from its judgments, leases and decisions."""
    update_item_states(connection, [item_id])


def update_item_states(connection: Connection, item_ids: Collection[int]) -> None:
    """Derive the states of ordinary items from their judgments, leases and decisions."""
    item, project, decision, lease = tables.item, tables.project, tables.decision, tables.assignment
    query = select(item.c.id, project.c.overlap, project.c.max_overlap).join(project, project.c.id == item.c.project_id)
    query = query.where(item.c.id.in_(item_ids), item.c.kind == "item").order_by(item.c.id)
    rows = connection.execute(query.with_for_update(of=item)).all()
    if not rows:
        return
    ids = [row.id for row in rows]
    votes: dict[int, list[tuple[Tiers, TaskKind]]] = {}
    for vote in connection.execute(_votes(tables.judgment.c.item_id.in_(ids))):
        votes.setdefault(vote.item_id, []).append((as_tiers(vote.tiers), vote.task))
    leased = select(lease.c.item_id, func.count().label("count")).where(
        lease.c.item_id.in_(ids), lease.c.state == "leased", lease.c.takes_slot
    )
    leases = {row.item_id: row.count for row in connection.execute(leased.group_by(lease.c.item_id))}
    decided = set(connection.execute(select(decision.c.item_id).where(decision.c.item_id.in_(ids))).scalars())
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
        values.append({f"new_{name}": value for name, value in state.items()} | {"of_item": row.id})
    names = ("votes", "leases", "is_contradicted", "is_decided", "missing")
    statement = update(item).where(item.c.id == bindparam("of_item"))
    connection.execute(statement.values({name: bindparam(f"new_{name}") for name in names}), values)


def wanted_votes(row: Row[Any]) -> int:
    """Return how many judgments an item that `lock_item` returned should have."""
    if row.is_decided:
        return 0
    wanted: int = row.max_overlap if row.is_contradicted else row.overlap
    return wanted


def count_leases(connection: Connection, item_id: int, *, at: float | None = None, other_than: int = 0) -> int:
    """Return the number of leases that count towards the overlap of an item.

    Args:
        connection: The connection.
        item_id: The item.
        at: Leave out those that expired before, in seconds since 1970; None: count all that are not marked as expired.
        other_than: Id of an assignment to leave out.
    """
    table = tables.assignment
    query = select(func.count()).where(
        table.c.item_id == item_id, table.c.state == "leased", table.c.takes_slot, table.c.id != other_than
    )
    if at is not None:
        query = query.where(table.c.expires >= at)
    found: int = connection.execute(query).scalar_one()
    return found


def votes_query(item_id: int) -> Select[Any]:
    """Return the query of the judgments that count as votes on an item: current ones by people, no repeats or skips."""
    return _votes(tables.judgment.c.item_id == item_id)


def _votes(of_items: ColumnElement[bool]) -> Select[Any]:
    table = tables.judgment
    return current_judgments().where(of_items, ~table.c.is_skipped, ~table.c.is_repeat, table.c.source == "human")


@functools.cache  # building it takes longer than running it
def current_judgments() -> Select[Any]:
    """Return the query of all judgments that no later one supersedes, in the order of ids."""
    table, later = tables.judgment, tables.judgment.alias("later")
    return select(table).where(~exists().where(later.c.supersedes == table.c.id)).order_by(table.c.id)


def is_contradicted(votes: Iterable[tuple[Tiers, TaskKind]]) -> bool:
    """Return whether some pair of completions is ordered in both ways by the votes."""
    outcomes: set[tuple[int, int, int]] = set()
    for tiers, task in votes:
        outcomes.update(comparison for comparison in comparisons(tiers, task) if comparison.outcome)
    return any((first, second, -outcome) in outcomes for first, second, outcome in outcomes)


def missing_votes(wanted: Any, votes: Any, leases: Any) -> Any:
    """Return the SQL expression of the judgments that an item lacks."""
    return case((wanted > votes + leases, wanted - votes - leases), else_=0)
