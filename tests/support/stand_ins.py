"""Light stand-ins for the stages, so that what is around them is tested without training."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.stages import STAGES

StandIn = Callable[[Recipe, Run], StageMetrics]
SetStage = Callable[[str, StandIn], None]


@pytest.fixture
def calls() -> list[str]:
    """The stages that the stand-ins ran, in order."""
    return []


@pytest.fixture
def set_stage(monkeypatch: pytest.MonkeyPatch) -> SetStage:
    """Put a function in a stage's place in the table."""

    def put(stage: str, function: StandIn) -> None:
        module = types.ModuleType(f"stand_in_{stage}")
        module.run = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(STAGES, stage, STAGES[stage]._replace(function=f"{module.__name__}:run"))

    return put


@pytest.fixture
def stand_ins(set_stage: SetStage, calls: list[str]) -> None:
    """Every stage writes one small file, logs one step and gives one figure."""
    for stage in STAGES:

        def run(recipe: Recipe, run: Run) -> StageMetrics:
            calls.append(run.stage)
            run.begin(1, "steps")
            run.log(1, {"loss": 0.5})
            (run.model_dir / "weights").write_text(f"{run.stage} {recipe.seed}")
            return StageMetrics({f"{run.stage}.loss": 0.5, "reward.accuracy": 0.75})

        set_stage(stage, run)


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A recipe with all stages but pretrain, on a folder that stands for a base."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").touch()
    rows = ({"prompt": prompt, "completion": "b", "chosen": "b", "rejected": "c"} for prompt in ("a", "d"))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: bot\nbase: {model: ./base}\n"
        "data: {sft: {path: rows.jsonl}, preferences: {path: rows.jsonl}, prompts: {path: rows.jsonl}}\n"
        "sft:\nreward:\nppo:\neval: {gates: [{metric: reward.accuracy, min: 0.5}]}\nexport:\n"
    )
    return path
