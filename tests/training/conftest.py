"""Fixtures that replace stages with light stand-ins."""

from __future__ import annotations

from tests.support.stand_ins import calls, recipe_file, set_stage, stand_ins

__all__ = ["calls", "recipe_file", "set_stage", "stand_ins"]  # fixtures
