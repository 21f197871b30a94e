"""Fixtures of the page: a store on SQLite with a clock that tests set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.support.browser import running_chromium
from tests.support.feedback_store import Stores


@pytest.fixture
def page_stores(tmp_path: Path) -> Iterator[Stores]:
    """Open stores on one SQLite file; the page itself does not depend on the kind of database."""
    with Stores(str(tmp_path / "feedback.db")).closing() as opened:
        yield opened


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Start a browser. Without chromium, the test is skipped, or fails if RLHF_STRICT is 1.

    One per module: as long as it runs, this thread has a running event loop, in which others cannot start theirs.
    """
    with running_chromium() as browser:
        yield browser
