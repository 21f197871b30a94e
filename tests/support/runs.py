"""Runs in a temporary folder, with a reporter that records its calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_cli.runs.run import Run
from tests.support.reporters import RecordingReporter

NewRun = Callable[..., Run]


@pytest.fixture
def new_run(tmp_path: Path) -> NewRun:
    """Return a function that opens a run in `tmp_path`."""

    def make(stage: str = "sft", name: str = "bot", *, smoke: bool = False) -> Run:
        return Run.create(tmp_path, name, stage, smoke=smoke, reporter=RecordingReporter())

    return make


@pytest.fixture
def complete(new_run: NewRun) -> Callable[..., Run]:
    """Return a function that opens a run and completes it."""

    def make(stage: str = "sft", name: str = "bot", *, smoke: bool = False) -> Run:
        run = new_run(stage, name, smoke=smoke)
        run.complete({"loss": 1.5}, {})
        return run

    return make
