"""Fixtures: a project with data for every stage that trains, and a tiny reward model."""

from __future__ import annotations

from tests.support.families import make_family
from tests.support.tiny_policy import base_folder, make_adapter, reward_folder
from tests.support.training_project import training_project

__all__ = ["base_folder", "make_adapter", "make_family", "reward_folder", "training_project"]  # fixtures
