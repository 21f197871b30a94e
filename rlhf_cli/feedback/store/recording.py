"""Store judgments that were made elsewhere: imported ones, and those of models. A few statements store many."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, select, update

from rlhf_cli.errors import DataError
from rlhf_cli.feedback.store import tables
from rlhf_cli.feedback.store.annotators import add_annotator, find_annotator
from rlhf_cli.feedback.store.content import answer_values, canonical, check_answer, item_key, sha256, timestamp
from rlhf_cli.feedback.store.errors import NotFoundError
from rlhf_cli.feedback.store.item_state import current_judgments, update_item_states
from rlhf_cli.feedback.store.projects import Project
from rlhf_cli.feedback.store.records import RecordResult
from rlhf_cli.feedback.types import WHOLE_ITEM, Answer, NewJudgment

Place = tuple[int, int, str]  # annotator, item and principle: one judgment of a place is current, beside repeats


class _NewRow(NamedTuple):
    """A judgment with the ids of its item, its annotator and its completions."""

    judgment: NewJudgment
    item_id: int
    annotator_id: int
    completions: Sequence[int]
    answer: Answer
    order: tuple[int, ...]
    key: str

    @property
    def place(self) -> Place:
        return self.annotator_id, self.item_id, self.judgment.principle


def record(connection: Connection, project: Project, judgments: Sequence[NewJudgment], now: float) -> RecordResult:
    """Store judgments that were imported or made by a model. Equal ones are stored once.

    Another judgment of the same annotator about the same item, by the same principle, supersedes the earlier one. With
    a key, it is a repeat: datasets have several comparisons of the same texts.
    """
    # Imports are serialized by the row of the project, so that two of them do not store the same judgment.
    connection.execute(select(tables.project.c.id).where(tables.project.c.id == project.id).with_for_update())
    rows = {(row.annotator_id, row.key): row for row in _to_rows(connection, project, judgments)}
    for known in _known_keys(connection, rows.keys()):
        del rows[known]
    current = _current_ids(connection, {row.item_id for row in rows.values()})
    batch: dict[Place, _NewRow] = {}
    for row in rows.values():
        if row.place in batch:  # it supersedes or repeats a judgment that needs its id first
            _insert(connection, list(batch.values()), current, now)
            batch = {}
        batch[row.place] = row
    _insert(connection, list(batch.values()), current, now)
    update_item_states(connection, {row.item_id for row in rows.values()})
    return RecordResult(len(rows), len(judgments) - len(rows))


def _to_rows(connection: Connection, project: Project, judgments: Sequence[NewJudgment]) -> Iterable[_NewRow]:
    """Yield the judgments with ids. Annotators are added if needed.

    Raises:
        NotFoundError: An item does not exist.
        DataError: An answer does not fit its item, or a name belongs to both a person and a model.
    """
    item_ids = _item_ids(connection, project, judgments)
    completions: dict[int, list[int]] = {}
    table = tables.completion
    query = select(table.c.item_id, table.c.id).where(table.c.item_id.in_(set(item_ids)))
    for found in connection.execute(query.order_by(table.c.item_id, table.c.position)):
        completions.setdefault(found.item_id, []).append(found.id)
    annotators: dict[tuple[str, str], int] = {}
    for judgment, item_id in zip(judgments, item_ids, strict=True):
        ids = completions[item_id]
        check_answer(judgment.answer, judgment.task, range(len(ids)), whole=WHOLE_ITEM)
        named = judgment.annotator, judgment.source
        if named not in annotators:
            annotators[named] = _annotator_id(connection, project, judgment)
        answer = _with_ids(judgment.answer, ids)
        order = tuple(ids[index] for index in judgment.order)
        key = _content_key(judgment, item_id, answer, order)
        yield _NewRow(judgment, item_id, annotators[named], ids, answer, order, key)


def _item_ids(connection: Connection, project: Project, judgments: Sequence[NewJudgment]) -> list[int]:
    """Return the id of the item of each judgment."""
    table = tables.item
    wanted = [item if isinstance(item, int) else item_key(item) for item in (judgment.item for judgment in judgments)]
    ids = {value for value in wanted if isinstance(value, int)}
    keys = {value for value in wanted if isinstance(value, str)}
    query = select(table.c.id, table.c.key).where(
        table.c.project_id == project.id, table.c.id.in_(ids) | table.c.key.in_(keys)
    )
    found: dict[int | str, int] = {}
    for row in connection.execute(query):
        found |= {row.id: row.id, row.key: row.id}
    for value, judgment in zip(wanted, judgments, strict=True):
        if value not in found:
            name = judgment.item if isinstance(judgment.item, int) else str(judgment.item.prompt)[:80]
            raise NotFoundError("item", name, hint="Add the item first.")
    return [found[value] for value in wanted]


def _annotator_id(connection: Connection, project: Project, judgment: NewJudgment) -> int:
    found = find_annotator(connection, project, judgment.annotator)
    if found is None:
        found = add_annotator(connection, project, judgment.annotator, source=judgment.source)
    if found.source != judgment.source:
        message = f"{judgment.annotator} is stored as {found.source}; found a judgment with source {judgment.source}."
        raise DataError("feedback.invalid-annotator", message, hint="Use different names for people and models.")
    return found.id


def _with_ids(answer: Answer, completions: Sequence[int]) -> Answer:
    """Return an answer with completion ids instead of indices."""
    return replace(
        answer,
        tiers=tuple(tuple(completions[index] for index in tier) for tier in answer.tiers),
        criteria={completions[index]: ratings for index, ratings in answer.criteria.items()},
        flags={0 if index == WHOLE_ITEM else completions[index]: flags for index, flags in answer.flags.items()},
    )


def _content_key(judgment: NewJudgment, item_id: int, answer: Answer, order: Sequence[int]) -> str:
    if judgment.key:
        return f"record-{sha256(canonical([item_id, judgment.key]))}"
    content = [item_id, judgment.task, answer.tiers, answer_values(answer), order, judgment.principle]
    return f"record-{sha256(canonical([*content, judgment.guideline, judgment.created]))}"


def _known_keys(connection: Connection, keys: Collection[tuple[int, str]]) -> set[tuple[int, str]]:
    """Return those keys of annotators under which a judgment is stored."""
    table = tables.judgment
    query = select(table.c.annotator_id, table.c.key).where(table.c.key.in_({key for _, key in keys}))
    return {(row.annotator_id, row.key) for row in connection.execute(query)}.intersection(keys)


def _current_ids(connection: Connection, item_ids: Collection[int]) -> dict[Place, int]:
    """Return the current judgment of each place, without repeats."""
    table = tables.judgment
    query = current_judgments().where(table.c.item_id.in_(item_ids), ~table.c.is_repeat)
    return {(row.annotator_id, row.item_id, row.principle): row.id for row in connection.execute(query)}


def _insert(connection: Connection, rows: Sequence[_NewRow], current: dict[Place, int], now: float) -> None:
    """Insert judgments of different places, and put their ids into `current`."""
    if not rows:
        return
    assigned, values = [], []
    repeats = [bool(row.judgment.key) and row.place in current for row in rows]
    for row, is_repeat in zip(rows, repeats, strict=True):
        ids = {"annotator_id": row.annotator_id, "item_id": row.item_id, "is_repeat": is_repeat}
        order = list(row.order or row.completions)
        assigned.append({**ids, "order": order, "state": "done", "takes_slot": not is_repeat, "expires": now})
        values.append({**ids, **_values(row, now), "supersedes": None if is_repeat else current.get(row.place)})
    table = tables.assignment
    statement = table.insert().returning(table.c.id, sort_by_parameter_order=True)
    assignment_ids = list(connection.execute(statement, assigned).scalars())
    for value, assignment_id in zip(values, assignment_ids, strict=True):
        value["assignment_id"] = assignment_id
    inserted = tables.judgment.insert().returning(tables.judgment.c.id, sort_by_parameter_order=True)
    judgment_ids = list(connection.execute(inserted, values).scalars())
    connection.execute(
        update(table).where(table.c.id == bindparam("assigned")).values(judgment_id=bindparam("judged")),
        [{"assigned": a, "judged": j} for a, j in zip(assignment_ids, judgment_ids, strict=True)],
    )
    for row, is_repeat, judgment_id in zip(rows, repeats, judgment_ids, strict=True):
        if not is_repeat:
            current[row.place] = judgment_id


def _values(row: _NewRow, now: float) -> dict[str, Any]:
    judgment = row.judgment
    return {
        "key": row.key,
        "task": judgment.task,
        "tiers": row.answer.tiers,
        "is_skipped": bool(row.answer.skip_reason),
        "answer": answer_values(row.answer),
        "order": row.order,
        "guideline": judgment.guideline,
        "source": judgment.source,
        "principle": judgment.principle,
        "created": judgment.created or timestamp(now),
    }
