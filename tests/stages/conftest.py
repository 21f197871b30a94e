"""Fixtures: projects for the stages."""

from __future__ import annotations

from tests.support.families import make_family
from tests.support.processes import launch_project
from tests.support.training_project import training_project

__all__ = ["launch_project", "make_family", "training_project"]  # fixtures
