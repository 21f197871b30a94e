"""Fixtures of human feedback: a PostgreSQL server, and stores on each kind of database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import postgresql as support
from tests.support.feedback_store import Stores


@pytest.fixture(scope="session")
def postgresql() -> Iterator[support.Server]:
    """Start a PostgreSQL server. Without its programs, the test is skipped, or fails if RLHF_STRICT is 1."""
    with support.running_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a new, empty store, once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        return str(tmp_path / "feedback.db")
    server: support.Server = request.getfixturevalue("postgresql")
    return server.create_schema()


@pytest.fixture
def stores(store_url: str) -> Iterator[Stores]:
    """Open stores on one database with `stores(**settings)`; `stores.clock.now` is their time."""
    with Stores(store_url).closing() as opened:
        yield opened
