"""Fixtures of a tiny policy."""

from __future__ import annotations

from tests.support.families import make_family
from tests.support.tiny_policy import (
    base_folder,
    make_actor_critic,
    make_adapter,
    make_run,
    make_trainer,
    ragged,
    reward_folder,
    sft_folder,
    silence_libraries,
)

__all__ = [
    "base_folder",
    "make_actor_critic",
    "make_adapter",
    "make_family",
    "make_run",
    "make_trainer",
    "ragged",
    "reward_folder",
    "sft_folder",
    "silence_libraries",
]  # fixtures
