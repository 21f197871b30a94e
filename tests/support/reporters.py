"""A reporter that records its calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class RecordingReporter:
    """Record each call as a tuple and show nothing."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def begin(self, total: int, unit: str) -> None:
        self.calls.append(("begin", total, unit))

    def phase(self, text: str) -> None:
        self.calls.append(("phase", text))

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.calls.append(("step", step, dict(metrics)))

    def info(self, text: str) -> None:
        self.calls.append(("info", text))

    def warning(self, text: str) -> None:
        self.calls.append(("warning", text))

    def stage(self, stage: str, run: Any) -> None:  # noqa: ARG002 - the signature of StageReporter
        self.calls.append(("stage", stage))

    def done(self, result: Any) -> None:
        self.calls.append(("done", result))

    def texts(self, kind: str) -> list[str]:
        """Return the texts of all calls of `kind`: "info" or "warning"."""
        return [call[1] for call in self.calls if call[0] == kind]
