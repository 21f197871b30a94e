"""Fixtures that write and load recipes."""

from __future__ import annotations

from tests.support.recipe_files import faults_of, write

__all__ = ["faults_of", "write"]  # fixtures
