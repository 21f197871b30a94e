"""The keys and values of `trainer:` that are refused, without importing TRL."""

from __future__ import annotations

import dataclasses

import pytest

from rlhf_cli.recipe import trackers
from rlhf_cli.recipe.trainer_options import (
    MANAGED_OPTIONS,
    OPTIONS_WITHOUT_EFFECT,
    OWN_LOOP_OPTIONS,
    SET_BY,
    TRANSFORMERS_CONFIG,
    config_fields,
)
from rlhf_cli.stages import STAGES
from tests.support.recipe_files import FindIssues, WriteRecipe, load_recipe

TRL_CONFIGS = {stage: spec.trl_config for stage, spec in STAGES.items() if spec.trl_config is not None}


@pytest.mark.parametrize("stage", TRL_CONFIGS)
@pytest.mark.parametrize("option", sorted([*SET_BY, *MANAGED_OPTIONS]))
def test_trainer_managed_option_is_refused(find_issues: FindIssues, stage: str, option: str) -> None:
    (issue,) = find_issues(f"{stage}: {{trainer: {{{option}: 1}}}}")
    assert issue.code == "recipe.managed-key"
    assert issue.message == f"{stage}.trainer.{option}: managed by rlhf and cannot be set here."
    expected = f"Set {SET_BY[option].format(section=stage)} instead." if option in SET_BY else "Remove it."
    assert issue.hint == expected


def test_trainer_managed_option_has_hint_with_the_field_that_sets_it(find_issues: FindIssues) -> None:
    (issue,) = find_issues("sft: {trainer: {num_train_epochs: 1}}")
    assert issue.hint == "Set sft.epochs instead."


def test_trainer_unknown_option_has_hint_with_a_similar_one(find_issues: FindIssues) -> None:
    (issue,) = find_issues("sft: {trainer: {warmup_step: 3}}")
    assert (issue.code, issue.location) == ("recipe.unknown-key", "r.yaml:3:17")
    assert issue.message == "sft.trainer.warmup_step: unknown option of trl.SFTConfig."
    assert issue.hint == "Did you mean warmup_steps?"


def test_trainer_option_of_another_config_is_unknown(write_recipe: WriteRecipe, find_issues: FindIssues) -> None:
    (issue,) = find_issues("sft: {trainer: {center_rewards_coefficient: 0.1}}")
    assert issue.code == "recipe.unknown-key"
    assert issue.hint == "See the documentation of trl.SFTConfig for its options."
    load_recipe(write_recipe("reward: {trainer: {center_rewards_coefficient: 0.1, weight_decay: 0.1}}"), stages=())


@pytest.mark.parametrize(
    ("stage", "value", "words"),
    [
        ("sft", "{weight_decay: '0.1'}", "found '0.1', expected a number. Write it without quotes."),
        ("sft", "{weight_decay: true}", "found true, expected a number."),
        ("pretrain", "{adam_beta1: .nan}", "found .nan, expected a number."),
        ("reward", "{dataloader_num_workers: 1.5}", "found 1.5, expected an integer."),
        ("reward", "{center_rewards_coefficient: small}", "found small, expected a number or null."),
        ("sft", "{gradient_checkpointing: 'no'}", "found 'no', expected true or false."),
        ("sft", "{lr_scheduler_type: cosien}", "found cosien, expected one of linear, cosine, "),
        ("sft", "{lr_scheduler_type: cosien}", "Did you mean cosine?"),
        ("sft", "{optim: zzz}", "found zzz, expected one of adamw_torch, "),
        ("ppo", "{optim: adamw_trch}", "Did you mean adamw_torch?"),
        ("ppo", "{max_grad_norm: [1]}", "found a list, expected a number."),
    ],
)
def test_trainer_invalid_value_is_refused(find_issues: FindIssues, stage: str, value: str, words: str) -> None:
    (issue,) = find_issues(f"{stage}: {{trainer: {value}}}")
    assert issue.code == "recipe.invalid-value"
    assert words in str(issue)


def test_trainer_values_of_every_kind_are_accepted(write_recipe: WriteRecipe) -> None:
    values = "{weight_decay: 1, warmup_steps: 0.1, optim: sgd, lr_scheduler_kwargs: {num_cycles: 1}, report_to: [none]}"
    load_recipe(write_recipe(f"sft: {{trainer: {values}}}\nppo: {{trainer: {values}}}"), stages=())
    text = "reward: {trainer: {eval_strategy: 'no', run_name: null, lr_scheduler_kwargs: '{}'}}"
    load_recipe(write_recipe(text), stages=())


@pytest.mark.parametrize(("stage", "name"), [("sft", "aim"), ("ppo", "azure_ml"), ("reward", "wandbb"), ("ppo", "7")])
def test_trainer_unknown_tracker_is_refused(find_issues: FindIssues, stage: str, name: str) -> None:
    (issue,) = find_issues(f"{stage}: {{trainer: {{report_to: [tensorboard, {name}]}}}}")
    assert issue.code == "recipe.invalid-value"
    assert issue.message.startswith(f"{stage}.trainer.report_to: unknown tracker; found {name}, expected one of ")


def test_trackers_are_those_of_transformers_and_accelerate() -> None:
    from accelerate.utils import LoggerType
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert trackers.TRL_TRACKERS.keys() == INTEGRATION_TO_CALLBACK.keys()
    assert trackers.OWN_LOOP_TRACKERS.keys() == {str(logger) for logger in LoggerType} - {"all"}


def test_missing_packages_are_those_that_cannot_be_imported() -> None:
    assert trackers.missing_packages("none", trackers.TRL_TRACKERS) == []
    assert trackers.missing_packages(["flyte", "kubeflow"], trackers.TRL_TRACKERS) == ["flytekit"]
    assert trackers.missing_packages("wandb", {"wandb": ("no_such_package", "yaml")}) == []


def test_trainer_option_without_effect_is_refused(find_issues: FindIssues) -> None:
    (issue,) = find_issues("sft: {trainer: {packing: true}}")
    assert issue.code == "recipe.no-effect"
    assert issue.message.startswith("sft.trainer.packing: no effect, ")


def test_trainer_of_own_loop_accepts_only_options_that_it_implements(
    write_recipe: WriteRecipe, find_issues: FindIssues
) -> None:
    issues = find_issues("ppo: {trainer: {output_dir: x, neftune_noise_alpha: 5, warmup_stepz: 1}}")
    assert {issue.code for issue in issues} == {"recipe.unknown-key"}
    assert [issue.message for issue in issues] == [
        f"ppo.trainer.{option}: not an option of the ppo trainer."
        for option in ("output_dir", "neftune_noise_alpha", "warmup_stepz")
    ]
    assert issues[0].hint == "Use --runs-dir."
    assert issues[1].hint == f"Choose from {', '.join(OWN_LOOP_OPTIONS)}."
    assert issues[2].hint == "Did you mean warmup_steps?"
    load_recipe(write_recipe("ppo: {trainer: {weight_decay: 0.1, report_to: wandb}}"), stages=())


@pytest.mark.parametrize("config", [*sorted(set(TRL_CONFIGS.values())), "DPOConfig", "GRPOConfig"])
def test_config_fields_read_from_source_are_those_of_the_class(config: str) -> None:
    import trl

    fields = {field.name for field in dataclasses.fields(getattr(trl, config)) if field.init}
    assert set(config_fields(config)) >= fields
    assert len(set(config_fields(config)) - fields) <= 5  # class-level annotations that are no fields


def test_option_tables_name_existing_options() -> None:
    known = {name for config in TRL_CONFIGS.values() for name in config_fields(config)}
    assert {*SET_BY, *MANAGED_OPTIONS} <= known
    assert set(OWN_LOOP_OPTIONS) <= set(config_fields(TRANSFORMERS_CONFIG))
    assert set(OPTIONS_WITHOUT_EFFECT) <= known
