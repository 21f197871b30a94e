"""The store as the input of a stage is read, and not changed."""

from __future__ import annotations

import json
from pathlib import Path

from rlhf_cli.feedback.store import open_store
from rlhf_cli.feedback.store_input import read_store
from tests.support.recipe_files import load_recipe


def test_read_store_puts_neither_gold_items_nor_guideline_into_it(tmp_path: Path) -> None:
    (tmp_path / "guideline.md").write_text("Be kind.")
    gold = {"prompt": "2 + 2?", "completions": ["4", "5"], "answer": [0, 1]}
    (tmp_path / "gold.jsonl").write_text(json.dumps(gold) + "\n")
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: bot\nbase: {model: org/model}\nfeedback: {guideline: guideline.md, gold: {path: gold.jsonl}}\n"
    )
    recipe = load_recipe(path, (), ())
    assert read_store(recipe) is None
    bare = recipe.replace(feedback=recipe.feedback.replace(gold=None, guideline=None))
    open_store(bare).close()
    content = read_store(recipe)
    assert content is not None
    assert (content.snapshot.items, content.snapshot.guidelines) == ([], {})
    with open_store(recipe) as store:
        assert [item.kind for item in store.snapshot().items] == ["gold"]
