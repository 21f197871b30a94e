"""Tests of `rlhf annotate qc` as a command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Rlhf


@pytest.fixture
def project(recipe_file: Path) -> Path:
    """Return the folder of a recipe without stages."""
    recipe_file.with_name("recipe.yaml").write_text("name: bot\nbase: {model: org/model}\nfeedback: {task: rank}\n")
    return recipe_file.parent


def import_judgments(rlhf: Rlhf, folder: Path) -> None:
    """Import 40 items: two people agree on the order of 30 of them, and reverse that of the others."""
    rows: list[dict[str, Any]] = []
    for number in range(40):
        orders = [[0, 1, 2], [0, 1, 2] if number < 30 else [2, 1, 0]]
        judgments = [{"annotator": f"Person {i}", "ranking": order} for i, order in enumerate(orders)]
        completions = [{"text": f"{'long ' * i}{number}", "source": f"model-{i}"} for i in range(3)]
        rows.append({"prompt": f"Prompt {number}", "completions": completions, "judgments": judgments})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert rlhf("annotate", "import", "rows.jsonl").code == 0


def test_qc_prints_metrics_by_name_as_json(rlhf: Rlhf, project: Path) -> None:
    import_judgments(rlhf, project)
    result = rlhf("annotate", "qc", "--json")
    assert result.code == 0
    content = result.json
    assert (content["stage"], content["project"]) == ("annotate qc", "bot")
    metrics = content["metrics"]
    assert metrics["feedback.agreement"] == 0.75
    assert metrics["feedback.agreement.low"] < 0.75 < metrics["feedback.agreement.high"]
    assert metrics["feedback.agreement.n"] == 40
    assert metrics["feedback.annotator.annotator-001.longer_wins"] == 0.0
    assert "feedback.gold_accuracy" in content["undefined"]
    assert "Person" not in result.out


def test_qc_prints_tables_of_eighty_columns(rlhf: Rlhf, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_judgments(rlhf, project)
    monkeypatch.setenv("COLUMNS", "80")
    result = rlhf("annotate", "qc")
    assert result.code == 0
    tables = [line for line in result.out.splitlines() if line.startswith(("agreement", "annotator", "model-"))]
    assert len(tables) == 9  # three rules of agreement, a header and two annotators, three models
    assert max(map(len, tables)) <= 80
    assert "…" not in result.out
    assert "75% [" in result.out


@pytest.mark.usefixtures("project")
def test_qc_of_empty_store_succeeds(rlhf: Rlhf) -> None:
    result = rlhf("annotate", "qc")
    assert result.code == 0
    assert "0 judgments" in result.out
    assert rlhf("annotate", "qc", "--json").json["annotators"] == []
