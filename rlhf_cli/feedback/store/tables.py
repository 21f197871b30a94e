"""The tables of the store. One database holds any number of projects.

All text that users write is stored as JSON with ASCII escapes, so that lone surrogates, NUL and every other character
survive on every database.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)

SCHEMA_VERSION = 1
PREFIX = "rlhf_"  # of every table, so that the store can share a database


class JsonText(TypeDecorator[Any]):
    """A value as JSON text with ASCII escapes. Equal values have equal texts, so that columns can be compared."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Return the JSON text of a value, or None for None."""
        return None if value is None else json.dumps(value, ensure_ascii=True, sort_keys=True, separators=(",", ":"))

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002
        """Return the value of a JSON text, or None for None."""
        return None if value is None else json.loads(value)


metadata = MetaData()


def _reference(table: str) -> ForeignKey:
    return ForeignKey(f"{PREFIX}{table}.id")


store = Table(f"{PREFIX}store", metadata, Column("schema_version", Integer, nullable=False))

project = Table(
    f"{PREFIX}project",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", JsonText, nullable=False, unique=True),
    Column("guideline", String(64), nullable=False, default=""),
    Column("overlap", Integer, nullable=False),
    Column("max_overlap", Integer, nullable=False),
)

guideline = Table(
    f"{PREFIX}guideline",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("project_id", _reference("project"), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("text", JsonText, nullable=False),
    Column("created", String(32), nullable=False),
    UniqueConstraint("project_id", "sha256"),
)

# A language and a field: the items of a queue can be assigned to the same annotators.
queue = Table(
    f"{PREFIX}queue",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("project_id", _reference("project"), nullable=False),
    Column("language", JsonText, nullable=False),
    Column("field", JsonText, nullable=False),
    UniqueConstraint("project_id", "language", "field"),
)

item = Table(
    f"{PREFIX}item",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("project_id", _reference("project"), nullable=False),
    Column("queue_id", _reference("queue"), nullable=False),
    Column("key", String(64), nullable=False),  # SHA-256 of kind, prompt and completions
    Column("prompt_key", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("is_random", Boolean, nullable=False),
    Column("priority", Integer, nullable=False),  # pseudo-random, from the key
    # Derived from judgments, leases and decisions in the transaction that changes them; see `item_state`.
    Column("votes", Integer, nullable=False, default=0),
    Column("leases", Integer, nullable=False, default=0),
    Column("is_contradicted", Boolean, nullable=False, default=False),
    Column("is_decided", Boolean, nullable=False, default=False),
    Column("missing", Integer, nullable=False, default=0),
    # Long columns come last: SQLite reads a row from its start.
    Column("answer", JsonText, nullable=False),  # tiers of indices
    Column("explanation", JsonText, nullable=False),
    Column("extra", JsonText, nullable=False),
    Column("prompt", JsonText, nullable=False),
    UniqueConstraint("project_id", "key"),
    Index(f"{PREFIX}item_by_queue", "queue_id", "kind", "missing", "priority", "id"),
    Index(
        f"{PREFIX}item_contradicted",
        "project_id",
        sqlite_where=text("is_contradicted"),
        postgresql_where=text("is_contradicted"),
    ),
)

item_author = Table(
    f"{PREFIX}item_author",
    metadata,
    Column("item_id", _reference("item"), primary_key=True, autoincrement=False),
    Column("name", JsonText, primary_key=True),
)

completion = Table(
    f"{PREFIX}completion",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("item_id", _reference("item"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("text", JsonText, nullable=False),
    Column("source", JsonText, nullable=False),
    UniqueConstraint("item_id", "position"),
)

annotator = Table(
    f"{PREFIX}annotator",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("project_id", _reference("project"), nullable=False),
    Column("name", JsonText, nullable=False),
    Column("pseudonym", JsonText, nullable=False),
    Column("role", String(16), nullable=False),
    Column("languages", JsonText, nullable=False),
    Column("fields", JsonText, nullable=False),
    Column("source", String(8), nullable=False),
    Column("is_active", Boolean, nullable=False, default=True),
    Column("draws", Integer, nullable=False, default=0),  # assignments drawn so far; part of the random seed
    Column("qualification", String(8), nullable=False, default=""),  # passed, failed, or "" if not complete
    UniqueConstraint("project_id", "name"),
)

invite = Table(
    f"{PREFIX}invite",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("annotator_id", _reference("annotator"), nullable=False, index=True),
    Column("token_sha256", String(64), nullable=False, unique=True),
    Column("is_valid", Boolean, nullable=False, default=True),
    Column("created", String(32), nullable=False),
)

session = Table(
    f"{PREFIX}session",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("annotator_id", _reference("annotator"), nullable=False, index=True),
    Column("token_sha256", String(64), nullable=False, unique=True),
    Column("expires", Float, nullable=False),  # seconds since 1970
    Column("is_valid", Boolean, nullable=False, default=True),
)

assignment = Table(
    f"{PREFIX}assignment",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("annotator_id", _reference("annotator"), nullable=False),
    Column("item_id", _reference("item"), nullable=False),
    Column("order", JsonText, nullable=False),  # completion ids
    Column("state", String(8), nullable=False),  # leased, done or expired
    Column("takes_slot", Boolean, nullable=False),  # counts towards the overlap of the item
    Column("is_repeat", Boolean, nullable=False, default=False),
    Column("reopens", Integer, nullable=True),  # the judgment that is answered again
    Column("judgment_id", Integer, nullable=True),
    Column("guideline", String(64), nullable=False, default=""),
    Column("expires", Float, nullable=False),  # seconds since 1970
    Index(f"{PREFIX}assignment_by_annotator", "annotator_id", "item_id"),
    Index(f"{PREFIX}assignment_by_item", "item_id"),
    Index(
        f"{PREFIX}assignment_leased",
        "expires",
        sqlite_where=text("state = 'leased'"),
        postgresql_where=text("state = 'leased'"),
    ),
    Index(
        f"{PREFIX}assignment_live",
        "annotator_id",
        sqlite_where=text("state = 'leased'"),
        postgresql_where=text("state = 'leased'"),
    ),
)

judgment = Table(
    f"{PREFIX}judgment",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("item_id", _reference("item"), nullable=False, index=True),
    Column("annotator_id", _reference("annotator"), nullable=False),
    Column("assignment_id", _reference("assignment"), nullable=False, index=True),
    Column("key", JsonText, nullable=False),  # idempotency key
    Column("task", String(16), nullable=False),
    Column("tiers", JsonText, nullable=False),  # completion ids
    Column("is_skipped", Boolean, nullable=False),
    Column("answer", JsonText, nullable=False),  # the other fields of the answer
    Column("order", JsonText, nullable=False),
    Column("guideline", String(64), nullable=False),
    Column("is_repeat", Boolean, nullable=False),
    Column("source", String(8), nullable=False),
    Column("principle", JsonText, nullable=False),
    Column("supersedes", Integer, nullable=True, unique=True),  # an earlier judgment
    Column("created", String(40), nullable=False),
    UniqueConstraint("annotator_id", "key"),
    Index(f"{PREFIX}judgment_by_annotator", "annotator_id", "id"),
)

decision = Table(
    f"{PREFIX}decision",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("item_id", _reference("item"), nullable=False, index=True),
    Column("expert_id", _reference("annotator"), nullable=False),
    Column("tiers", JsonText, nullable=False),
    Column("rationale", JsonText, nullable=False),
    Column("created", String(32), nullable=False),
)
