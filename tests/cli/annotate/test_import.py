"""Tests of `rlhf annotate import` and `rlhf annotate dump` as commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Rlhf

ROW: dict[str, Any] = {"prompt": "Say hi.", "completions": ["Hi", "Hey", "Ho"], "language": "en"}
JUDGED = {**ROW, "judgments": [{"annotator": "Ada Lovelace", "ranking": [1, [0, 2]]}]}


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def project(recipe_file: Path) -> Path:
    """Return the folder of a recipe without stages."""
    recipe_file.with_name("recipe.yaml").write_text("name: bot\nbase: {model: org/model}\nfeedback: {task: rank}\n")
    return recipe_file.parent


def test_import_of_file_prints_counts_and_format(rlhf: Rlhf, project: Path) -> None:
    write_rows(project / "rows.jsonl", JUDGED)
    first = rlhf("annotate", "import", "rows.jsonl", "--json")
    assert first.code == 0
    assert first.json == {
        **{"status": "ok", "stage": "annotate import", "source": "rows.jsonl", "format": "jsonl", "skipped": {}},
        **{"items_added": 1, "items_existing": 0, "judgments_added": 1, "judgments_existing": 0},
    }
    again = rlhf("annotate", "import", "rows.jsonl")
    assert "items: 0 added, 1 existing" in again.out


def test_import_without_source_reads_the_newest_sample_run(rlhf: Rlhf, project: Path) -> None:
    run = project / "runs" / "bot" / "sample" / "v0001"
    (run / "data").mkdir(parents=True)
    write_rows(run / "data" / "train.jsonl", ROW)
    missing = rlhf("annotate", "import", "--json")
    assert (missing.code, missing.issue["code"]) == (2, "recipe.incomplete-run")
    (run / "manifest.json").write_text(json.dumps({"schema": 1, "smoke": False, "stage": "sample", "name": "bot"}))
    assert rlhf("annotate", "import", "--json").json["items_added"] == 1
    assert rlhf("annotate", "import", "sample@latest", "--json").json["items_existing"] == 1


def test_import_of_unknown_columns_reports_data_error(rlhf: Rlhf, project: Path) -> None:
    write_rows(project / "rows.jsonl", {"question": "a", "reply": "b"})
    result = rlhf("annotate", "import", "rows.jsonl", "--json")
    assert (result.code, result.issue["code"]) == (3, "data.wrong-columns")


def test_dump_writes_pseudonyms_and_names_what_is_lost(rlhf: Rlhf, project: Path) -> None:
    write_rows(project / "rows.jsonl", JUDGED)
    rlhf("annotate", "import", "rows.jsonl")
    result = rlhf("annotate", "dump", "out.json", "--format", "argilla", "--json")
    assert result.json["lost"] == {"judgment with ties or of best and worst": 1}
    assert rlhf("annotate", "dump", "out.csv", "--format", "csv").code == 0
    text = (project / "out.csv").read_text(encoding="utf-8-sig")
    assert "Lovelace" not in text
    assert rlhf("annotate", "dump", "out.x", "--format", "xlsx").codes == ["recipe.usage"]
