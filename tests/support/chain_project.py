"""A recipe with its runs directory, and ways to run its stages in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf_cli.pipeline.runner import StageResult, run_chain, run_stage
from rlhf_cli.recipe.schema import Recipe
from tests.support.recipe_files import load_recipe
from tests.support.reporters import RecordingReporter

CHAIN = ["sft", "reward", "ppo", "eval", "export"]


class ChainProject:
    """A recipe file, its runs directory, and a reporter that records what happened.

    Attributes:
        recipe_file: The recipe.
        runs_dir: The folder `runs` beside it.
        reporter: The reporter of every run.
    """

    def __init__(self, recipe_file: Path) -> None:
        self.recipe_file = recipe_file
        self.runs_dir = recipe_file.parent / "runs"
        self.reporter = RecordingReporter()

    @property
    def folder(self) -> Path:
        """The recipe's folder."""
        return self.recipe_file.parent

    def load(self, *overrides: str, stages: Sequence[str]) -> Recipe:
        """Load the recipe for `stages`."""
        return load_recipe(self.recipe_file, overrides, stages)

    def run_stage(
        self, stage: str, *overrides: str, smoke: bool = False, skip_if_done: bool = False, resume: bool = False
    ) -> StageResult:
        """Run one stage."""
        return run_stage(
            stage,
            self.load(*overrides, stages=[stage]),
            self.runs_dir,
            smoke=smoke,
            reporter=self.reporter,
            skip_if_done=skip_if_done,
            resume=resume,
        )

    def run_chain(
        self, *overrides: str, stages: Sequence[str] = CHAIN, smoke: bool = False, resume: bool = False
    ) -> dict[str, bool]:
        """Run a chain. Return whether each stage was skipped."""
        recipe = self.load(*overrides, stages=stages)
        results = run_chain(recipe, stages, self.runs_dir, smoke=smoke, reporter=self.reporter, resume=resume)
        return {result.stage: result.skipped for result in results}

    def stage_dir(self, stage: str) -> Path:
        """Return the folder of the stage's versions."""
        return self.runs_dir / "bot" / stage

    def versions(self, stage: str) -> list[str]:
        """Return the names of the stage's versions, oldest first."""
        return sorted(path.name for path in self.stage_dir(stage).glob("v*"))

    def events(self) -> list[tuple[str, str]]:
        """Return each start ("stage"), each end ("done" or "skipped") and each warning, in order."""
        found = []
        for kind, *values in self.reporter.calls:
            if kind == "done":
                (result,) = values
                found.append(("skipped" if result.skipped else "done", result.stage))
            elif kind in ("stage", "warning"):
                found.append((kind, values[0]))
        return found
