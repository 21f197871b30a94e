"""What report.json and report.md say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_cli.evaluation.gates import judge
from rlhf_cli.evaluation.report import Report, write
from rlhf_cli.recipe.schema import Gate

METRICS = {
    "win_rate": 0.61,
    "win_rate.low": 0.55,
    "win_rate.high": 0.67,
    "kl": 4.0,
    "score": 2.0,
    "score.baseline": 1.5,
}


def make(gates: list[Gate]) -> Report:
    return Report("ppo", "sft", "reward", {"prompts": 256}, METRICS, judge(gates, METRICS))


def test_json_holds_every_metric_and_each_gates_verdict(tmp_path: Path) -> None:
    write(make([Gate(metric="win_rate", min=0.55), Gate(metric="kl", max=3.0)]), tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["metrics"] == METRICS
    assert content["sizes"] == {"prompts": 256}
    assert [(gate["metric"], gate["value"], gate["passed"]) for gate in content["gates"]] == [
        ("win_rate", 0.61, True),
        ("kl", 4.0, False),
    ]
    assert content["passed"] is False


def test_page_sets_interval_and_other_side_beside_the_value(tmp_path: Path) -> None:
    write(make([Gate(metric="kl", max=3.0)]), tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert "| win_rate | 0.61 | 0.55 to 0.67 |  |" in lines
    assert "| score | 2 |  | 1.5 |" in lines
    assert "- FAIL  kl = 4, wanted at most 3" in lines
    assert not any(line.startswith("| win_rate.low") for line in lines)


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(Report("ppo", None, None, {}, {"kl": float("nan")}, []), tmp_path)
