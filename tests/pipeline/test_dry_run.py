"""A dry run and its stage prepare the same data."""

from __future__ import annotations

import importlib

import pytest

from rlhf_cli.pipeline import dry_run
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.stages import STAGES
from rlhf_cli.training.prepared_data import PreparedData
from tests.support.stages import load_entry_point
from tests.support.training_project import TrainingProject

TRAINING_STAGES = [name for name, spec in STAGES.items() if spec.prepare]
LIMITS = {  # so that some rows are truncated or dropped
    "pretrain": "pretrain.max_length=16",
    "sft": "sft.max_length=9",
    "sample": "sample.max_prompt_length=4",
    "revise": "revise.max_prompt_length=4",
    "reward": "reward.max_length=8",
    "ppo": "ppo.max_prompt_length=4",
}


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[PreparedData]:
    """Record the data that the `prepare` of every stage returns."""
    found: list[PreparedData] = []
    for name in TRAINING_STAGES:
        module, _, function = STAGES[name].prepare.partition(":")
        original = load_entry_point(STAGES[name].prepare)

        def record(stage: ResolvedStage, original: object = original) -> PreparedData:
            assert callable(original)
            data = original(stage)
            assert isinstance(data, PreparedData)
            found.append(data)
            return data

        monkeypatch.setattr(importlib.import_module(module), function, record)
    return found


@pytest.mark.parametrize("stage", TRAINING_STAGES)
def test_dry_run_prepares_the_data_of_the_stage(
    training_project: TrainingProject, prepared: list[PreparedData], stage: str
) -> None:
    steps = {"ppo": "ppo.iterations=1", "sample": "sample.prompts=20", "revise": "revise.prompts=20"}
    overrides = (LIMITS[stage], steps.get(stage, f"{stage}.max_steps=1"))
    recipe = training_project.load(stage, *overrides)
    preview = dry_run.preview(stage, recipe, training_project.runs_dir, smoke=False)
    training_project.train(stage, *overrides)
    previewed, trained = prepared
    assert previewed.split.counts == trained.split.counts
    assert previewed.split.train == trained.split.train
    for name in ("train", "held_out"):
        one, other = getattr(previewed, name), getattr(trained, name)
        assert (one.kept, one.counts, one.lengths()) == (other.kept, other.counts, other.lengths())
    assert previewed.example == trained.example
    assert (previewed.warnings, previewed.facts) == (trained.warnings, trained.facts)
    facts = preview["facts"]
    if stage == "pretrain":  # documents are packed
        assert facts["rows train"] == len(trained.split.train)
        assert facts["packed sequences"] == str(trained.train.kept)
    else:
        assert facts["rows train"] == trained.train.kept > 0
    assert facts["total tokens"] == sum(trained.train.lengths())
    assert facts["longest row (tokens)"] == max(trained.train.lengths())
    assert facts["longest held-out row (tokens)"] == max(trained.held_out.lengths(), default=0)
    for reason, count in trained.train.counts.items():
        assert facts.get(reason, 0) == count
    if stage != "pretrain":
        assert sum(trained.train.counts.values()) > 0  # the limits of this test drop or truncate some rows
