"""Call a stage function on a recipe, without the runner around it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from rlhf_cli.pipeline.resolve import ResolvedStage, resolve
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.training.prepared_data import PreparedData


def run_stage_function(recipe: Recipe, run: Run) -> StageMetrics:
    """Resolve the run's stage and call its function. The run is not completed."""
    stage = resolve(run.stage, recipe, run.runs_dir, smoke=run.smoke)
    function: Callable[[ResolvedStage, Run], StageMetrics] = load_entry_point(stage.spec.entry_point)
    return function(stage, run)


def prepare_data(stage: ResolvedStage) -> PreparedData:
    """Call the stage's `prepare`."""
    function: Callable[[ResolvedStage], PreparedData] = load_entry_point(stage.spec.prepare)
    return function(stage)


def load_entry_point(entry_point: str) -> Any:
    """Return the function that `module:function` of the stage table names."""
    module, _, name = entry_point.partition(":")
    return getattr(importlib.import_module(module), name)
