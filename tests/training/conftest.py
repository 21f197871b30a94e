"""Fixtures: a project with data for every stage that trains."""

from __future__ import annotations

from tests.support.training_project import training_project

__all__ = ["training_project"]  # fixtures
