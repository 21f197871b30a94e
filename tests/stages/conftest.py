"""Fixtures: a project whose stages run in two processes."""

from __future__ import annotations

from tests.support.processes import launch_project

__all__ = ["launch_project"]  # fixtures
