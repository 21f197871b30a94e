"""A reporter for benchmarks: it records when each step ended, and prints warnings."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rlhf_cli.pipeline.runner import StageResult
from rlhf_cli.runs.run import Run


class StepTimer:
    """Records each logged step: its number, its end in seconds of a performance counter, and its metrics."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.step_ends: list[float] = []
        self.metrics: list[Mapping[str, float]] = []

    def phase(self, text: str) -> None:
        """Ignore a part of a step."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record a step."""
        self.steps.append(step)
        self.step_ends.append(time.perf_counter())
        self.metrics.append(metrics)

    def warning(self, text: str) -> None:
        """Print a warning, which goes to the worker's log."""
        print(text, flush=True)

    def stage(self, stage: str, run: Run) -> None:
        """Ignore the start of a stage."""

    def begin(self, total: int, unit: str) -> None:
        """Ignore the start of training."""

    def info(self, text: str) -> None:
        """Ignore a message."""

    def done(self, result: StageResult) -> None:
        """Ignore the end of a stage."""
