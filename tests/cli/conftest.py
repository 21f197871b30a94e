"""Fixtures that run commands on stand-in stages."""

from __future__ import annotations

from tests.support.catalogue import base
from tests.support.command import rlhf
from tests.support.stand_ins import calls, recipe_file, set_stage, stand_ins

__all__ = ["base", "calls", "recipe_file", "rlhf", "set_stage", "stand_ins"]  # fixtures
