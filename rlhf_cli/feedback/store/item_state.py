"""The state of an item that decides whether it is assigned: votes, leases, contradiction, missing judgments.

It is derived from the item's few judgments and leases whenever one of them changes, in the same transaction, so that
assignment and overviews read one indexed column.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Row, Select, case, exists, func, select, update

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
    row = lock_item(connection, item_id)
    if row.kind != "item":
        return
    votes = [(as_tiers(vote.tiers), vote.task) for vote in connection.execute(votes_query(item_id))]
    leases = count_leases(connection, item_id)
    contradicted = is_contradicted(votes)
    decided = connection.execute(select(exists().where(tables.decision.c.item_id == item_id))).scalar_one()
    wanted = row.max_overlap if contradicted else row.overlap
    missing = 0 if decided else max(0, wanted - len(votes) - leases)
    values = {
        "votes": len(votes),
        "leases": leases,
        "is_contradicted": contradicted,
        "is_decided": decided,
        "missing": missing,
    }
    connection.execute(update(tables.item).where(tables.item.c.id == item_id).values(values))


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
    table = tables.judgment
    return current_judgments().where(
        table.c.item_id == item_id, ~table.c.is_skipped, ~table.c.is_repeat, table.c.source == "human"
    )


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
