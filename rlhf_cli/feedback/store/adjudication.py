"""Items on which annotators disagree, and the decisions of experts about them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Select, select

from rlhf_cli.errors import DataError
from rlhf_cli.feedback.store import tables
from rlhf_cli.feedback.store.annotators import lock_annotator
from rlhf_cli.feedback.store.content import check_answer, read_judgment, timestamp
from rlhf_cli.feedback.store.item_state import update_item_state, votes_of
from rlhf_cli.feedback.store.items import find_item, find_items
from rlhf_cli.feedback.store.projects import Project
from rlhf_cli.feedback.store.records import DisputedItem
from rlhf_cli.feedback.types import Answer, Decision, Judgment, Tiers


def disputed_ids(project: Project) -> Select[Any]:
    """Return the query of items with enough judgments that contradict each other, and without a decision."""
    table = tables.item
    return select(table.c.id).where(
        table.c.project_id == project.id,
        table.c.is_contradicted,
        ~table.c.is_decided,
        table.c.votes >= project.settings.overlap,
    )


def disputed(connection: Connection, project: Project) -> list[DisputedItem]:
    """Return the disputed items with their judgments; those that get no further judgments come first."""
    missing = max(project.settings.overlap, project.settings.max_overlap)
    items = find_items(connection, disputed_ids(project))
    votes: dict[int, list[Judgment]] = {item.id: [] for item in items}
    for row in votes_of(connection, votes):
        votes[row.item_id].append(read_judgment(row))
    found = [DisputedItem(item, votes[item.id], max(0, missing - len(votes[item.id]))) for item in items]
    return sorted(found, key=lambda entry: (entry.missing, entry.item.id))


def decide(
    connection: Connection, project: Project, expert_id: int, item_id: int, tiers: Tiers, *, rationale: str, now: float
) -> Decision:
    """Store an expert's decision, which outranks the judgments. A later decision outranks an earlier one.

    Raises:
        NotFoundError: The item or the expert does not exist.
        DataError: The annotator is not an expert, or the tiers do not fit the item.
    """
    expert = lock_annotator(connection, project, expert_id)
    if expert.role not in ("expert", "owner"):
        message = f"only experts decide; found {expert.name} with the role {expert.role}."
        hint = "Add an expert with `rlhf annotate user add NAME --expert`."
        raise DataError("feedback.not-an-expert", message, hint=hint)
    item = find_item(connection, project, item_id)
    check_answer(Answer(tiers), "rank", [completion.id for completion in item.completions])
    values = {"item_id": item_id, "expert_id": expert_id, "tiers": tiers, "rationale": rationale}
    created = timestamp(now)
    connection.execute(tables.decision.insert().values(**values, created=created))
    update_item_state(connection, item_id)
    return Decision(item_id, expert_id, tiers, rationale, created)
