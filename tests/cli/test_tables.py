"""Tests of cli/tables.py: text for people."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlhf_cli.cli import tables
from rlhf_cli.runs.layout import RunEntry


def render(previews: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a dry run on a stream that is not a terminal."""
    console = Console(file=io.StringIO(), width=80)
    tables.print_previews(console, previews)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_preview_facts_are_aligned_with_thousands_separators() -> None:
    facts = {"rows read": 4600, "dropped: prompt of 1024 tokens or more": 12, "end tokens": "</s> (2)"}
    assert render([{"stage": "ppo", "facts": facts, "example": "Ask: "}]) == [
        "ppo",
        "  rows read                               4,600",
        "  dropped: prompt of 1024 tokens or more  12",
        "  end tokens                              </s> (2)",
        "  first prompt:",
        "Ask: ",
    ]


def test_previews_of_several_stages_are_printed_in_order() -> None:
    lines = render([{"stage": "sft", "facts": {}}, {"stage": "export", "facts": {"base": "org/model"}}])
    assert lines == ["sft", "export", "  base  org/model"]


def entry(stage: str, metrics: dict[str, float]) -> RunEntry:
    manifest = {"started": "2026-03-04T05:06:07Z", "seconds": 5.0, "smoke": False, "metrics": metrics}
    return RunEntry("bot", stage, "v0001", Path("runs/bot") / stage / "v0001", manifest)


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (
            60,
            [
                "run               state     started      time  result",
                "bot/reward@v0001  complete  03-04 05:06  0:05  reward.train_loss",
                "                                               0.5",
                "                                               reward.accuracy 0.75",
            ],
        ),
        (
            120,
            [
                "run               state     started           time  result",
                "bot/reward@v0001  complete  2026-03-04 05:06  0:05  reward.train_loss 0.5  reward.accuracy 0.75",
            ],
        ),
    ],
)
def test_runs_on_terminal_wrap_the_result_between_words(
    capsys: pytest.CaptureFixture[str], width: int, lines: list[str]
) -> None:
    entries = [entry("reward", {"reward.train_loss": 0.5, "reward.accuracy": 0.75})]
    tables.print_runs(Console(force_terminal=True, width=width), Path("runs"), entries)
    header, rule, *rows = capsys.readouterr().out.splitlines()
    assert [header, *rows] == lines
    assert set(rule) == {"─"}
    assert len(rule) <= width


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "not finite"),
        (0.0, "0"),
        (0.123456, "0.123"),
        (12.0, "12"),
        (1234.5, "1,234"),
        (4600, "4,600"),
        (-0.5, "-0.5"),
    ],
)
def test_format_number_has_three_digits_or_thousands_separators(value: float | None, text: str) -> None:
    assert tables.format_number(value) == text


def test_format_metrics_puts_interval_and_count_behind_their_metric() -> None:
    metrics = {"win_rate": 0.61, "win_rate.low": 0.55, "win_rate.high": 0.67, "win_rate.n": 256, "alone.low": 1.0}
    assert list(tables.format_metrics(metrics)) == [("win_rate", "0.61 [0.55, 0.67] n=256"), ("alone.low", "1")]


def test_headline_metrics_of_unknown_stage_are_empty() -> None:
    assert tables.headline_metrics("sft", {"sft.nll": 1.5, "other": 2.0}) == ["sft.nll 1.5"]
    assert tables.headline_metrics("a-stage-of-another-release", {"loss": 1.0}) == []
