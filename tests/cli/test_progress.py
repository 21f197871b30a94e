"""Tests of cli/progress.py: what a narrow terminal drops, and which runs are reported."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from rlhf_cli.cli.progress import LiveReporter, PlainReporter
from rlhf_cli.pipeline.runner import StageResult
from rlhf_cli.runs.run import Run
from tests.support.reporters import RecordingReporter

METRICS = {
    "reward": -0.513,
    "kl": 0.25,
    "response_length": 13.0,
    "truncation_rate": 0.0,
    "repeated_4gram_rate": 0.05,
    "tokens_per_second": 1484.0,
}


def new_run(folder: Path, stage: str, *, smoke: bool = False) -> Run:
    return Run.create(folder, "bot", stage, smoke=smoke, reporter=RecordingReporter())


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def live_reporter(folder: Path, width: int) -> LiveReporter:
    """Return a reporter of a run that loads, on a terminal with `width` columns."""
    reporter = LiveReporter(Console(file=io.StringIO(), force_terminal=True, width=width))
    reporter.stage("pretrain", new_run(folder, "pretrain"))
    return reporter


def shown_line(reporter: LiveReporter) -> str:
    """Return the live line that the reporter shows."""
    shown = Console(file=io.StringIO(), width=reporter.console.width)
    shown.print(reporter.progress.get_renderable())
    (line,) = text_of(shown).splitlines()
    return line


def live_line(folder: Path, width: int) -> str:
    """Return the live line of step 11 of 40 on a terminal with `width` columns."""
    reporter = live_reporter(folder, width)
    reporter.begin(40, "iteration")
    reporter.step(11, METRICS)
    line = shown_line(reporter)
    reporter.close()
    return line


def test_live_line_shows_loading_and_then_the_phase_of_a_step(tmp_path: Path) -> None:
    reporter = live_reporter(tmp_path, 80)
    loading = shown_line(reporter)
    reporter.begin(40, "iteration")
    reporter.phase("rollout")
    first = shown_line(reporter)
    reporter.step(1, METRICS)
    reporter.phase("update")
    second = shown_line(reporter)
    reporter.close()
    assert "loading" in loading
    assert "/" not in loading
    assert " 0/40 rollout" in first
    assert " 1/40 update  reward -0.513  kl 0.25  length 13" in second
    assert max(map(len, (loading, first, second))) <= 80


@pytest.mark.parametrize(
    ("width", "metrics"),
    [
        (120, "reward -0.513  kl 0.25  length 13  trunc 0%  repeats 5%  tok/s 1,484"),
        (90, "reward -0.513  kl 0.25  length 13  trunc 0%  repeats 5%"),
        (80, "reward -0.513  kl 0.25  length 13  trunc 0%"),
        (40, ""),
    ],
)
def test_live_line_on_narrow_terminal_keeps_step_and_time_left(tmp_path: Path, width: int, metrics: str) -> None:
    name, rest = live_line(tmp_path, width).split(maxsplit=1)
    assert name == "pretrain"
    assert rest.partition("11/40")[2].removesuffix("-:--:--").strip() == metrics
    assert rest.endswith("-:--:--")


def test_plain_reporter_prints_at_most_twenty_progress_lines_and_the_last_step(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    reporter = PlainReporter(console, quiet=False)
    reporter.stage("sft", new_run(tmp_path, "sft"))
    reporter.begin(1000, "step")
    for step in range(1, 1001):
        reporter.step(step, {"loss": 0.5})
    lines = [line for line in text_of(console).splitlines() if "/1000" in line]
    assert 2 <= len(lines) <= 21
    assert lines[-1] == "sft      1000/1000  loss 0.500  0:00 left"


def plain(console: Console) -> PlainReporter:
    return PlainReporter(console, quiet=False)


@pytest.mark.parametrize("make_reporter", [plain, LiveReporter])
def test_smoke_run_that_a_later_stage_reads_is_reported_once(
    tmp_path: Path, make_reporter: Callable[[Console], PlainReporter | LiveReporter]
) -> None:
    run = new_run(tmp_path, "sft", smoke=True)
    console = Console(file=io.StringIO(), width=200)
    reporter = make_reporter(console)
    for skipped in (False, True):
        manifest = {"seconds": 3.0, "metrics": {"sft.loss": 0.5}}
        reporter.done(StageResult("sft", run.path, manifest, skipped, failed_gates=()))
    assert "done in 0:03" in text_of(console)
    assert "up to date" not in text_of(console)
