"""Runs in a temporary folder, told to a reporter that keeps silent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_cli.runs.run import Run
from tests.support.reporters import RecordingReporter

NewRun = Callable[..., Run]


@pytest.fixture
def new_run(tmp_path: Path) -> NewRun:
    def make(stage: str = "sft", name: str = "bot", *, smoke: bool = False) -> Run:
        return Run.create(tmp_path, name, stage, smoke=smoke, base="org/model", reporter=RecordingReporter())

    return make


@pytest.fixture
def complete(new_run: NewRun) -> Callable[..., Run]:
    def make(stage: str = "sft", name: str = "bot", *, smoke: bool = False) -> Run:
        run = new_run(stage, name, smoke=smoke)
        run.complete({"loss": 1.5}, {})
        return run

    return make
