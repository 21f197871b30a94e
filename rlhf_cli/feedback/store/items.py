"""Add items to a project, and read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Select, bindparam, select, update

from rlhf_cli.errors import DataError
from rlhf_cli.feedback.store import tables
from rlhf_cli.feedback.store.content import as_tiers, item_key, read_item, stable_prompt_key
from rlhf_cli.feedback.store.errors import NotFoundError
from rlhf_cli.feedback.store.projects import Project
from rlhf_cli.feedback.store.records import AddResult
from rlhf_cli.feedback.types import MAX_NAME, Item, NewItem

CHUNK = 500  # items per statement
PRIORITIES = 2**31  # number of different priorities


def add_items(connection: Connection, project: Project, items: Sequence[NewItem]) -> AddResult:
    """Add items that the project does not have yet."""
    for item in items:
        _check_item(item, project)
    # Imports are serialized by the row of the project, so that two of them do not add the same item.
    connection.execute(select(tables.project.c.id).where(tables.project.c.id == project.id).with_for_update())
    keys = [item_key(item) for item in items]
    known = _find_ids(connection, project, keys)
    new = {key: item for key, item in zip(keys, items, strict=True) if key not in known}
    _correct_answers(connection, {known[key]: item for key, item in zip(keys, items, strict=True) if key in known})
    known |= _insert(connection, project, new)
    return AddResult(len(new), len(items) - len(new), tuple(known[key] for key in keys))


def _correct_answers(connection: Connection, items: Mapping[int, NewItem]) -> None:
    """Store the right answers, by id of the item, that differ from the stored ones: their file may be corrected."""
    table = tables.item
    ids = [item_id for item_id, item in items.items() if item.kind != "item"]
    stored = select(table.c.id, table.c.answer, table.c.explanation).where(table.c.id.in_(ids))
    for row in connection.execute(stored).all() if ids else ():
        item = items[row.id]
        if (as_tiers(row.answer), row.explanation) != (item.answer, item.explanation):
            values = {"answer": item.answer, "explanation": item.explanation}
            connection.execute(update(table).where(table.c.id == row.id).values(values))


def _check_item(item: NewItem, project: Project) -> None:
    count = len(item.completions)
    problem = ""
    if count < 2:
        problem = f"found {count} completions, expected at least 2"
    elif item.kind == "item" and project.settings.task == "pair" and count != 2:
        problem = f"found {count} completions, expected 2 because feedback.task is pair"
    elif item.kind != "item" and sorted(index for tier in item.answer for index in tier) != list(range(count)):
        problem = f"found the right tiers {item.answer}, expected each index from 0 to {count - 1} once"
    elif max(len(item.language), len(item.field)) > MAX_NAME:
        problem = f"language or field is too long; expected at most {MAX_NAME} characters"
    if problem:
        raise DataError("feedback.invalid-item", f"invalid item: {problem}.")


def _find_ids(connection: Connection, project: Project, keys: Sequence[str]) -> dict[str, int]:
    table = tables.item
    query = select(table.c.key, table.c.id).where(table.c.project_id == project.id, table.c.key.in_(keys))
    return {row.key: row.id for row in connection.execute(query)}


def _insert(connection: Connection, project: Project, items: Mapping[str, NewItem]) -> dict[str, int]:
    """Insert items by key, and return their ids by key."""
    if not items:
        return {}
    queues = {group: _queue(connection, project, *group) for group in {(i.language, i.field) for i in items.values()}}
    rows = [
        {
            "project_id": project.id,
            "queue_id": queues[item.language, item.field],
            "key": key,
            "prompt_key": stable_prompt_key(item),
            "kind": item.kind,
            "prompt": item.prompt,
            "answer": item.answer,
            "explanation": item.explanation,
            "is_random": item.is_random,
            "extra": dict(item.extra),
            "priority": int(key[:16], 16) % PRIORITIES,
            "missing": project.settings.overlap if item.kind == "item" else 0,
        }
        for key, item in items.items()
    ]
    statement = tables.item.insert().returning(tables.item.c.id, sort_by_parameter_order=True)
    ids = dict(zip(items, connection.execute(statement, rows).scalars(), strict=True))
    completions = [
        {"item_id": ids[key], "position": position, "text": completion.text, "source": completion.source}
        for key, item in items.items()
        for position, completion in enumerate(item.completions)
    ]
    connection.execute(tables.completion.insert(), completions)
    authors = [{"item_id": ids[key], "name": name} for key, item in items.items() for name in _authors(item)]
    if authors:
        connection.execute(tables.item_author.insert(), authors)
    return ids


def _authors(item: NewItem) -> list[str]:
    """Return the names in the column `author`: one, or a list."""
    author = item.extra.get("author") or []
    names = [author] if isinstance(author, str) else author
    return sorted({str(name)[:MAX_NAME] for name in names})


def _queue(connection: Connection, project: Project, language: str, field: str) -> int:
    table = tables.queue
    query = select(table.c.id).where(
        table.c.project_id == project.id, table.c.language == language, table.c.field == field
    )
    found: int | None = connection.execute(query).scalar()
    if found is None:
        values = {"project_id": project.id, "language": language, "field": field}
        found = connection.execute(table.insert().values(values).returning(table.c.id)).scalar_one()
    return found


_item, _completion, _queues = tables.item, tables.completion, tables.queue
# Built once: building a statement takes longer than running it.
_ITEMS = select(_item, _queues.c.language, _queues.c.field).join(_queues, _queues.c.id == _item.c.queue_id)
_ITEM = _ITEMS.where(_item.c.id == bindparam("item_id"), _item.c.project_id == bindparam("project_id"))
_COMPLETIONS = select(_completion).where(_completion.c.item_id == bindparam("item_id")).order_by(_completion.c.position)

_COMPLETION_IDS = _COMPLETIONS.with_only_columns(_completion.c.id)


def find_items(connection: Connection, query: Select[Any]) -> list[Item]:
    """Return the items whose ids a query returns, in the order of ids."""
    rows = connection.execute(_ITEMS.where(_item.c.id.in_(query)).order_by(_item.c.id)).all()
    completions: dict[int, list[Any]] = {row.id: [] for row in rows}
    of_items = select(_completion).where(_completion.c.item_id.in_(query))
    for row in connection.execute(of_items.order_by(_completion.c.item_id, _completion.c.position)):
        completions[row.item_id].append(row)
    return [read_item(row, completions[row.id]) for row in rows]


def find_item(connection: Connection, project: Project, item_id: int) -> Item:
    """Return one item of the project."""
    row = connection.execute(_ITEM, {"item_id": item_id, "project_id": project.id}).first()
    if row is None:
        raise NotFoundError("item", item_id)
    return read_item(row, connection.execute(_COMPLETIONS, {"item_id": item_id}).all())


def completion_ids(connection: Connection, item_id: int) -> tuple[int, ...]:
    """Return the ids of an item's completions in their order."""
    return tuple(connection.execute(_COMPLETION_IDS, {"item_id": item_id}).scalars())


def chunks(items: Iterable[Any], size: int = CHUNK) -> Iterable[list[Any]]:
    """Yield the items in lists of `size`."""
    chunk: list[Any] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
