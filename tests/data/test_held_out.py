"""Evaluation rows: a fixed sample of the held-out rows of each dataset."""

from __future__ import annotations

import json
import logging
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


def test_load_prompts_that_other_datasets_train_on_are_not_evaluated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """30 % of the prompts are held out, but only 10 % of the demonstrations of the same prompts."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_demonstrations(200)))

    def recipe(sft_fraction: float) -> Recipe:
        data = {
            "sft": [{"path": str(path), "eval_fraction": sft_fraction}],
            "prompts": [{"path": str(path), "eval_fraction": 0.3}],
        }
        base = {"name": "bot", "base": {"model": "org/model"}, "data": data}
        return Recipe.model_validate({**base, "ppo": {}, "eval": {"samples": 200}})

    caplog.set_level(logging.WARNING, "rlhf_cli")
    together = held_out.load(recipe(0.3), find_no_run, smoke=False)
    assert {row.prompt for row in together.prompts} == {row.prompt for row in together.sft}
    assert not caplog.messages
    apart = held_out.load(recipe(0.1), find_no_run, smoke=False)
    assert {row.prompt for row in apart.prompts} == {row.prompt for row in apart.sft}
    skipped = len(together.prompts) - len(apart.prompts)
    assert skipped > 0
    assert f"data.prompts: skipped {skipped} of {len(together.prompts)} held-out prompts" in caplog.messages[-1]
    with pytest.raises(DataError) as raised:
        held_out.load(recipe(0.0), find_no_run, smoke=False)
    assert [issue.code for issue in raised.value.issues] == ["data.nothing-held-out"]
