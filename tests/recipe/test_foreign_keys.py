"""An unknown key of TRL, LLaMA-Factory or Axolotl has a hint with our key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlhf_cli.recipe.foreign_keys import INSTRUCTIONS, REPLACEMENTS
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.recipe.schema.lookup import iter_section_classes, section_class, sections_with_field
from rlhf_cli.recipe.schema_issues import unknown_key_hint
from rlhf_cli.recipe.trainer_options import accepts_trainer_option, config_fields
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
        (
            "val_size: 0.1",
            "Use eval_fraction under data.pretrain, data.sft, data.preferences, data.prompts or feedback.",
        ),
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
            key = replacement.partition(":")[0]
            if key.partition(".")[0] in Recipe.model_fields:
                assert exists(key), name
            else:
                assert any(exists(f"{section}.{key}") for section in sections_with_field(key.partition(".")[0])), name


def test_no_replaced_key_is_a_field_of_the_schema() -> None:
    fields = {*Recipe.model_fields, "extends", "schema"}
    fields.update(name for _, section in iter_section_classes() for name in section.model_fields)
    assert fields.isdisjoint({*REPLACEMENTS, *INSTRUCTIONS})
    assert set(REPLACEMENTS).isdisjoint(INSTRUCTIONS)


# Keys as people copy them: of PPOConfig (TRL 1.12, and 0.11), SFTConfig, RewardConfig and the script arguments of TRL;
# of LLaMA-Factory's examples and its arguments; of Axolotl's examples.
TRL_PPO = """
    num_ppo_epochs whiten_rewards kl_coef kl_estimator cliprange vf_coef cliprange_value gamma lam
    missing_eos_penalty num_mini_batches total_episodes local_rollout_forward_batch_size num_sample_generations
    response_length stop_token stop_token_id temperature sft_model_path reward_model_path world_size
    num_total_batches micro_batch_size local_batch_size batch_size local_mini_batch_size mini_batch_size exp_name
    model_adapter_name ref_adapter_name ds3_gather_for_generation per_device_train_batch_size
    gradient_accumulation_steps learning_rate init_kl_coef adap_kl_ctrl kl_penalty target horizon ppo_epochs
    early_stopping target_kl use_score_scaling use_score_norm score_clip forward_batch_size backward_batch_size
    tracker_project_name log_with steps num_generations max_completion_length beta epsilon epsilon_high
    num_iterations reward_weights scale_rewards use_vllm loss_type mask_truncated_completions
"""
TRL_OTHER = """
    model_name_or_path model_revision dtype torch_dtype attn_implementation use_peft lora_r lora_alpha lora_dropout
    lora_target_modules lora_target_parameters lora_modules_to_save lora_task_type use_rslora use_dora load_in_8bit
    load_in_4bit bnb_4bit_quant_type use_bnb_nested_quant trust_remote_code dataset_name dataset_config streaming
    dataset_train_split dataset_test_split dataset_streaming test_split_size data_files packing max_length
    max_seq_length assistant_only_loss chat_template_path eos_token pad_token num_train_epochs max_steps output_dir
    logging_steps save_steps save_strategy eval_strategy eval_steps gradient_checkpointing bf16 fp16 warmup_ratio
    warmup_steps weight_decay max_grad_norm lr_scheduler_type optim report_to run_name push_to_hub hub_model_id
    center_rewards_coefficient disable_dropout neftune_noise_alpha seed data_seed dataloader_num_workers
"""
LLAMA_FACTORY = """
    stage do_train finetuning_type lora_rank lora_alpha lora_dropout lora_target dataset eval_dataset template
    cutoff_len max_samples overwrite_cache preprocessing_num_workers dataloader_num_workers output_dir logging_steps
    save_steps plot_loss overwrite_output_dir save_only_model report_to per_device_train_batch_size
    gradient_accumulation_steps learning_rate num_train_epochs lr_scheduler_type warmup_ratio bf16 ddp_timeout
    val_size resume_from_checkpoint per_device_eval_batch_size eval_strategy eval_steps model_name_or_path
    adapter_name_or_path trust_remote_code reward_model reward_model_type reward_model_adapters ref_model pref_beta
    pref_loss pref_ftx ppo_buffer_size ppo_epochs ppo_score_norm ppo_target ppo_whiten_rewards max_new_tokens top_k
    top_p temperature quantization_bit quantization_method flash_attn use_dora use_rslora pissa_init
    additional_target dataset_dir mask_history train_on_prompt neat_packing deepspeed export_dir export_size
    export_device export_legacy_format infer_backend enable_liger_kernel rope_scaling new_special_tokens
    tokenized_path pure_bf16 loraplus_lr_ratio use_galore do_sample double_quantization create_new_adapter
    mix_strategy interleave_probs kto_chosen_weight simpo_gamma
"""
AXOLOTL = """
    base_model revision_of_model model_type tokenizer_type load_in_8bit load_in_4bit strict datasets test_datasets
    dataset_prepared_path val_set_size output_dir adapter lora_model_dir sequence_len sample_packing
    pad_to_sequence_len eval_sample_packing lora_r lora_alpha lora_dropout lora_target_linear lora_target_modules
    lora_modules_to_save lora_fan_in_fan_out wandb_project wandb_entity wandb_watch wandb_name wandb_log_model
    gradient_accumulation_steps micro_batch_size num_epochs optimizer lr_scheduler learning_rate train_on_inputs
    group_by_length bf16 fp16 tf32 gradient_checkpointing gradient_checkpointing_kwargs early_stopping_patience
    resume_from_checkpoint logging_steps auto_resume_from_checkpoints flash_attention sdp_attention
    xformers_attention warmup_steps warmup_ratio evals_per_epoch eval_steps saves_per_epoch save_steps
    save_total_limit debug deepspeed weight_decay fsdp fsdp_config special_tokens tokens chat_template
    chat_template_jinja default_system_message rl rl_beta dpo_use_weighting orpo_alpha kto_desirable_weight
    reward_model trl vllm peft_use_dora peft_use_rslora loraplus_lr_ratio pretraining_dataset roles_to_train
    eot_tokens plugins unfrozen_parameters max_steps seed is_llama_derived_model bfloat16 eager_attention merge_lora
    shuffle_merged_datasets sequence_parallel_degree cosine_min_lr_ratio
"""
OTHER_STAGES = "dpo kto grpo rloo orpo simpo cpo"
DOCUMENT = Path(__file__).parents[2] / "docs" / "coming-from.md"
SECTIONS = {"trl-ppo": "ppo", "trl-other": "sft", "llama-factory": "sft", "axolotl": "reward", "other-stages": "ppo"}
KEYS = {
    "trl-ppo": TRL_PPO, "trl-other": TRL_OTHER, "llama-factory": LLAMA_FACTORY, "axolotl": AXOLOTL,
    "other-stages": OTHER_STAGES,
}  # fmt: skip
ALL_KEYS = [(SECTIONS[tool], key) for tool, keys in KEYS.items() for key in keys.split()]


def named_keys(hint: str) -> list[str]:
    """Return the keys that a hint of the form `Use …` or `Move it to …` names."""
    found = re.fullmatch(r"(?:Use|Move it to) (.+)\.", hint)
    assert found is not None, hint
    text = found[1].replace("`trainer:` in this section", "sft.trainer")
    replacement, under, sections = text.partition(" under ")
    names = [name for name in re.split(r", | or ", replacement) if not re.fullmatch(r"\S+: .+", name)]
    names += [name.partition(":")[0] for name in re.split(r", | or ", replacement) if re.fullmatch(r"\S+: .+", name)]
    if under:
        return [f"{section}.{names[0]}" for section in re.split(r", | or ", sections)]
    return names


def exists(key: str) -> bool:
    """Return whether a full key, or an option below a `trainer:`, exists."""
    *parents, last = key.split(".")
    if "trainer" in parents:
        return exists(".".join(parents[: parents.index("trainer") + 1])) and accepts_trainer_option(parents[0], last)
    section = section_class(tuple(parents))
    return section is not None and last in section.model_fields


@pytest.mark.parametrize(("section", "key"), sorted(set(ALL_KEYS)))
@pytest.mark.parametrize("place", ["top level", "section", "--set", "--set in section"])
def test_key_of_another_tool_is_answered_with_an_existing_key_or_what_to_do(
    find_issues: FindIssues, section: str, key: str, place: str
) -> None:
    parent = section if "section" in place else ""
    fields = section_class((parent,)) if parent else Recipe
    assert fields is not None
    if key in fields.model_fields:
        return  # the same name in both tools
    line = f"{section}: {{{key}: 3}}" if parent else f"{key}: 3"
    override = f"{parent}.{key}=3" if parent else f"{key}=3"
    (issue,) = find_issues("", override) if place.startswith("--set") else find_issues(line)
    if key in NOT_ANSWERED:
        return
    assert issue.code == "recipe.unknown-key"
    assert issue.hint
    if issue.hint in INSTRUCTIONS.values() or (issue.hint == TOP_LEVEL and key in Recipe.model_fields):
        return
    for name in named_keys(issue.hint):
        in_section = parent and place == "section" and exists(f"{parent}.{name}")
        assert in_section or exists(name) or name == f"{parent}.trainer", issue.hint


TOP_LEVEL = "Move it to the top level of the recipe."
NOT_ANSWERED = {"export_size", "export_device", "export_legacy_format", "debug"}


@pytest.mark.parametrize("config", ["SFTConfig", "RewardConfig"])
@pytest.mark.parametrize("section", ["", "sft", "reward", "ppo"])
def test_every_option_of_trl_configs_has_a_hint(config: str, section: str) -> None:
    for name in config_fields(config):
        parent = section_class((section,)) if section else Recipe
        assert parent is not None
        if name not in parent.model_fields:
            hint = unknown_key_hint((section, name) if section else (name,), relative=True)
            assert not hint.startswith(("Did you mean", "Allowed keys")), (name, hint)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("adapter: qlora", "Write a mapping, such as `adapter: {rank: 16}`, and set base.quantize: nf4."),
        ("adapter: lora", "Write a mapping, such as `adapter: {rank: 16}`."),
        ("adapter: full", "Write `adapter: null` to train all weights."),
    ],
)
def test_value_of_another_tool_has_hint(find_issues: FindIssues, text: str, hint: str) -> None:
    (issue,) = find_issues(text)
    assert (issue.code, issue.hint) == ("recipe.invalid-value", hint)


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("ppo.kl_coef=0.1", "Use ppo.kl.coef."),
        ("kl_coef=0.1", "Use ppo.kl.coef."),
        ("sft.cutoff_len=9", "Use sft.max_length."),
    ],
)
def test_hint_for_override_has_the_full_key(find_issues: FindIssues, override: str, hint: str) -> None:
    (issue,) = find_issues("", override)
    assert issue.hint == hint


def documented_rows() -> list[tuple[str, str]]:
    """Return the first two columns of the tables in docs/coming-from.md."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]
    return [(row[0], row[1]) for row in rows]


@pytest.mark.parametrize(("theirs", "ours"), documented_rows())
def test_documented_replacement_is_that_of_the_hint(theirs: str, ours: str) -> None:
    for key in re.findall(r"`([a-z][a-z_0-9]*)(?=[`:])", theirs):
        if key in REPLACEMENTS and "not supported" not in ours and "×" not in theirs:
            targets = {target.partition(":")[0].rpartition(".")[2] for target in REPLACEMENTS[key]}
            assert any(target in ours for target in targets), (key, targets, ours)
        elif not is_documented_without_replacement(key):
            pytest.fail(f"{key} has no hint")


def is_documented_without_replacement(key: str) -> bool:
    """Return whether `key` has a sentence, is a key of ours, an option of a trainer, or no key but a value."""
    names = {name for _, section in iter_section_classes() for name in section.model_fields} | set(Recipe.model_fields)
    options = any(accepts_trainer_option(stage, key) for stage in ("sft", "reward", "ppo"))
    return key in {*REPLACEMENTS, *INSTRUCTIONS, *names, *VALUES} or options


VALUES = {"rm", "pt", "sft", "kto", "grpo", "sdpa", "columns", "type", "alpaca", "freeze"}  # of keys of other tools
