"""A run under way, as a person sees it: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_cli import distributed
from rlhf_cli.cli.output import console, escape_markup, figures, format_duration
from rlhf_cli.runs.layout import place

if TYPE_CHECKING:
    from rich.console import Console

    from rlhf_cli.pipeline.runner import StageReporter, StageResult
    from rlhf_cli.runs.run import Run

# Shown as training goes: the metric's name, its label, its format. The last ones go where a terminal is narrow.
LIVE = (
    ("loss", "loss", ".3f"),
    ("accuracy", "accuracy", ".2f"),
    ("reward", "reward", ".3f"),
    ("kl", "kl", ".2f"),
    ("response_length", "length", ".0f"),
    ("truncation_rate", "cut", ".0%"),
    ("repeated_4gram_rate", "repeats", ".0%"),
    ("tokens_per_second", "tok/s", ",.0f"),
)
BAR = 10  # characters
BESIDE = 9 + 1 + BAR + 1 + 1 + 1 + 1 + 7  # name, bar, "/", time left and the spaces between: what the figures leave
PLAIN_LINES = 20  # progress lines a stage, at most, where there is no terminal


@contextlib.contextmanager
def reporter(*, json: bool, quiet: bool) -> Iterator[StageReporter]:
    """Live progress on a terminal, plain lines elsewhere, the outcome alone where `quiet`.

    Of several processes the main one alone shows anything.
    """
    if not distributed.is_main():
        yield Silent()
        return
    out = console(stderr=json)
    made = Terminal(out, quiet=quiet) if out.is_terminal and not quiet else Plain(out, quiet=quiet)
    with contextlib.closing(made):
        yield made


class Silent:
    """Shows nothing."""

    def stage(self, stage: str, run: Run) -> None: ...
    def begin(self, total: int, unit: str) -> None: ...
    def step(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def info(self, text: str) -> None: ...
    def warning(self, text: str) -> None: ...
    def done(self, outcome: StageResult) -> None: ...


class Plain:
    """One line for what happens; progress at most PLAIN_LINES times a stage."""

    def __init__(self, out: Console, *, quiet: bool) -> None:
        self.out = out
        self.quiet = quiet
        self.name = ""
        self.total = 1
        self.done_before = 0  # steps, where the run was resumed
        self.next = 0.0  # the step at which the next line is due
        self.started = time.monotonic()
        self.told: set[Path] = set()  # runs: a smoke run that later stages take again is told once

    def stage(self, stage: str, run: Run) -> None:
        self.name = stage
        self.done_before = run.resumed_step
        self.info(f"{run.name} · {run.version}{' · smoke' if run.smoke else ''}")

    def begin(self, total: int, unit: str) -> None:
        self.total = max(total, 1)
        self.next = 0.0
        self.started = time.monotonic()
        self.info(f"{total:,} {unit}")

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        if step >= self.next or step == self.total:  # not every step is logged
            self.next = step + self.total / PLAIN_LINES
            spent = time.monotonic() - self.started
            left = spent / max(step - self.done_before, 1) * (self.total - step)
            self.info(f"{step}/{self.total}  {_live(metrics)}  {format_duration(left)} left")

    def info(self, text: str) -> None:
        if not self.quiet:
            self.out.print(f"{self.name:<9}{text}", markup=False)

    def warning(self, text: str) -> None:
        self.out.print(f"{self.name:<9}warning: {text}", markup=False)

    def done(self, outcome: StageResult) -> None:
        self.name = outcome.stage
        if outcome.path not in self.told:
            self.out.print(f"{self.name:<9}{_state(outcome)}: {place(outcome.path)}", markup=False)
        self.told.add(outcome.path)
        if not outcome.skipped and not self.quiet:
            for label, text in figures(outcome.manifest["metrics"]):
                self.out.print(f"{self.name:<9}  {label:<28} {text}", markup=False)

    def close(self) -> None:
        """Nothing is held open."""


class Terminal:
    """A live bar a stage: step, figures, time left; what is said scrolls above it."""

    def __init__(self, out: Console, *, quiet: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.out = out
        self.quiet = quiet
        self.progress = Progress(
            TextColumn("[bold]{task.description:<9}"),
            BarColumn(bar_width=BAR),
            MofNCompleteColumn(),
            TextColumn("{task.fields[live]}", markup=False),
            TimeRemainingColumn(),
            console=out,
            transient=True,
        )
        self.task: Any = None
        self.name = ""
        self.done_before = 0
        self.digits = 1  # of the number of steps
        self.told: set[Path] = set()  # see Plain

    def stage(self, stage: str, run: Run) -> None:
        self.name = stage
        self.done_before = run.resumed_step
        smoke = "  [yellow]smoke[/]" if run.smoke else ""
        self.out.print(f"[bold cyan]{stage}[/]  {run.name} · {run.version}{smoke}")
        self.progress.start()
        self.task = self.progress.add_task(stage, total=None, live="loading")

    def begin(self, total: int, unit: str) -> None:
        self.digits = len(str(total))
        self.progress.reset(self.task, total=total, completed=self.done_before, live=unit)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        room = self.out.width - BESIDE - 2 * self.digits
        self.progress.update(self.task, completed=step, live=_live(metrics, room))

    def info(self, text: str) -> None:
        self.out.print(f"  [dim]{escape_markup(text)}[/]")

    def warning(self, text: str) -> None:
        self.out.print(f"  [yellow]warning:[/] {escape_markup(text)}")

    def done(self, outcome: StageResult) -> None:
        self.close()
        if not outcome.skipped:
            for label, text in figures(outcome.manifest["metrics"]):
                self.out.print(f"  {label:<28} {text}", markup=False)
        if outcome.path not in self.told:
            colour = "red" if outcome.failed_gates else "green"
            head = f"[bold cyan]{outcome.stage}[/]" if outcome.skipped else " "
            state = f"[{colour}]{_state(outcome)}[/]: {escape_markup(place(outcome.path))}"
            self.out.print(f"{head} {state}", soft_wrap=True)
        self.told.add(outcome.path)

    def close(self) -> None:
        """Take the bar away."""
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.task = None
        self.progress.stop()


def _live(metrics: Mapping[str, float], room: int | None = None) -> str:
    """The figures; the last ones are left out where they have not enough `room`, in characters."""
    shown = [f"{label} {format(metrics[name], form)}" for name, label, form in LIVE if name in metrics]
    while room is not None and shown and len("  ".join(shown)) > room:
        shown.pop()
    return "  ".join(shown)


def _state(outcome: StageResult) -> str:
    state = "up to date" if outcome.skipped else f"done in {format_duration(outcome.manifest['seconds'])}"
    return f"{state}, gate failed" if outcome.failed_gates else state
