"""Reporters of running stages: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_cli.cli.output import escape_markup
from rlhf_cli.cli.tables import format_metrics
from rlhf_cli.formatting import format_count, format_duration, format_path, pluralize

if TYPE_CHECKING:
    from rich.console import Console

    from rlhf_cli.pipeline.runner import StageResult
    from rlhf_cli.runs.run import Run

# Metrics shown during training: name, label, format. A narrow terminal drops the last ones first.
LIVE_METRICS = (
    ("loss", "loss", ".3f"),
    ("accuracy", "accuracy", ".2f"),
    ("reward", "reward", ".3f"),
    ("kl", "kl", ".2f"),
    ("response_length", "length", ".0f"),
    ("truncation_rate", "trunc", ".0%"),
    ("repeated_4gram_rate", "repeats", ".0%"),
    ("tokens_per_second", "tok/s", ",.0f"),
)
BAR_WIDTH = 10  # characters
# Characters of a live line beside the metrics and the two step numbers: stage, bar, "/", time left, spaces between.
FIXED_WIDTH = 9 + 1 + BAR_WIDTH + 1 + 1 + 1 + 1 + 7
MAX_PROGRESS_LINES = 20  # per stage, if stdout is not a terminal


class SilentReporter:
    """A reporter that shows nothing, for processes other than the main one."""

    def stage(self, stage: str, run: Run) -> None:
        """Ignore the start of a stage."""

    def begin(self, total: int, unit: str) -> None:
        """Ignore the start of training."""

    def phase(self, text: str) -> None:
        """Ignore a part of a step."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Ignore a step."""

    def info(self, text: str) -> None:
        """Ignore a message."""

    def warning(self, text: str) -> None:
        """Ignore a warning."""

    def done(self, result: StageResult) -> None:
        """Ignore the end of a stage."""


class PlainReporter:
    """A reporter that prints one line per event, and at most MAX_PROGRESS_LINES progress lines per stage.

    Args:
        console: Where to print.
        quiet: Print only warnings and one line at the end of each stage.
    """

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self.console = console
        self.quiet = quiet
        self.name = ""
        self.total = 1  # steps
        self.resumed_step = 0
        self.next_step = 0.0  # from which the next progress line is due
        self.started = time.monotonic()
        self.reported: set[Path] = set()  # runs: a smoke run that a later stage reads is reported once

    def stage(self, stage: str, run: Run) -> None:
        """Print the start of a stage."""
        self.name = stage
        self.resumed_step = run.resumed_step
        self.info(f"{run.name} · {run.version}{' · smoke' if run.smoke else ''}")

    def begin(self, total: int, unit: str) -> None:
        """Print the number of steps."""
        self.total = max(total, 1)
        self.next_step = 0.0
        self.started = time.monotonic()
        self.info(format_count(total, unit))

    def phase(self, text: str) -> None:
        """Ignore a part of a step: its line would be of no use when the step is done."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print a step with its metrics and the time left, if a line is due."""
        if step < self.next_step and step != self.total:  # not every step is logged
            return
        self.next_step = step + self.total / MAX_PROGRESS_LINES
        elapsed = time.monotonic() - self.started
        left = elapsed / max(step - self.resumed_step, 1) * (self.total - step)
        self.info(f"{step}/{self.total}  {_format_live(metrics)}  {format_duration(left)} left")

    def info(self, text: str) -> None:
        """Print a message."""
        if not self.quiet:
            self._print(text)

    def warning(self, text: str) -> None:
        """Print a warning."""
        self._print(f"warning: {text}")

    def done(self, result: StageResult) -> None:
        """Print the run's state and path, and its metrics."""
        self.name = result.stage
        if result.path not in self.reported:
            self._print(f"{_format_state(result)}: {format_path(result.path)}")
        self.reported.add(result.path)
        if not result.skipped and not self.quiet:
            for line in (*_metric_lines(result), *_verdict_lines(result)):
                self._print(line)

    def close(self) -> None:
        """Do nothing: no resource is held."""

    def _print(self, text: str) -> None:
        self.console.print(f"{self.name:<9}{text}", markup=False, soft_wrap=True)


class LiveReporter:
    """A reporter with a live bar per stage: step, metrics and time left. Messages scroll above it."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = console
        self.progress = Progress(
            TextColumn("[bold]{task.description:<9}"),
            BarColumn(bar_width=BAR_WIDTH),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[live]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.task: Any = None
        self.resumed_step = 0
        self.total = 1  # steps
        self.metrics: Mapping[str, float] = {}  # of the last step
        self.reported: set[Path] = set()  # see PlainReporter

    def stage(self, stage: str, run: Run) -> None:
        """Print the start of a stage and show its bar."""
        self.resumed_step = run.resumed_step
        smoke = "  [yellow]smoke[/]" if run.smoke else ""
        self.console.print(f"[bold cyan]{stage}[/]  {run.name} · {run.version}{smoke}")
        self.progress.start()
        self.task = self.progress.add_task(stage, total=None, count="", live="loading")

    def begin(self, total: int, unit: str) -> None:
        """Set the number of steps."""
        self.total, self.metrics = total, {}
        self.progress.reset(
            self.task,
            total=total,
            completed=self.resumed_step,
            count=self._format_count(self.resumed_step),
            live=pluralize(unit),
        )

    def phase(self, text: str) -> None:
        """Show the part of the step that is running, before the metrics of the last step."""
        self._update(text)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Move the bar and show the metrics that fit beside it."""
        self.metrics = metrics
        self.progress.update(self.task, completed=step, count=self._format_count(step))
        self._update("")

    def info(self, text: str) -> None:
        """Print a message above the bar."""
        self.console.print(f"  [dim]{escape_markup(text)}[/]")

    def warning(self, text: str) -> None:
        """Print a warning above the bar."""
        self.console.print(f"  [yellow]warning:[/] {escape_markup(text)}")

    def done(self, result: StageResult) -> None:
        """Remove the bar; print the metrics, the verdict of an evaluation, and the run's state and path."""
        from rich.padding import Padding
        from rich.text import Text

        self.close()
        if not result.skipped:
            for line in _metric_lines(result):
                self.console.print(line, markup=False)
            for line in _verdict_lines(result):
                self.console.print(Padding(Text(line, style="bold"), (0, 0, 0, 2)))
        if result.path not in self.reported:
            color = "red" if result.failed_gates else "green"
            head = f"[bold cyan]{result.stage}[/]" if result.skipped else " "
            state = f"[{color}]{_format_state(result)}[/]: {escape_markup(format_path(result.path))}"
            self.console.print(f"{head} {state}", soft_wrap=True)
        self.reported.add(result.path)

    def _format_count(self, step: int) -> str:
        return f"{step:>{len(str(self.total))}}/{self.total}"

    def _update(self, phase: str) -> None:
        width = self.console.width - FIXED_WIDTH - 2 * len(str(self.total))
        self.progress.update(self.task, live=_format_live(self.metrics, width, phase))

    def close(self) -> None:
        """Remove the bar. Safe to call twice."""
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.task = None
        self.progress.stop()


def _format_live(metrics: Mapping[str, float], width: int | None = None, phase: str = "") -> str:
    """Return phase and metrics of a step on one line, without the last ones if they exceed `width` characters."""
    texts = [phase] if phase else []
    texts += [f"{label} {format(metrics[name], form)}" for name, label, form in LIVE_METRICS if name in metrics]
    while width is not None and texts and len("  ".join(texts)) > width:
        texts.pop()
    return "  ".join(texts)


def _format_state(result: StageResult) -> str:
    state = "up to date" if result.skipped else f"done in {format_duration(result.manifest['seconds'])}"
    return f"{state}, gate failed" if result.failed_gates else state


def _metric_lines(result: StageResult) -> list[str]:
    """Return the run's metrics as aligned lines."""
    metrics = [*format_metrics(result.manifest["metrics"])]
    width = max((len(label) for label, _ in metrics), default=0)
    return [f"  {label:<{width}}  {text}" for label, text in metrics]


def _verdict_lines(result: StageResult) -> list[str]:
    """Return the result of an evaluation in words, in a list that is empty for other stages."""
    verdict = result.manifest.get("verdict")
    return [] if verdict is None else [verdict["text"]]
