"""Progress on a terminal: what is left out where it is narrow, and what is never."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from rlhf_cli.cli.progress import Plain, Terminal
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


def line(tmp_path: Path, width: int) -> str:
    """The live line of step 11 of 40, on a terminal of so many columns."""
    terminal = Terminal(Console(file=io.StringIO(), force_terminal=True, width=width), quiet=False)
    terminal.stage(
        "pretrain", Run.create(tmp_path, "bot", "pretrain", smoke=False, base="b", reporter=RecordingReporter())
    )
    terminal.begin(40, "iterations")
    terminal.step(11, METRICS)
    shown = Console(file=io.StringIO(), width=width)
    shown.print(terminal.progress.get_renderable())
    terminal.close()
    assert isinstance(shown.file, io.StringIO)
    (found,) = shown.file.getvalue().splitlines()
    return found


@pytest.mark.parametrize(
    ("width", "figures"),
    [
        (120, "reward -0.513  kl 0.25  length 13  cut 0%  repeats 5%  tok/s 1,484"),
        (90, "reward -0.513  kl 0.25  length 13  cut 0%  repeats 5%"),
        (80, "reward -0.513  kl 0.25  length 13  cut 0%"),
        (40, ""),
    ],
)
def test_a_narrow_terminal_keeps_the_step_and_the_time_left(tmp_path: Path, width: int, figures: str) -> None:
    name, rest = line(tmp_path, width).split(maxsplit=1)
    assert name == "pretrain"
    assert rest.partition("11/40")[2].removesuffix("-:--:--").strip() == figures
    assert rest.endswith("-:--:--")


def outcome(run: Run, *, skipped: bool) -> StageResult:
    return StageResult("sft", run.path, {"seconds": 3.0, "metrics": {"sft.loss": 0.5}}, skipped, failed_gates=())


@pytest.mark.parametrize("kind", [Plain, Terminal])
def test_a_run_that_was_made_is_not_told_again_as_up_to_date(tmp_path: Path, kind: type[Plain | Terminal]) -> None:
    run = Run.create(tmp_path, "bot", "sft", smoke=True, base="b", reporter=RecordingReporter())
    out = Console(file=io.StringIO(), width=200)
    reporter = kind(out, quiet=False)
    reporter.done(outcome(run, skipped=False))
    reporter.done(outcome(run, skipped=True))
    assert isinstance(out.file, io.StringIO)
    told = out.file.getvalue()
    assert "done in 0:03" in told
    assert "up to date" not in told
