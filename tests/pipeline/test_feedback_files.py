"""Tests of the check of the files that the section feedback names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_cli.errors import RlhfError
from rlhf_cli.pipeline.feedback_files import check_feedback_files
from rlhf_cli.recipe.schema import Recipe


def check(**feedback: object) -> list[tuple[str, str]]:
    """Return code and location of each issue."""
    recipe = Recipe.model_validate({"name": "bot", "base": {"model": "m"}, "feedback": feedback})
    try:
        check_feedback_files(recipe)
    except RlhfError as error:
        return [(issue.code, issue.location) for issue in error.issues]
    return []


def test_check_of_valid_files_passes(tmp_path: Path) -> None:
    (tmp_path / "guide.md").write_text("# Rank\n")
    row = {"prompt": "p", "completions": ["a", "b"], "answer": [0, 1]}
    (tmp_path / "gold.jsonl").write_text(json.dumps(row) + "\n")
    gold = {"path": str(tmp_path / "gold.jsonl")}
    assert check(guideline=str(tmp_path / "guide.md"), gold=gold, qualification=gold) == []
    assert check() == []


def test_check_of_missing_files_reports_all_of_them(tmp_path: Path) -> None:
    missing = {"path": str(tmp_path / "x.jsonl")}
    assert check(guideline=str(tmp_path / "x.md"), gold=missing, qualification=missing) == [
        ("recipe.path-not-found", "feedback.guideline"),
        ("data.file-not-found", "feedback.gold.path"),
        ("data.file-not-found", "feedback.qualification.path"),
    ]


@pytest.mark.parametrize(("content", "code"), [(b"\xff", "recipe.unreadable"), (b" \n", "recipe.invalid-value")])
def test_check_of_unusable_guideline_reports_it(tmp_path: Path, content: bytes, code: str) -> None:
    (tmp_path / "guide.md").write_bytes(content)
    assert check(guideline=str(tmp_path / "guide.md")) == [(code, "feedback.guideline")]
