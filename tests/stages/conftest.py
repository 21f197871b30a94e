"""Fixtures: projects for the stages."""

from __future__ import annotations

from tests.support.exports import base_folder, run_export
from tests.support.families import make_family
from tests.support.feedback_project import feedback_project
from tests.support.processes import launch_project
from tests.support.training_project import training_project

__all__ = [
    "base_folder",
    "feedback_project",
    "launch_project",
    "make_family",
    "run_export",
    "training_project",
]  # fixtures
