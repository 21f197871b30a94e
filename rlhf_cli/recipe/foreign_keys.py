"""Keys of TRL, LLaMA-Factory and Axolotl, and what replaces them in a recipe."""

from __future__ import annotations

from collections.abc import Mapping

from rlhf_cli.formatting import format_alternatives
from rlhf_cli.recipe.schema import Key, Recipe, Section
from rlhf_cli.recipe.schema.lookup import section_class, sections_with_field

# A replacement whose first part is a section is the full key; any other is a field of several sections. If there are
# several replacements, the first one that the section with the unknown key has is named.
REPLACEMENTS: Mapping[str, tuple[str, ...]] = {
    # model
    "model_name_or_path": ("base.model",),
    "model_name": ("base.model",),
    "base_model": ("base.model",),
    "model_revision": ("base.revision",),
    "revision_of_model": ("base.revision",),
    "torch_dtype": ("base.dtype",),
    "bf16": ("base.dtype: bfloat16",),
    "fp16": ("base.dtype: float16",),
    "pure_bf16": ("base.dtype: bfloat16",),
    "attn_implementation": ("base.attention",),
    "flash_attn": ("base.attention",),
    "flash_attention": ("base.attention: flash_attention_2",),
    "sdp_attention": ("base.attention: sdpa",),
    "chat_template_path": ("base.chat_template",),
    "chat_template_jinja": ("base.chat_template",),
    "template": ("base.chat_template",),
    "load_in_4bit": ("base.quantize: nf4",),
    "load_in_8bit": ("base.quantize: int8",),
    "bnb_4bit_quant_type": ("base.quantize: nf4",),
    "quantization_bit": ("base.quantize",),
    # adapter
    "use_peft": ("adapter",),
    "finetuning_type": ("adapter",),
    "lora_r": ("adapter.rank",),
    "lora_rank": ("adapter.rank",),
    "lora_alpha": ("adapter.alpha",),
    "lora_dropout": ("adapter.dropout",),
    "lora_target": ("adapter.target_modules",),
    "lora_target_modules": ("adapter.target_modules",),
    "lora_target_linear": ("adapter.target_modules: all-linear",),
    "use_dora": ("adapter.dora",),
    "peft_use_dora": ("adapter.dora",),
    "adapter_name_or_path": ("start",),
    "lora_model_dir": ("start",),
    "sft_model_path": ("ppo.start",),
    "ref_model": ("ppo.start",),
    # data
    "dataset": ("path",),
    "datasets": ("path",),
    "dataset_dir": ("path",),
    "data_files": ("path",),
    "dataset_name": ("hub",),
    "dataset_config": ("config",),
    "dataset_train_split": ("split",),
    "dataset_test_split": ("eval_split",),
    "test_datasets": ("eval_split",),
    "max_samples": ("split",),
    "val_size": ("eval_fraction",),
    "val_set_size": ("eval_fraction",),
    "test_split_size": ("eval_fraction",),
    # training
    "cutoff_len": ("max_length", "max_prompt_length"),
    "sequence_len": ("max_length", "max_prompt_length"),
    "max_seq_length": ("max_length", "max_prompt_length"),
    "num_train_epochs": ("epochs",),
    "num_epochs": ("epochs",),
    "per_device_train_batch_size": ("micro_batch_size", "micro_batch_tokens"),
    "per_device_eval_batch_size": ("eval.batch_size",),
    "gradient_accumulation_steps": ("batch_size", "rollout_batch_size"),
    "train_batch_size": ("batch_size", "rollout_batch_size"),
    "lr": ("learning_rate",),
    "save_steps": ("save_every",),
    "optimizer": ("trainer.optim",),
    "lr_scheduler": ("trainer.lr_scheduler_type",),
    "warmup_ratio": ("trainer.warmup_steps",),
    "wandb_project": ("trainer.project",),
    # PPO and other online methods
    "kl_coef": ("ppo.kl.coef",),
    "init_kl_coef": ("ppo.kl.coef",),
    "beta": ("ppo.kl.coef",),
    "kl_estimator": ("ppo.kl.estimator",),
    "adap_kl_ctrl": ("ppo.kl.target",),
    "ppo_target": ("ppo.kl.target",),
    "cliprange": ("ppo.clip",),
    "clip_range": ("ppo.clip",),
    "epsilon": ("ppo.clip",),
    "epsilon_high": ("ppo.clip_high",),
    "cliprange_value": ("ppo.value_clip",),
    "lam": ("ppo.gae_lambda",),
    "vf_coef": ("ppo.critic.learning_rate",),
    "num_ppo_epochs": ("ppo.epochs",),
    "ppo_epochs": ("ppo.epochs",),
    "num_iterations": ("ppo.epochs",),
    "num_mini_batches": ("ppo.minibatches",),
    "total_episodes": ("ppo.iterations",),
    "ppo_buffer_size": ("ppo.rollout_batch_size",),
    "local_rollout_forward_batch_size": ("ppo.micro_batch_tokens",),
    "num_generations": ("ppo.samples_per_prompt",),
    "num_return_sequences": ("ppo.samples_per_prompt",),
    "response_length": ("ppo.max_new_tokens",),
    "max_completion_length": ("ppo.max_new_tokens",),
    "stop_token": ("ppo.stop",),
    "reward_model": ("ppo.reward",),
    "reward_model_path": ("ppo.reward",),
    "reward_funcs": ("ppo.reward",),
    "reward_weights": ("ppo.reward",),
    "use_score_norm": ("ppo.normalize_reward",),
    "ppo_score_norm": ("ppo.normalize_reward",),
    "score_clip": ("ppo.reward_clip",),
    # processes
    "deepspeed": ("launch.strategy: fsdp",),
    "fsdp": ("launch.strategy: fsdp",),
    "num_processes": ("launch.processes",),
}
COMMAND_LINE_HINTS: Mapping[str, str] = {  # keys that are options or commands of rlhf, not keys of a recipe
    "output_dir": "Use --runs-dir.",
    "overwrite_output_dir": "Remove it: every command writes a new run.",
    "resume_from_checkpoint": "Use --resume.",
    "auto_resume_from_checkpoints": "Use --resume.",
    "stage": "Remove it: each stage has its own section and command.",
    "do_train": "Remove it: each stage has its own section and command.",
}


def foreign_key_hint(name: str, section_key: Key, *, relative: bool = True) -> str:
    """Return what replaces `name`, a key of another tool, or "" if it is not known.

    Args:
        name: The unknown key.
        section_key: Key of the section that it is in. A replacement that this section has is preferred.
        relative: Whether to write a replacement in this section relative to it, or in full.
    """
    if name in COMMAND_LINE_HINTS:
        return COMMAND_LINE_HINTS[name]
    if name not in REPLACEMENTS:
        return ""
    replacements, section = REPLACEMENTS[name], section_class(section_key)
    prefix = "".join(f"{part}." for part in section_key if isinstance(part, str))
    own = next((text for text in replacements if section is not None and _has(section, text)), None)
    if own is not None:
        return f"Use {own if relative else prefix + own}."
    replacement = replacements[0]
    if _has(Recipe, replacement):
        return f"Use {replacement.removeprefix(prefix) if relative else replacement}."
    sections = sections_with_field(_first_part(replacement))
    return f"Use {replacement} under {format_alternatives(sections)}."


def _has(section: type[Section], replacement: str) -> bool:
    return _first_part(replacement) in section.model_fields


def _first_part(replacement: str) -> str:
    return replacement.partition(":")[0].partition(".")[0]
