"""A project with a few rows of text for pretrain, sft and reward, and a function that trains on them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.data import sources
from rlhf_cli.pipeline.resolve import ResolvedStage, resolve
from rlhf_cli.pipeline.runner import StageResult, run_stage
from rlhf_cli.recipe.schema import Recipe
from tests.support.recipe_files import load_recipe
from tests.support.reporters import RecordingReporter
from tests.support.stage_harness import WORDS

RECIPE = """
name: t
base: {{model: {base}}}
adapter: {{rank: 4, alpha: 8}}
data:
  pretrain: {{path: text.txt}}
  sft: {{path: sft.jsonl}}
  preferences: {{path: preferences.jsonl}}
  prompts: {{path: sft.jsonl}}
sft: {{max_steps: 2, batch_size: 4, micro_batch_size: 4, max_length: 64}}
sample: {{of: [base], max_new_tokens: 4}}
revise: {{of: base, max_new_tokens: 4, constitution: constitution.yaml}}
reward: {{start: base, max_steps: 2, batch_size: 4, micro_batch_size: 4, max_length: 64}}
ppo:
  start: base
  reward: [{{rule: {{length: {{max: 3}}}}}}]
  iterations: 1
  rollout_batch_size: 4
  minibatches: 1
  max_new_tokens: 4
  max_prompt_length: 64
pretrain:
  architecture: {{vocab_size: 280, hidden_size: 64, intermediate_size: 128, layers: 2, heads: 4, context: 32}}
  max_steps: 30
  batch_size: 8
  micro_batch_size: 8
  max_length: 32
"""


class TrainingProject:
    """A recipe for every stage that trains, on a tiny base model.

    Attributes:
        folder: The recipe's folder.
        runs_dir: The runs directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs_dir = folder, folder / "runs"
        self.reporter = RecordingReporter()

    def load(self, stage: str, *overrides: str) -> Recipe:
        """Load the recipe for one stage."""
        return load_recipe(self.folder / "recipe.yaml", overrides, [stage])

    def resolve(self, stage: str, *overrides: str, smoke: bool = False) -> ResolvedStage:
        """Resolve one stage."""
        return resolve(stage, self.load(stage, *overrides), self.runs_dir, smoke=smoke)

    def train(self, stage: str, *overrides: str) -> StageResult:
        """Run one stage."""
        recipe = self.load(stage, *overrides)
        return run_stage(stage, recipe, self.runs_dir, smoke=False, reporter=self.reporter)

    def write_rows(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        """Write a .jsonl file beside the recipe."""
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def held_out_sft(self, *overrides: str) -> list[Any]:
        """Return the held-out demonstrations."""
        recipe = self.load("sft", *overrides)
        assert recipe.data.sft is not None
        return sources.load(recipe.data.sft, "sft", seed=0, find=Path).held_out

    def held_out_preferences(self, *overrides: str) -> list[Any]:
        """Return the held-out preference pairs."""
        recipe = self.load("reward", *overrides)
        assert recipe.data.preferences is not None
        return sources.load(recipe.data.preferences, "preferences", seed=0, find=Path).held_out


@pytest.fixture
def training_project(tmp_path: Path, tiny_base: Path) -> TrainingProject:
    """Write a recipe for every stage that trains, and its data."""
    project = TrainingProject(tmp_path)
    rows = [{"prompt": f"{a} and", "completion": f" {b} {a}"} for a in WORDS for b in WORDS]
    project.write_rows("sft.jsonl", rows)
    pairs = [{"prompt": row["prompt"], "chosen": " tree", "rejected": " dog dog"} for row in rows]
    project.write_rows("preferences.jsonl", pairs)
    (tmp_path / "text.txt").write_text("\n\n".join(f"the cat sat on the red tree {i % 5}" for i in range(200)))
    (tmp_path / "constitution.yaml").write_text("principles: [{id: short, text: A good answer is short.}]\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(base=tiny_base))
    return project
