"""Fixtures that write recipes and find their issues."""

from __future__ import annotations

from tests.support.recipe_files import find_issues, write_recipe

__all__ = ["find_issues", "write_recipe"]  # fixtures
