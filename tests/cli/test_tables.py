"""Tests of cli/tables.py: text for people."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from rlhf_cli.cli import tables
from rlhf_cli.pipeline.runner import StageResult
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


VERDICT = {
    "outcome": "better",
    "headline": "ppo beats sft",
    "text": "ppo beats sft: preferred on 68% [55, 79] of 52 prompts by the reward model reward@v0001.",
    "regressions": ["sft.nll"],
    "warnings": ["ppo was trained to maximize reward@v0001."],
}
GATES = [
    {"metric": "win_rate.low", "min": 0.5, "max": None, "value": 0.55, "passed": True},
    {"metric": "kl", "min": None, "max": 3.0, "value": 4.0, "passed": False},
]


def evaluation() -> dict[str, Any]:
    """Return the manifest of an evaluation with a regression and a failed gate."""
    interval = {"win_rate": 0.68, "win_rate.low": 0.55, "win_rate.high": 0.79, "win_rate.n": 52}
    manifest = entry("eval", {**interval, "sft.nll": 0.835, "sft.nll.baseline": 0.445}).manifest
    assert manifest is not None
    inputs = [{"role": "candidate", "ref": "ppo"}, {"role": "baseline", "ref": "sft"}]
    return {**manifest, "inputs": inputs, "verdict": VERDICT, "gates": GATES}


def test_runs_list_has_verdict_win_rate_and_gates_of_an_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    found = entry("eval", {})._replace(manifest=evaluation())
    tables.print_runs(Console(width=80), Path("runs"), [found])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("bot/eval@v0001  gate failed")
    assert line.endswith(
        "ppo beats sft  win_rate 0.68 [0.55, 0.79] n=52  1 gate of 2 failed: kl = 4, expected at most 3"
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_chain_ends_with_regressions_verdict_and_warnings(terminal: bool) -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal, no_color=True, soft_wrap=not terminal)
    result = StageResult("eval", Path("runs/bot/eval/v0001"), evaluation(), skipped=False, failed_gates=())
    tables.print_chain(console, [result], ["eval", "export"])
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in Text.from_ansi(console.file.getvalue()).plain.splitlines()]
    assert [line.split() for line in lines if line.lstrip().startswith("sft.nll")] == [
        ["sft.nll", "0.835", "0.445", "worse"]
    ]
    assert ["export", "not", "run"] in [line.split() for line in lines]
    text = " ".join(lines)
    for part in (VERDICT["text"], "warning: ppo was trained to maximize reward@v0001.", "1 gate of 2 failed: kl = 4"):
        assert str(part) in text
    assert not terminal or max(map(len, lines)) <= 80


def test_format_metrics_puts_interval_and_count_behind_their_metric() -> None:
    metrics = {"win_rate": 0.61, "win_rate.low": 0.55, "win_rate.high": 0.67, "win_rate.n": 256, "alone.low": 1.0}
    assert list(tables.format_metrics(metrics)) == [("win_rate", "0.61 [0.55, 0.67] n=256"), ("alone.low", "1")]


def test_headline_metrics_of_unknown_stage_are_empty() -> None:
    assert tables.headline_metrics("sft", {"sft.nll": 1.5, "other": 2.0}) == ["sft.nll 1.5"]
    assert tables.headline_metrics("a-stage-of-another-release", {"loss": 1.0}) == []
