"""report.json and report.md hold the metrics and the verdicts of the gates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_cli.evaluation.gates import evaluate_gates
from rlhf_cli.evaluation.report import Report, write
from rlhf_cli.evaluation.verdict import Verdict
from rlhf_cli.recipe.schema import Gate

METRICS = {
    "win_rate": 0.61,
    "win_rate.low": 0.55,
    "win_rate.high": 0.67,
    "win_rate.n": 256.0,
    "kl": 4.0,
    "score": 2.0,
    "score.baseline": 1.5,
}


VERDICT = Verdict("better", "ppo beats sft", "ppo beats sft: by far.", [], ["the reward model was optimized."])


def make_report(gates: list[Gate]) -> Report:
    """Return a report of METRICS with these gates."""
    return Report("ppo", "sft", "reward", {"prompts": 256}, METRICS, VERDICT, evaluate_gates(gates, METRICS))


def test_report_json_holds_metrics_and_verdicts(tmp_path: Path) -> None:
    write(make_report([Gate(metric="win_rate", min=0.55), Gate(metric="kl", max=3.0)]), tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["metrics"] == METRICS
    assert content["sizes"] == {"prompts": 256}
    assert [(gate["metric"], gate["value"], gate["passed"]) for gate in content["gates"]] == [
        ("win_rate", 0.61, True),
        ("kl", 4.0, False),
    ]
    assert content["passed"] is False
    assert content["verdict"] == VERDICT.as_json()


def test_report_page_puts_interval_and_baseline_beside_value(tmp_path: Path) -> None:
    write(make_report([Gate(metric="kl", max=3.0)]), tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert lines[2:5] == ["**ppo beats sft: by far.**", "", "Warning: the reward model was optimized."]
    assert "| win_rate | 0.61 | 0.55 to 0.67 | 256 |  |" in lines
    assert "| score | 2 |  |  | 1.5 |" in lines
    assert "- FAIL  kl = 4, expected at most 3" in lines
    assert not any(line.startswith("| win_rate.low") for line in lines)


def test_report_with_nan_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(Report("ppo", None, None, {}, {"kl": float("nan")}, VERDICT, []), tmp_path)
