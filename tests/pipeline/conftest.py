"""Fixtures: stages replaced with light stand-ins, and projects with everything that a stage can read."""

from __future__ import annotations

from tests.support.full_project import new_project, project
from tests.support.stand_ins import calls, recipe_file, set_stage, stand_ins
from tests.support.training_project import training_project

__all__ = [  # fixtures
    "calls",
    "new_project",
    "project",
    "recipe_file",
    "set_stage",
    "stand_ins",
    "training_project",
]
