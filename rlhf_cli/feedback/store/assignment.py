"""Assign items to annotators: live leases first, then the qualification test, gold items, repeats and open items."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from sqlalchemy import CompoundSelect, Connection, Row, Select, bindparam, exists, func, select, union_all, update

from rlhf_cli.feedback.store import tables
from rlhf_cli.feedback.store.annotators import lock_annotator
from rlhf_cli.feedback.store.content import canonical, read_answer
from rlhf_cli.feedback.store.errors import NotFoundError
from rlhf_cli.feedback.store.item_state import add_lease, current_judgments, update_item_states
from rlhf_cli.feedback.store.items import completion_ids, find_item
from rlhf_cli.feedback.store.projects import Project, current_guideline
from rlhf_cli.feedback.store.records import Assignment

REPEAT_DISTANCE = 5  # the latest judgments of an annotator are not repeated
MAX_QUEUES = 100  # per statement; SQLite allows 500 parts of a compound query


_assignment = tables.assignment
# Statements that run with every item are built once: building one takes longer than running it.
_EXPIRED = (
    select(_assignment.c.id).where(_assignment.c.state == "leased", _assignment.c.expires < bindparam("now")).limit(1)
)
_LIVE = select(_assignment).where(
    _assignment.c.annotator_id == bindparam("annotator_id"),
    _assignment.c.state == "leased",
    _assignment.c.expires >= bindparam("now"),
)
_ONE = (
    select(_assignment, tables.item.c.is_contradicted)
    .join(tables.item, tables.item.c.id == _assignment.c.item_id)
    .where(_assignment.c.id == bindparam("assignment_id"), _assignment.c.annotator_id == bindparam("annotator_id"))
)
_CURRENT = (
    current_judgments()
    .with_only_columns(tables.judgment.c.id, maintain_column_froms=True)
    .where(tables.judgment.c.annotator_id == bindparam("annotator_id"))
    .where(tables.judgment.c.item_id == bindparam("item_id"), tables.judgment.c.is_repeat == bindparam("repeat"))
)
_INSERT = _assignment.insert().returning(_assignment.c.id)
_SET_DRAWS = (
    update(tables.annotator).where(tables.annotator.c.id == bindparam("annotator_id")).values(draws=bindparam("drawn"))
)
_QUEUES = select(tables.queue).where(tables.queue.c.project_id == bindparam("project_id")).order_by(tables.queue.c.id)


class Draw(NamedTuple):
    """An item drawn for an annotator; `order` is that of the judgment that it repeats, reversed, or None."""

    item_id: int
    takes_slot: bool = False
    order: tuple[int, ...] | None = None


# --- leases ---------------------------------------------------------------------------------------------------------


def expire_leases(connection: Connection, now: float) -> None:
    """Mark the leases that expired, and free their slots. All projects of the database are included.

    Two transactions wait for each other, so that no annotator looks for open items before the slots are free.
    """
    table = tables.assignment
    query = select(table.c.id, table.c.item_id).where(table.c.state == "leased", table.c.expires < now)
    rows = connection.execute(query.order_by(table.c.id).with_for_update()).all()
    if rows:
        ids = [row.id for row in rows]
        connection.execute(update(table).where(table.c.id.in_(ids)).values(state="expired"))
        update_item_states(connection, {row.item_id for row in rows})


def assign(
    connection: Connection, project: Project, annotator_id: int, count: int, now: float
) -> list[Assignment] | None:
    """Return up to `count` assignments: the annotator's live leases, then new ones.

    None if expired leases must be marked first, in a transaction of its own, which may wait for those of others.
    """
    if connection.execute(_EXPIRED, {"now": now}).first() is not None:
        return None
    annotator = lock_annotator(connection, project, annotator_id)
    expires = now + project.settings.lease_minutes * 60
    guideline = current_guideline(connection, project)
    rows = _live_leases(connection, annotator_id, now)[:count]
    for row in rows:
        if row.guideline != guideline or row.expires - now < (expires - now) / 2:
            values = {"guideline": guideline, "expires": expires}
            connection.execute(update(tables.assignment).where(tables.assignment.c.id == row.id).values(values))
    ids = [row.id for row in rows]
    queues = matching_queues(connection, project, annotator)
    for draws in range(annotator.draws, annotator.draws + count - len(ids)):
        generator = random.Random(canonical([project.name, annotator.name, draws]))
        drawn = _draw(connection, project, annotator, queues, generator)
        if drawn is None:
            break
        ids.append(_lease(connection, drawn, annotator_id, generator, expires=expires, guideline=guideline))
        connection.execute(_SET_DRAWS, {"annotator_id": annotator_id, "drawn": draws + 1})
    return [find_assignment(connection, project, annotator_id, number) for number in ids]


def _live_leases(connection: Connection, annotator_id: int, now: float) -> list[Row[Any]]:
    """Return the live leases of an annotator: reopened judgments first, then in the order of ids."""
    rows = connection.execute(_LIVE, {"annotator_id": annotator_id, "now": now})
    return sorted(rows, key=lambda row: (row.reopens is None, row.id))


def _lease(
    connection: Connection, drawn: Draw, annotator_id: int, generator: random.Random, *, expires: float, guideline: str
) -> int:
    """Insert a lease with the order in which the completions are shown, and return its id."""
    order = drawn.order or _shuffled_completions(connection, drawn.item_id, generator)
    values = {
        "annotator_id": annotator_id,
        "item_id": drawn.item_id,
        "order": order,
        "state": "leased",
        "takes_slot": drawn.takes_slot,
        "is_repeat": drawn.order is not None,
        "guideline": guideline,
        "expires": expires,
    }
    row_id: int = connection.execute(_INSERT, values).scalar_one()
    if drawn.takes_slot:
        add_lease(connection, drawn.item_id)
    return row_id


def _shuffled_completions(connection: Connection, item_id: int, generator: random.Random) -> tuple[int, ...]:
    """Return the completion ids of an item in random order."""
    ids = list(completion_ids(connection, item_id))
    generator.shuffle(ids)
    return tuple(ids)


# --- which item -----------------------------------------------------------------------------------------------------


def matching_queues(connection: Connection, project: Project, annotator: Row[Any]) -> list[int]:
    """Return the ids of the queues whose language and field an annotator is asked about.

    `en` includes `en-GB`. Items of unknown language or without a field are for everyone.
    """
    return [
        row.id
        for row in connection.execute(_QUEUES, {"project_id": project.id})
        if _speaks(annotator.languages, row.language)
        and (not annotator.fields or not row.field or row.field in annotator.fields)
    ]


def _speaks(languages: Sequence[str], language: str) -> bool:
    tag = language.lower()
    return not languages or not tag or any(tag == own.lower() or tag.startswith(f"{own.lower()}-") for own in languages)


def _draw(
    connection: Connection, project: Project, annotator: Row[Any], queues: Sequence[int], generator: random.Random
) -> Draw | None:
    """Draw the next item for an annotator, or None if nothing is left."""
    settings = project.settings
    if settings.qualification is not None and annotator.qualification != "passed":
        if annotator.qualification == "failed":
            return None
        test = connection.execute(qualification_items(queues)).scalars().all()
        if test:
            had = _taken(annotator.id).where(tables.assignment.c.item_id.in_(test))
            taken = set(connection.execute(had).scalars())
            left = [item_id for item_id in test if item_id not in taken]
            return Draw(left[0]) if left else None
    chance = generator.random()
    gold_share = settings.gold.share if settings.gold is not None else 0.0
    drawn: Draw | None = None
    if chance < gold_share:
        drawn = _draw_gold(connection, annotator, queues)
    elif chance < gold_share + settings.repeats:
        drawn = _draw_repeat(connection, annotator, generator)
    return drawn or _draw_open(connection, annotator, queues)


def qualification_items(queues: Sequence[int]) -> Select[Any]:
    """Return the query of the ids of the qualification test in some queues, in the order of ids."""
    table = tables.item
    return select(table.c.id).where(table.c.queue_id.in_(queues), table.c.kind == "qualification").order_by(table.c.id)


def _taken(annotator_id: int) -> Select[Any]:
    """Return the query of the items that an annotator has or answered."""
    table = tables.assignment
    return select(table.c.item_id).where(table.c.annotator_id == annotator_id, table.c.state != "expired")


@functools.cache
def _available(kind: str, part: int = 0) -> Select[Any]:
    """Return the query of the items of a queue that an annotator may get, the first one first.

    Its parameters are those of `_parameters`; `part` tells those of several queues apart.
    """
    table, author, taken = tables.item, tables.item_author, tables.assignment
    had = (taken.c.annotator_id == bindparam("annotator_id"), taken.c.item_id == table.c.id, taken.c.state != "expired")
    query = select(table.c.id, table.c.missing, table.c.priority, table.c.queue_id).where(
        table.c.queue_id == bindparam(f"queue_{part}"),
        table.c.kind == kind,
        ~exists().where(*had),
        ~exists().where(author.c.item_id == table.c.id, author.c.name == bindparam("name")),
    )
    if kind == "item":
        query = query.where(table.c.missing > 0)
    return query.order_by(table.c.missing, table.c.priority, table.c.id)


@functools.cache
def _first_of_queues(kind: str, count: int) -> Select[Any] | CompoundSelect[Any]:
    """Return the query of the first available item of each of `count` queues."""
    parts = [select(_available(kind, part).limit(1).subquery()) for part in range(count)]
    return union_all(*parts)


@functools.cache
def _count_of_queue() -> Select[Any]:
    limited = _available("item").order_by(None).limit(bindparam("at_most")).subquery()
    return select(func.count()).select_from(limited)


def _parameters(annotator: Row[Any], *queues: int) -> dict[str, Any]:
    return {"annotator_id": annotator.id, "name": annotator.name} | {f"queue_{i}": q for i, q in enumerate(queues)}


def count_available(connection: Connection, annotator: Row[Any], queues: Sequence[int], limit: int) -> int:
    """Return the number of open items that an annotator may get, up to a limit."""
    count = 0
    for queue_id in queues:
        values = _parameters(annotator, queue_id) | {"at_most": limit - count}
        count += connection.execute(_count_of_queue(), values).scalar_one()
        if count >= limit:
            break
    return count


def _first(connection: Connection, annotator: Row[Any], queues: Sequence[int], kind: str) -> Row[Any] | None:
    """Return the first available item over all queues, or None if there is none."""
    found: list[Row[Any]] = []
    for start in range(0, len(queues), MAX_QUEUES):
        part = queues[start : start + MAX_QUEUES]
        found += connection.execute(_first_of_queues(kind, len(part)), _parameters(annotator, *part)).all()
    return min(found, key=lambda row: (row.missing, row.priority, row.id), default=None)


@functools.cache
def _next_unlocked() -> Select[Any]:
    return _available("item").with_for_update(of=tables.item, skip_locked=True, key_share=True).limit(1)


@functools.cache
def _this_one() -> Select[Any]:
    return (
        _available("item")
        .where(tables.item.c.id == bindparam("item_id"))
        .with_for_update(of=tables.item, key_share=True)
    )


def _draw_open(connection: Connection, annotator: Row[Any], queues: Sequence[int]) -> Draw | None:
    """Draw and lock the open item that lacks the fewest judgments, so that items are completed one after the other."""
    is_sqlite = connection.dialect.name == "sqlite"  # its writers exclude each other
    while True:
        first = _first(connection, annotator, queues, "item")
        if first is None or is_sqlite:
            return None if first is None else Draw(first.id, takes_slot=True)
        # Others may be about to take the same item: take the next one that nobody has locked. If there is none, wait
        # for the first, as it may still have an open slot afterwards.
        values = _parameters(annotator, first.queue_id)
        locked = connection.execute(_next_unlocked(), values).first()
        if locked is None:
            locked = connection.execute(_this_one(), values | {"item_id": first.id}).first()
        if locked is not None:
            return Draw(locked.id, takes_slot=True)


def _draw_gold(connection: Connection, annotator: Row[Any], queues: Sequence[int]) -> Draw | None:
    first = _first(connection, annotator, queues, "gold")
    return None if first is None else Draw(first.id)


def _draw_repeat(connection: Connection, annotator: Row[Any], generator: random.Random) -> Draw | None:
    """Draw an item that the annotator judged earlier and that was not repeated, in reversed order."""
    judgment, item, taken = tables.judgment, tables.item, tables.assignment
    repeated = exists().where(taken.c.annotator_id == annotator.id, taken.c.item_id == item.c.id, taken.c.is_repeat)
    query = (
        current_judgments()
        .with_only_columns(judgment.c.item_id, judgment.c.order, maintain_column_froms=True)
        .join(item, item.c.id == judgment.c.item_id)
        .where(judgment.c.annotator_id == annotator.id, ~judgment.c.is_skipped, item.c.kind == "item", ~repeated)
    )
    rows = connection.execute(query).all()[:-REPEAT_DISTANCE]
    if not rows:
        return None
    row = generator.choice(rows)
    return Draw(row.item_id, order=tuple(reversed(row.order)))


# --- one assignment -------------------------------------------------------------------------------------------------


def find_assignment(connection: Connection, project: Project, annotator_id: int, assignment_id: int) -> Assignment:
    """Return an assignment of the annotator.

    Raises:
        NotFoundError: It does not exist, or belongs to another annotator.
    """
    row = connection.execute(_ONE, {"assignment_id": assignment_id, "annotator_id": annotator_id}).first()
    if row is None:
        raise NotFoundError("assignment", assignment_id)
    item = find_item(connection, project, row.item_id)
    judgment_id = row.judgment_id or row.reopens
    judgment = tables.judgment
    answered = (
        None if judgment_id is None else connection.execute(select(judgment).where(judgment.c.id == judgment_id)).one()
    )
    by_id = {completion.id: replace(completion, source="") for completion in item.completions}
    return Assignment(
        id=row.id,
        item=replace(
            item, completions=tuple(by_id[n] for n in row.order), kind="item", answer=(), explanation="", extra={}
        ),
        order=tuple(row.order),
        task=project.settings.task,
        criteria=tuple(project.settings.criteria),
        is_qualification=item.kind == "qualification",
        is_disputed=row.is_contradicted,
        guideline=row.guideline,
        expires=row.expires,
        is_open=row.state != "done",
        judgment_id=judgment_id,
        answer=None if answered is None else read_answer(answered.tiers, answered.answer),
    )


def reopen(connection: Connection, project: Project, annotator_id: int, judgment_id: int, now: float) -> Assignment:
    """Lease an annotator's own judgment again. If it was superseded, the judgment that is current is leased.

    Raises:
        NotFoundError: It does not exist, belongs to another annotator, or is part of the qualification test, whose
            right answers were shown.
    """
    lock_annotator(connection, project, annotator_id)
    row = _current_version(connection, annotator_id, judgment_id)
    kind = connection.execute(select(tables.item.c.kind).where(tables.item.c.id == row.item_id)).scalar_one()
    if kind == "qualification":
        raise NotFoundError("judgment", judgment_id, hint="A qualification item is answered once.")
    table = tables.assignment
    leased = next((live.id for live in _live_leases(connection, annotator_id, now) if live.reopens == row.id), None)
    if leased is None:
        values = {
            "annotator_id": annotator_id,
            "item_id": row.item_id,
            "order": row.order,
            "state": "leased",
            "takes_slot": False,
            "is_repeat": row.is_repeat,
            "reopens": row.id,
            "guideline": current_guideline(connection, project),
            "expires": now + project.settings.lease_minutes * 60,
        }
        leased = connection.execute(table.insert().values(values).returning(table.c.id)).scalar_one()
    return find_assignment(connection, project, annotator_id, leased)


def _current_version(connection: Connection, annotator_id: int, judgment_id: int) -> Row[Any]:
    """Return an annotator's judgment, or the latest one that supersedes it."""
    table = tables.judgment
    query = select(table).where(table.c.annotator_id == annotator_id)
    row = connection.execute(query.where(table.c.id == judgment_id)).first()
    if row is None:
        raise NotFoundError("judgment", judgment_id)
    while (later := connection.execute(query.where(table.c.supersedes == row.id)).first()) is not None:
        row = later
    return row


def current_judgment_of(connection: Connection, annotator_id: int, item_id: int, *, is_repeat: bool) -> int | None:
    """Return the id of an annotator's current judgment of an item, or of its repeat, or None if there is none."""
    values = {"annotator_id": annotator_id, "item_id": item_id, "repeat": is_repeat}
    found: int | None = connection.execute(_CURRENT, values).scalar()
    return found
