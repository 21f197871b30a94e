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
    "model_id": ("base.model",),
    "base_model_config": ("base.model",),
    "model_path": ("base.model",),
    "sft_model": ("ppo.start",),
    "torch_dtype": ("base.dtype",),
    "infer_dtype": ("export.dtype",),
    "bfloat16": ("base.dtype: bfloat16",),
    "float16": ("base.dtype: float16",),
    "bf16": ("base.dtype: bfloat16",),
    "fp16": ("base.dtype: float16",),
    "pure_bf16": ("base.dtype: bfloat16",),
    "attn_implementation": ("base.attention",),
    "flash_attn": ("base.attention",),
    "flash_attention": ("base.attention: flash_attention_2",),
    "sdp_attention": ("base.attention: sdpa",),
    "eager_attention": ("base.attention: eager",),
    "use_flash_attention_2": ("base.attention: flash_attention_2",),
    "chat_template_path": ("base.chat_template",),
    "chat_template_jinja": ("base.chat_template",),
    "template": ("base.chat_template",),
    "load_in_4bit": ("base.quantize: nf4",),
    "load_in_8bit": ("base.quantize: int8",),
    "bnb_4bit_quant_type": ("base.quantize: nf4",),
    "bnb_4bit_compute_dtype": ("base.dtype",),
    "quantization": ("base.quantize",),
    "quantization_bit": ("base.quantize",),
    "quantization_method": ("base.quantize",),
    # adapter
    "use_peft": ("adapter",),
    "finetuning_type": ("adapter",),
    "peft": ("adapter",),
    "peft_config": ("adapter",),
    "lora": ("adapter",),
    "lora_config": ("adapter",),
    "r": ("adapter.rank",),
    "lora_r": ("adapter.rank",),
    "lora_rank": ("adapter.rank",),
    "lora_alpha": ("adapter.alpha",),
    "lora_dropout": ("adapter.dropout",),
    "lora_target": ("adapter.target_modules",),
    "lora_target_modules": ("adapter.target_modules",),
    "lora_target_linear": ("adapter.target_modules: all-linear",),
    "disable_dropout": ("adapter.dropout",),
    "use_dora": ("adapter.dora",),
    "peft_use_dora": ("adapter.dora",),
    "adapter_name_or_path": ("start",),
    "lora_model_dir": ("start",),
    "sft_model_path": ("ppo.start",),
    "ref_model": ("ppo.start",),
    "ref_model_adapters": ("ppo.start",),
    "value_model": ("ppo.critic",),
    "critic_model": ("ppo.critic",),
    # data
    "dataset": ("path",),
    "datasets": ("path",),
    "dataset_dir": ("path",),
    "data_files": ("path",),
    "data_dir": ("path",),
    "pretraining_dataset": ("data.pretrain",),
    "dataset_name": ("hub",),
    "dataset_config": ("config",),
    "dataset_train_split": ("split",),
    "dataset_test_split": ("eval_split",),
    "eval_dataset": ("eval_split",),
    "test_datasets": ("eval_split",),
    "max_samples": ("split",),
    "fraction": ("split",),
    "interleave_probs": ("weight",),
    "field_messages": ("columns",),
    "val_size": ("eval_fraction",),
    "val_set_size": ("eval_fraction",),
    "test_split_size": ("eval_fraction",),
    # training
    "cutoff_len": ("max_length", "max_prompt_length"),
    "sequence_len": ("max_length", "max_prompt_length"),
    "max_seq_length": ("max_length", "max_prompt_length"),
    "max_seq_len": ("max_length", "max_prompt_length"),
    "max_prompt_len": ("max_prompt_length",),
    "num_train_epochs": ("epochs",),
    "num_epochs": ("epochs",),
    "per_device_train_batch_size": ("micro_batch_size", "micro_batch_tokens"),
    "per_device_eval_batch_size": ("eval.batch_size",),
    "gradient_accumulation_steps": ("batch_size", "rollout_batch_size"),
    "train_batch_size": ("batch_size", "rollout_batch_size"),
    "lr": ("learning_rate",),
    "save_steps": ("save_every",),
    "saves_per_epoch": ("save_every",),
    "save_freq": ("save_every",),
    "optimizer": ("trainer.optim",),
    "lr_scheduler": ("trainer.lr_scheduler_type",),
    "cosine_min_lr_ratio": ("trainer.lr_scheduler_kwargs",),
    "warmup_ratio": ("trainer.warmup_steps",),
    "gradient_checkpointing": ("trainer.gradient_checkpointing", "ppo.trainer.activation_checkpointing"),
    "wandb_project": ("trainer.project",),
    "tracker_project_name": ("trainer.project",),
    "log_with": ("trainer.report_to",),
    "use_wandb": ("trainer.report_to: wandb",),
    "use_tensorboard": ("trainer.report_to: tensorboard",),
    "use_swanlab": ("trainer.report_to: swanlab",),
    "use_mlflow": ("trainer.report_to: mlflow",),
    # PPO and other online methods
    "kl_coef": ("ppo.kl.coef",),
    "init_kl_coef": ("ppo.kl.coef",),
    "init_kl_coefficient": ("ppo.kl.coef",),
    "kl_penalty": ("ppo.kl.estimator",),
    "kl_estimator": ("ppo.kl.estimator",),
    "adap_kl_ctrl": ("ppo.kl.target",),
    "ppo_target": ("ppo.kl.target",),
    "beta": ("ppo.kl.coef",),
    "rl_beta": ("ppo.kl.coef",),
    "pref_beta": ("ppo.kl.coef",),
    "early_stopping": ("ppo.target_kl",),
    "cliprange": ("ppo.clip",),
    "clip_range": ("ppo.clip",),
    "clip_ratio": ("ppo.clip",),
    "epsilon": ("ppo.clip",),
    "epsilon_high": ("ppo.clip_high",),
    "delta": ("ppo.dual_clip",),
    "cliprange_value": ("ppo.value_clip",),
    "lam": ("ppo.gae_lambda",),
    "vf_coef": ("ppo.critic.learning_rate",),
    "num_ppo_epochs": ("ppo.epochs",),
    "ppo_epochs": ("ppo.epochs",),
    "num_iterations": ("ppo.epochs",),
    "num_mini_batches": ("ppo.minibatches",),
    "mini_batch_size": ("ppo.minibatches",),
    "local_mini_batch_size": ("ppo.minibatches",),
    "total_episodes": ("ppo.iterations",),
    "num_total_batches": ("ppo.iterations",),
    "steps": ("ppo.iterations",),
    "local_batch_size": ("ppo.rollout_batch_size",),
    "generation_batch_size": ("ppo.rollout_batch_size",),
    "ppo_buffer_size": ("ppo.rollout_batch_size",),
    "steps_per_generation": ("ppo.minibatches",),
    "local_rollout_forward_batch_size": ("ppo.micro_batch_tokens",),
    "forward_batch_size": ("ppo.micro_batch_tokens",),
    "backward_batch_size": ("ppo.micro_batch_tokens",),
    "num_generations": ("ppo.samples_per_prompt",),
    "num_return_sequences": ("ppo.samples_per_prompt",),
    "response_length": ("ppo.max_new_tokens",),
    "max_completion_length": ("ppo.max_new_tokens",),
    "max_tokens": ("ppo.max_new_tokens",),
    "eval_max_new_tokens": ("eval.max_new_tokens",),
    "stop_token": ("ppo.stop",),
    "stop_token_id": ("ppo.stop",),
    "stop_sequences": ("ppo.stop",),
    "reward_model": ("ppo.reward",),
    "reward_model_path": ("ppo.reward",),
    "reward_model_adapters": ("ppo.reward",),
    "reward_model_type": ("ppo.reward",),
    "reward_funcs": ("ppo.reward",),
    "reward_functions": ("ppo.reward",),
    "reward_weights": ("ppo.reward",),
    "use_score_scaling": ("ppo.normalize_reward",),
    "use_score_norm": ("ppo.normalize_reward",),
    "ppo_score_norm": ("ppo.normalize_reward",),
    "scale_rewards": ("ppo.normalize_reward",),
    "score_clip": ("ppo.reward_clip",),
    "mask_truncated_completions": ("ppo.missing_eos_penalty",),
    "pref_ftx": ("ppo.ptx_coef",),
    # export
    "export_dir": ("export",),
    "export_dtype": ("export.dtype",),
    "merge_lora": ("export.format: merged",),
    # processes
    "deepspeed": ("launch.strategy: fsdp",),
    "fsdp": ("launch.strategy: fsdp",),
    "fsdp_config": ("launch.strategy: fsdp",),
    "num_processes": ("launch.processes",),
    "world_size": ("launch.processes",),
    "nproc_per_node": ("launch.processes",),
}
# Keys without a counterpart in a recipe, by the sentence that says what to do instead.
_KEYS_BY_INSTRUCTION: Mapping[str, tuple[str, ...]] = {
    "Use --runs-dir.": ("output_dir",),
    "Remove it: every command writes a new run.": ("overwrite_output_dir", "overwrite_cache", "exp_name"),
    "Use --resume.": ("resume_from_checkpoint", "auto_resume_from_checkpoints"),
    "Use --dry-run.": ("dataset_prepared_path", "tokenized_path", "skip_prepare_dataset"),
    "Remove it: each stage has its own section and command.": (
        *("stage", "do_train", "do_eval", "do_predict", "trl", "trainer_type"),
    ),
    "Remove it: preferences are learned with a reward model (section reward) and PPO (section ppo).": (
        *("rl", "dpo", "ipo", "kto", "orpo", "simpo", "cpo", "grpo", "rloo", "online_dpo", "pref_loss"),
        *("dpo_label_smoothing", "label_smoothing", "kto_chosen_weight", "kto_rejected_weight", "simpo_gamma"),
        *("kto_desirable_weight", "kto_undesirable_weight", "orpo_alpha", "rpo_alpha", "cpo_alpha", "dpo_beta"),
        *("desirable_weight", "undesirable_weight", "precompute_ref_log_probs", "pref_bco_weight", "ld_alpha"),
        *("use_weighting", "dpo_use_weighting", "f_divergence_type", "discopop_tau"),
    ),
    "Remove it: advantages are always whitened, and rewards never.": ("whiten_rewards", "ppo_whiten_rewards"),
    "Remove it: PPO samples from the full distribution, whose log-probabilities it needs.": (
        *("top_p", "top_k", "min_p", "do_sample", "num_beams", "repetition_penalty", "length_penalty"),
        *("generation_kwargs", "generation_config", "cache_implementation"),
    ),
    "Remove it: completions are sampled with the model that is trained.": (
        *("use_vllm", "vllm", "vllm_mode", "vllm_server_host", "vllm_server_port", "vllm_server_base_url"),
        *("vllm_gpu_memory_utilization", "vllm_tensor_parallel_size", "ds3_gather_for_generation"),
        *("infer_backend", "vllm_maxlen", "use_transformers_paged"),
    ),
    "Remove it: samples.jsonl has prompts and completions of every iteration.": (
        *("num_sample_generations", "log_completions", "num_completions_to_print", "eval_table_size"),
    ),
    "Remove it: the loss is computed on the completion only.": (
        *("completion_only_loss", "assistant_only_loss", "train_on_inputs", "train_on_prompt", "mask_history"),
        *("roles_to_train", "train_on_eos", "response_template", "ignore_pad_token_for_loss"),
    ),
    "Remove it: rows are not packed; pretrain packs its text.": (
        *("packing", "neat_packing", "sample_packing", "eval_sample_packing", "eval_packing", "padding_free"),
        *("packing_strategy", "pad_to_sequence_len", "group_by_length", "batch_flattening"),
    ),
    "Remove it: rlhf reads and tokenizes the rows itself.": (
        *("streaming", "dataset_streaming", "dataset_num_proc", "dataset_processes", "preprocessing_num_workers"),
        *("preprocessing_batch_size", "dataset_text_field", "dataset_kwargs", "shuffle_dataset", "truncation_mode"),
        *("buffer_size", "mix_strategy", "remove_unused_columns", "truncation_side", "shuffle_merged_datasets"),
        *("num_labels", "min_sample_len"),
    ),
    "Use columns, or convert the rows; see docs/data.md.": (
        *("dataset_info", "ranking", "formatting", "field_human", "field_model", "conversation", "ds_type"),
    ),
    "Remove it: the tokenizer's own tokens are used; its template and base.chat_template decide what ends a turn.": (
        *("special_tokens", "tokens", "add_tokens", "added_tokens_overrides", "resize_vocab", "new_special_tokens"),
        *("eos_token", "pad_token", "eot_tokens", "tokenizer_type", "tokenizer_config", "tokenizer_use_fast"),
        *("use_fast_tokenizer", "tokenizer_name_or_path", "tokenizer_name", "default_system_message"),
        *("default_system", "tool_format"),
    ),
    "Remove it: rlhf supports plain LoRA and DoRA on linear layers.": (
        *("use_rslora", "peft_use_rslora", "lora_modules_to_save", "modules_to_save", "additional_target"),
        *("pissa_init", "pissa_iter", "pissa_convert", "init_lora_weights", "peft_init_lora_weights", "loftq_config"),
        *("lora_target_parameters", "peft_layers_to_transform", "layers_to_transform", "loraplus_lr_ratio"),
        *("loraplus_lr_embedding", "relora", "relora_steps", "create_new_adapter", "lora_task_type", "lora_bias"),
        *("lora_fan_in_fan_out", "lora_on_cpu", "model_adapter_name", "ref_adapter_name", "use_bnb_nested_quant"),
        *("bnb_4bit_use_double_quant", "double_quantization", "bnb_4bit_quant_storage", "bnb_config_kwargs"),
        *("oft_rank", "oft_target", "oft_block_size", "use_galore", "use_apollo", "use_badam", "use_llama_pro"),
        *("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules", "unfrozen_parameters"),
    ),
    "Remove it: rlhf uses the model code of transformers without changes.": (
        *("trust_remote_code", "model_init_kwargs", "use_unsloth", "enable_liger_kernel", "rope_scaling", "plugins"),
        *("liger_rope", "liger_rms_norm", "model_type", "type_of_model", "is_llama_derived_model"),
        *("xformers_attention", "flex_attention", "s2_attention", "shift_attn", "flash_attn_cross_entropy"),
        *("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "overrides_of_model_config", "mixture_of_depths"),
        *("moe_aux_loss_coef", "cast_lm_head_to_fp32", "upcast_layernorm"),
        *("disable_gradient_checkpointing", "low_cpu_mem_usage", "device_map", "gptq", "ignore_bias_buffers"),
        *("strict", "sequence_parallel_degree", "context_parallel_size"),
    ),
    "Remove it: the reference is the policy that PPO starts from, and stays fixed.": (
        *("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps", "ref_model_quantization_bit"),
        "reward_model_quantization_bit",
    ),
    "Remove it: saving, logging and resuming are managed by the run.": (
        *("save_strategy", "save_total_limit", "save_only_model", "load_best_model_at_end", "logging_steps"),
        *("logging_strategy", "logging_first_step", "logging_dir", "logging_nan_inf_filter", "disable_tqdm"),
        *("enable_jit_checkpoint", "restore_callback_states_from_checkpoint", "ignore_data_skip", "plot_loss"),
        *("auto_find_batch_size", "save_safetensors", "save_on_each_node", "metric_for_best_model"),
        *("greater_is_better", "early_stopping_patience", "swanlab_project"),
    ),
    "Remove it: a stage evaluates once, at its end; to compare models use the section eval.": (
        *("eval_strategy", "evaluation_strategy", "eval_steps", "evals_per_epoch", "do_bench_eval"),
        *("num_generations_eval", "eval_num_beams", "predict_with_generate", "compute_accuracy"),
    ),
    "Upload the exported model with `hf upload`.": (
        *("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "export_hub_model_id"),
        *("push_dataset_to_hub", "hub_revision", "hub_always_push"),
    ),
    "Set HF_TOKEN in the environment.": ("hub_token", "hf_hub_token", "hf_use_auth_token"),
    "Set WANDB_ENTITY, WANDB_NAME, WANDB_WATCH or WANDB_LOG_MODEL in the environment.": (
        *("wandb_entity", "wandb_name", "wandb_run_id", "wandb_watch", "wandb_log_model", "wandb_mode"),
    ),
    "Use seed.": ("data_seed",),
}
INSTRUCTIONS: Mapping[str, str] = {key: text for text, keys in _KEYS_BY_INSTRUCTION.items() for key in keys}
VALUE_HINTS: Mapping[tuple[str, str], str] = {  # a key of ours with a value of another tool
    ("adapter", "lora"): "Write a mapping, such as `adapter: {rank: 16}`.",
    ("adapter", "qlora"): "Write a mapping, such as `adapter: {rank: 16}`, and set base.quantize: nf4.",
    ("adapter", "none"): "Write `adapter: null` to train all weights.",
    ("adapter", "full"): "Write `adapter: null` to train all weights.",
}


def foreign_key_hint(name: str, section_key: Key, *, relative: bool = True) -> str:
    """Return what replaces `name`, a key of another tool, or "" if it is not known.

    Args:
        name: The unknown key.
        section_key: Key of the section that it is in. A replacement that this section has is preferred.
        relative: Whether to write a replacement in this section relative to it, or in full.
    """
    if name in INSTRUCTIONS:
        return INSTRUCTIONS[name]
    if name not in REPLACEMENTS:
        return ""
    replacements, section = REPLACEMENTS[name], section_class(section_key)
    prefix = "".join(f"{part}." for part in section_key if isinstance(part, str))
    own = next((text.removeprefix(prefix) for text in replacements if prefix and text.startswith(prefix)), None)
    own = own or next((text for text in replacements if section is not None and _has(section, text)), None)
    if own is not None:
        return f"Use {own if relative else prefix + own}."
    replacement = replacements[0]
    if _has(Recipe, replacement):
        return f"Use {replacement.removeprefix(prefix) if relative else replacement}."
    sections = sections_with_field(_first_part(replacement))
    return f"Use {replacement} under {format_alternatives(sections)}."


def foreign_value_hint(key: Key, value: object) -> str:
    """Return what to write for the value of another tool, or "" if it is not known."""
    return VALUE_HINTS.get((".".join(map(str, key)), str(value)), "")


def _has(section: type[Section], replacement: str) -> bool:
    return _first_part(replacement) in section.model_fields


def _first_part(replacement: str) -> str:
    return replacement.partition(":")[0].partition(".")[0]
