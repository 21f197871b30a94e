"""A project with a feedback store, a tiny base model, and functions that judge and run its stages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.feedback.store import Store, open_store
from rlhf_cli.feedback.types import Answer, NewCompletion, NewItem, NewJudgment
from rlhf_cli.pipeline.runner import StageResult, run_stage
from rlhf_cli.recipe.schema import Recipe
from tests.support.recipe_files import load_recipe
from tests.support.reporters import RecordingReporter

RECIPE = """
name: team
base: {{model: {base}}}
adapter: {{rank: 4, alpha: 8}}
data: {{preferences: {{run: feedback@latest}}}}
feedback: {{store: {store}, eval_fraction: 0.3, qualification: null}}
reward: {{start: base, max_steps: 2, batch_size: 4, micro_batch_size: 4, max_length: 256}}
"""


class FeedbackProject:
    """A recipe whose reward model is trained on the judgments in a store.

    Attributes:
        folder: The recipe's folder.
        runs_dir: The runs directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs_dir = folder, folder / "runs"
        self.reporter = RecordingReporter()

    @property
    def recipe_file(self) -> Path:
        """The recipe."""
        return self.folder / "recipe.yaml"

    def load(self, *overrides: str, stages: Sequence[str] = ()) -> Recipe:
        """Load the recipe."""
        return load_recipe(self.recipe_file, overrides, stages)

    def store(self) -> Store:
        """Open the store."""
        return open_store(self.load())

    def record(self, judgments: Iterable[NewJudgment]) -> None:
        """Add judgments, and the items that they are about."""
        new = list(judgments)
        with self.store() as store:
            store.add_items([judgment.item for judgment in new if isinstance(judgment.item, NewItem)])
            store.record(new)

    def run(self, stage: str, *overrides: str, smoke: bool = False, skip_if_done: bool = False) -> StageResult:
        """Run one stage."""
        recipe = self.load(*overrides, stages=[stage])
        return run_stage(stage, recipe, self.runs_dir, smoke=smoke, reporter=self.reporter, skip_if_done=skip_if_done)


def make_judgments(items: int, names: Sequence[str] = ("Ann", "Bob"), **fields: Any) -> Iterator[NewJudgment]:
    """Yield judgments of pairs, of which every annotator prefers the first completion.

    Args:
        items: Number of items.
        names: The annotators.
        fields: Further fields of the items.
    """
    for number in range(items):
        item = NewItem(f"Prompt {number}?", (NewCompletion(" yes"), NewCompletion(" no no")), **fields)
        for name in names:
            yield NewJudgment(item, name, "rank", Answer(tiers=((0,), (1,))))


def read_rows(run: Path, split: str = "train") -> list[dict[str, Any]]:
    """Return the rows of a split of a run."""
    return [json.loads(line) for line in (run / "data" / f"{split}.jsonl").read_text().splitlines()]


@pytest.fixture
def feedback_project(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> FeedbackProject:
    """Write a project whose store does not exist yet."""
    monkeypatch.delenv("RLHF_FEEDBACK_STORE", raising=False)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(base=tiny_base, store=tmp_path / "feedback.db"))
    return FeedbackProject(tmp_path)
