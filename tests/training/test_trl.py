"""Keys under `trainer:`, which go to TRL's config."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_cli import distributed
from rlhf_cli.errors import RecipeError
from rlhf_cli.runs.run import Run
from rlhf_cli.training import trl
from tests.support.families import MakeFamily
from tests.support.issues import raises_issue
from tests.support.stage_harness import logged_steps
from tests.support.training_project import TrainingProject


def test_unknown_trainer_key_is_refused_with_the_closest(training_project: TrainingProject) -> None:
    with raises_issue("recipe.unknown-key", error=RecipeError) as issues:
        training_project.train("sft", "sft.trainer={warmup_step: 3}")
    assert "warmup_steps" in issues[0].hint


def test_trainer_keys_reach_trl(training_project: TrainingProject) -> None:
    result = training_project.train("sft", "sft.max_steps=4", "sft.trainer={lr_scheduler_type: constant}")
    assert {step["learning_rate"] for step in logged_steps(result.path)} == {2e-4}


def test_value_that_trl_refuses_is_an_issue_of_the_recipe(training_project: TrainingProject) -> None:
    with raises_issue("recipe.invalid-value", error=RecipeError, location="sft.trainer") as issues:
        training_project.train("sft", "sft.trainer={fp16_full_eval: true, bf16_full_eval: true}")
    assert issues[0].message.startswith("rejected by SFTConfig: ")


@pytest.mark.parametrize("stage", ["sft", "reward", "pretrain"])
def test_batch_size_must_be_multiple_of_rows_per_pass(
    training_project: TrainingProject, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a launcher of the user's own, the number of processes is only known when the stage runs."""
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    section = training_project.resolve(stage).section
    run = Run.create(training_project.runs_dir, "t", stage, smoke=False, reporter=training_project.reporter)
    with raises_issue("recipe.not-divisible", error=RecipeError, location=f"{stage}.batch_size"):
        trl.arguments(section, run, 0, dtype=torch.float32)


def test_sft_of_whole_mixture_of_experts_keeps_the_config_of_its_routers(
    training_project: TrainingProject, make_family: MakeFamily
) -> None:
    """SFTTrainer asks the model for router logits. A saved config that does so makes later stages fail."""
    base = make_family("mixtral")
    result = training_project.train("sft", f"base.model={base}", "adapter=null")
    names = ("output_router_logits", "router_aux_loss_coef")
    before, after = (AutoConfig.from_pretrained(folder) for folder in (base, result.path / "model"))
    assert [getattr(after, name) for name in names] == [getattr(before, name) for name in names] == [False, 0.001]
    training_project.train("ppo", f"base.model={base}", "adapter=null", "ppo.start=sft")


def test_sft_arguments_switch_off_a_loss_that_trl_cannot_compute(make_family: MakeFamily) -> None:
    found = {}
    for name in ("phimoe", "mixtral", "llama"):
        arguments = trl.sft_arguments(AutoModelForCausalLM.from_pretrained(make_family(name)), 8)
        found[name] = arguments.get("router_aux_loss_coef")
        assert arguments["max_length"] == 8
    assert found == {"phimoe": 0.0, "mixtral": None, "llama": None}
