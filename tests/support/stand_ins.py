"""Light stand-ins for the stages, so that everything around them is tested without training."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.stages import STAGES

if TYPE_CHECKING:
    from rlhf_cli.pipeline.resolve import ResolvedStage

StandIn = Callable[["ResolvedStage", Run], StageMetrics]
SetStage = Callable[[str, StandIn], None]

VERDICT: dict[str, Any] = {
    "outcome": "better",
    "headline": "ppo beats sft",
    "text": "ppo beats sft: preferred on 68% of 52 prompts.",
    "regressions": [],
    "warnings": [],
}
SECTIONS = "sft:\nreward:\nppo:\neval: {gates: [{metric: reward.accuracy, min: 0.5}]}\nexport:\n"


@pytest.fixture
def calls() -> list[str]:
    """Return the list to which stand-in stages append their names."""
    return []


@pytest.fixture
def set_stage(monkeypatch: pytest.MonkeyPatch) -> SetStage:
    """Return a function that replaces a stage in the stage table."""

    def put(stage: str, function: StandIn) -> None:
        module = types.ModuleType(f"stand_in_{stage}")
        module.run = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(STAGES, stage, dataclasses.replace(STAGES[stage], entry_point=f"{module.__name__}:run"))

    return put


@pytest.fixture
def stand_ins(set_stage: SetStage, calls: list[str]) -> None:
    """Replace every stage with one that writes one small file, logs one step and returns two metrics."""
    for name in STAGES:

        def run(stage: ResolvedStage, run: Run) -> StageMetrics:
            calls.append(run.stage)
            run.begin(1, "step")
            run.log(1, {"loss": 0.5})
            (run.model_dir / "weights").write_text(f"{run.stage} {stage.recipe.seed}")
            metrics = {f"{run.stage}.loss": 0.5, "reward.accuracy": 0.75}
            if not stage.spec.evaluates:
                return StageMetrics(metrics)
            return StageMetrics(metrics, evaluate_gates(stage, metrics), VERDICT)

        set_stage(name, run)


def evaluate_gates(stage: ResolvedStage, metrics: Mapping[str, float]) -> tuple[dict[str, Any], ...]:
    """Return the verdicts of the recipe's gates as an evaluation does."""
    verdicts = []
    for gate in stage.recipe.eval.gates:
        value = metrics[gate.metric]
        passed = (gate.min is None or value >= gate.min) and (gate.max is None or value <= gate.max)
        verdicts.append({"metric": gate.metric, "min": gate.min, "max": gate.max, "value": value, "passed": passed})
    return tuple(verdicts)


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """Write a recipe with all stages but pretrain, and a folder that stands for its base model."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").touch()
    rows = ({"prompt": prompt, "completion": "b", "chosen": "b", "rejected": "c"} for prompt in ("a", "d"))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: bot\nbase: {model: ./base}\n"
        "data: {sft: {path: rows.jsonl}, preferences: {path: rows.jsonl}, prompts: {path: rows.jsonl}}\n" + SECTIONS
    )
    return path
