"""An unknown key of TRL, LLaMA-Factory or Axolotl has a hint with our key."""

from __future__ import annotations

import pytest

from rlhf_cli.recipe.foreign_keys import COMMAND_LINE_HINTS, REPLACEMENTS
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.recipe.schema.lookup import iter_section_classes, section_class, sections_with_field
from tests.support.recipe_files import FindIssues


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("ppo: {kl_coef: 0.1}", "Use kl.coef."),
        ("kl_coef: 0.1", "Use ppo.kl.coef."),
        ("ppo: {kl: {kl_coef: 0.1}}", "Use coef."),
        ("ppo: {num_generations: 4}", "Use samples_per_prompt."),
        ("load_in_4bit: true", "Use base.quantize: nf4."),
        ("sft: {load_in_4bit: true}", "Use base.quantize: nf4."),
        ("sft: {cutoff_len: 512}", "Use max_length."),
        ("cutoff_len: 512", "Use max_length under pretrain, sft or reward."),
        ("ppo: {cutoff_len: 512}", "Use max_prompt_length."),
        ("reward: {gradient_accumulation_steps: 2}", "Use batch_size."),
        ("ppo: {gradient_accumulation_steps: 2}", "Use rollout_batch_size."),
        ("adapter: {lora_r: 8}", "Use rank."),
        ("lora_rank: 8", "Use adapter.rank."),
        ("val_size: 0.1", "Use eval_fraction under data.pretrain, data.sft, data.preferences or data.prompts."),
        ("data: {sft: {path: r.yaml, dataset_test_split: test}}", "Use eval_split."),
        ("sft: {warmup_ratio: 0.1}", "Use trainer.warmup_steps."),
        ("sft: {trainer: {cutoff_len: 512}}", "Use sft.max_length."),
        ("sft: {trainer: {load_in_8bit: true}}", "Use base.quantize: int8."),
        ("ppo: {trainer: {cliprange: 0.1}}", "Use ppo.clip."),
        ("output_dir: runs", "Use --runs-dir."),
    ],
)
def test_foreign_key_has_hint_with_our_key(find_issues: FindIssues, text: str, hint: str) -> None:
    (issue,) = find_issues(text)
    assert (issue.code, issue.hint) == ("recipe.unknown-key", hint)


def test_nested_quantize_key_of_foreign_tool_in_base_is_relative(find_issues: FindIssues) -> None:
    (issue,) = find_issues("name: x\nbase: {model: a/b, load_in_4bit: true}", bare=True)
    assert issue.hint == "Use quantize: nf4."


def test_every_replacement_exists_in_the_schema() -> None:
    for name, replacements in REPLACEMENTS.items():
        for replacement in replacements:
            first, *rest = replacement.partition(":")[0].split(".")
            if first in Recipe.model_fields:
                parent = section_class((first, *rest[:-1]))
                assert not rest or (parent is not None and rest[-1] in parent.model_fields), name
            else:
                assert sections_with_field(first), name


def test_no_replaced_key_is_a_field_of_the_schema() -> None:
    fields = {*Recipe.model_fields, "extends", "schema"}
    fields.update(name for _, section in iter_section_classes() for name in section.model_fields)
    assert fields.isdisjoint({*REPLACEMENTS, *COMMAND_LINE_HINTS})
