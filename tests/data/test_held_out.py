"""Evaluation rows: a fixed sample of the held-out rows of each dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.data import held_out
from rlhf_cli.errors import DataError, Issue
from rlhf_cli.recipe.schema import Recipe
from tests.support.datasets import find_no_run, make_demonstrations


def make_recipe(folder: Path, rows: int, samples: int = 5, **source: Any) -> Recipe:
    """Return a recipe with demonstrations as its only dataset."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_demonstrations(rows)))
    sections = {
        "name": "bot",
        "base": {"model": "org/model"},
        "data": {"sft": [{"path": str(path), **source}]},
        "eval": {"samples": samples},
    }
    return Recipe.model_validate(sections)


def test_load_held_out_rows_returns_same_sample_each_time(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, rows=60, eval_fraction=0.5)
    rows = held_out.load(recipe, find_no_run, smoke=False)
    assert len(rows.sft) == 5
    assert rows.preferences == []
    assert rows.prompts == []
    assert held_out.load(recipe, find_no_run, smoke=False) == rows


def test_load_fewer_held_out_rows_than_samples_returns_all(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, rows=2, eval_fraction=0.5)
    assert len(held_out.load(recipe, find_no_run, smoke=False).sft) == 1


def test_load_no_held_out_rows_raises(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, rows=60, eval_fraction=0)
    with pytest.raises(DataError) as raised:
        held_out.load(recipe, find_no_run, smoke=False)
    message = "no rows are held out; expected at least one to evaluate on."
    hint = "Raise eval_fraction, or set eval_split."
    assert raised.value.issues == (Issue("data.nothing-held-out", message, "data.sft", hint),)


def test_load_smoke_without_held_out_rows_uses_training_rows(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, rows=60, eval_fraction=0)
    assert len(held_out.load(recipe, find_no_run, smoke=True).sft) == 5
