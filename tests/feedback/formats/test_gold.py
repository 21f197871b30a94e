"""Tests of the files of gold items and of the qualification test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.errors import DataError
from rlhf_cli.feedback.formats.gold import read_gold
from rlhf_cli.feedback.store import Store, open_store
from rlhf_cli.recipe.schema import Recipe
from tests.support.issues import raises_issue

ROW = {"prompt": "Say hi.", "completions": ["Hi", "Hey", "Ho"], "answer": [2, [0, 1]], "explanation": "short"}


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_read_gold_returns_items_with_answer(tmp_path: Path) -> None:
    (item,) = read_gold(write_rows(tmp_path / "gold.jsonl", {**ROW, "topic": "x"}), "gold")
    assert (item.kind, item.answer, item.explanation, item.extra) == ("gold", ((2,), (0, 1)), "short", {"topic": "x"})


def test_read_gold_for_the_qualification_test_ignores_the_column_kind(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "test.jsonl", {**ROW, "kind": "gold"})
    assert [item.kind for item in read_gold(path, "qualification")] == ["qualification"]


def test_read_gold_reports_all_invalid_rows(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        ROW,
        {"prompt": "p", "completions": ["a", "b"]},
        {**ROW, "prompt": "q", "answer": [0, 1]},
        {**ROW, "prompt": "q", "answer": [[0, 1, 2]]},
        ROW,
        {**ROW, "prompt": "r", "language": "Klingon!"},
    ]
    path = write_rows(tmp_path / "gold.jsonl", *rows)
    with pytest.raises(DataError) as raised:
        read_gold(path, "gold")
    assert [(issue.code, issue.location) for issue in raised.value.issues] == [
        ("data.missing-field", f"{path}:2"),
        ("feedback.invalid-answer", f"{path}:3"),
        ("feedback.invalid-answer", f"{path}:4"),
        ("feedback.invalid-item", f"{path}:5"),
        ("feedback.invalid-item", f"{path}:6"),
    ]


@pytest.mark.parametrize(
    ("name", "code"), [("x.jsonl", "data.file-not-found"), ("x.csv", "data.unsupported-file-type")]
)
def test_read_gold_of_other_file_names_the_key(tmp_path: Path, name: str, code: str) -> None:
    (tmp_path / "x.csv").write_text("prompt\n")
    with raises_issue(code, location="feedback.gold.path"):
        read_gold(tmp_path / name, "gold")


def test_open_store_adds_gold_items_once_and_takes_a_corrected_answer(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "gold.jsonl", ROW)
    test = write_rows(tmp_path / "test.jsonl", ROW)
    feedback = {
        "store": str(tmp_path / "feedback.db"),
        "gold": {"path": str(path)},
        "qualification": {"path": str(test)},
    }
    recipe = Recipe.model_validate({"name": "bot", "base": {"model": "m"}, "feedback": feedback})
    assert answers(open_store(recipe)) == {"gold": [[2], [0, 1]], "qualification": [[2], [0, 1]]}
    write_rows(path, {**ROW, "answer": [0, 1, 2]})
    assert answers(open_store(recipe)) == {"gold": [[0], [1], [2]], "qualification": [[2], [0, 1]]}


def answers(store: Store) -> dict[str, list[list[int]]]:
    """Return the answer of the only item of each kind, as indices, and close the store."""
    with store:
        items = store.snapshot().items
    index = {c.id: n for item in items for n, c in enumerate(item.completions)}
    assert len({item.kind for item in items}) == len(items)
    return {item.kind: [sorted(index[number] for number in tier) for tier in item.answer] for item in items}
