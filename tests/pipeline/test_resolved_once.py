"""A stage is resolved once: one look-up of its references, one hash of its inputs, one evaluation of its gates."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.pipeline.runner import StageResult, run_stage
from rlhf_cli.recipe.schema import Recipe
from tests.support.ppo_project import PPOProject
from tests.support.reporters import RecordingReporter

# Public functions, and every module that calls them by that name.
COUNTED = {
    "find_all": ("rlhf_cli.pipeline.resolve", "rlhf_cli.pipeline.runner"),
    "resolve_reference": ("rlhf_cli.pipeline.resolve", "rlhf_cli.pipeline.preflight"),
    "hash_inputs": ("rlhf_cli.pipeline.inputs", "rlhf_cli.pipeline.resolve"),
    "settings_of": ("rlhf_cli.pipeline.fingerprint", "rlhf_cli.pipeline.resolve"),
    "fingerprint": ("rlhf_cli.pipeline.fingerprint", "rlhf_cli.pipeline.resolve"),
    "evaluate_gates": ("rlhf_cli.evaluation.gates",),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> PPOProject:
    """Write a tiny base model, adapters, prompts and a reward function."""
    return PPOProject(tmp_path_factory.mktemp("resolved-once"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the calls of the functions in COUNTED."""
    counter: Counter[str] = Counter()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            counter[name] += 1
            return function(*args, **options)

        return call

    for name, modules in COUNTED.items():
        wrapped = counting(name, getattr(importlib.import_module(modules[0]), name))
        for module in modules:
            monkeypatch.setattr(f"{module}.{name}", wrapped)
    return counter


def run(stage: str, recipe: Recipe, runs_dir: Path, *, skip_if_done: bool = False) -> StageResult:
    """Run one stage."""
    reporter = RecordingReporter()
    return run_stage(stage, recipe, runs_dir, smoke=False, reporter=reporter, skip_if_done=skip_if_done)


def test_ppo_is_resolved_once(project: PPOProject, tmp_path: Path, calls: Counter[str]) -> None:
    run("ppo", project.recipe(), tmp_path)
    references = 3  # base, start and ppo.reward.0
    expected = {"find_all": 1, "resolve_reference": references}
    assert calls == {**expected, "hash_inputs": 1, "settings_of": 1, "fingerprint": 1}


def test_gates_of_eval_are_evaluated_once(project: PPOProject, tmp_path: Path, calls: Counter[str]) -> None:
    recipe = project.eval_recipe(gates=[{"metric": "kl", "min": 1e9}, {"metric": "kl", "max": 1e9}])
    result = run("eval", recipe, tmp_path)
    assert [issue.location for issue in result.failed_gates] == ["eval.gates.0"]
    assert calls["evaluate_gates"] == 1
    assert (calls["find_all"], calls["hash_inputs"], calls["fingerprint"]) == (1, 1, 1)
    calls.clear()
    again = run("eval", recipe, tmp_path, skip_if_done=True)
    assert again.skipped
    assert again.failed_gates == result.failed_gates
    assert calls["evaluate_gates"] == 0
    assert (calls["find_all"], calls["hash_inputs"], calls["fingerprint"]) == (1, 1, 1)
