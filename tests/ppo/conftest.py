"""Fixtures of a tiny policy."""

from __future__ import annotations

from tests.support.tiny_policy import (
    _quiet,
    base_folder,
    make_adapter,
    make_cast,
    make_run,
    make_trainer,
    ragged,
    reward_folder,
    sft_folder,
)

__all__ = [
    "_quiet",
    "base_folder",
    "make_adapter",
    "make_cast",
    "make_run",
    "make_trainer",
    "ragged",
    "reward_folder",
    "sft_folder",
]  # fixtures
