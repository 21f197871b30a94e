"""Runs in a temporary folder, told to a reporter that keeps silent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.runs.run import Run

NewRun = Callable[..., Run]


class Silent:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def begin(self, total: int, unit: str) -> None:
        self.told.append(("begin", total, unit))

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.told.append(("step", step, dict(metrics)))

    def say(self, text: str) -> None:
        self.told.append(("say", text))

    def warn(self, text: str) -> None:
        self.told.append(("warn", text))


@pytest.fixture
def new_run(tmp_path: Path) -> NewRun:
    def make(stage: str = "sft", name: str = "bot", *, smoke: bool = False) -> Run:
        return Run.create(tmp_path, name, stage, smoke=smoke, base="org/model", reporter=Silent())

    return make


@pytest.fixture
def complete(new_run: NewRun) -> Callable[..., Run]:
    def make(stage: str = "sft", name: str = "bot", *, smoke: bool = False) -> Run:
        run = new_run(stage, name, smoke=smoke)
        run.complete({"loss": 1.5}, {})
        return run

    return make
