"""Fixtures that create runs."""

from __future__ import annotations

from tests.support.runs import complete, new_run

__all__ = ["complete", "new_run"]
