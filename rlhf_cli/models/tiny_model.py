"""Write a tiny model with random weights and the architecture of another model, for smoke runs."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from transformers import PreTrainedConfig

from rlhf_cli.errors import ModelError
from rlhf_cli.formatting import format_exception

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "head_dim": 16,
    "global_head_dim": 16,
    "intermediate_size": 128,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 128,
    "shared_intermediate_size": 128,
    "ffn_dim": 128,
    "word_embed_proj_dim": 64,
    "pooler_hidden_size": 64,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_head_dim": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "hidden_size_per_layer_input": 16,
    "num_kv_shared_layers": 0,
    "out_hidden_size": 64,
    "depth": 2,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
}
LIMITS = {  # values that shrink only if they are larger
    "rotary_dim": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_kv_heads": 4,
}
LAYER_TYPES = ("layer_types", "attention_layers")  # lists that give the type of each layer


def save_tiny_model(model_class: Any, config: PreTrainedConfig, folder: str, *, source: str) -> None:
    """Write a tiny model to `folder`, with the same random weights at every call.

    Args:
        model_class: The transformers Auto class.
        config: The config of the full-size model; shrunk in place.
        folder: The directory to write to.
        source: A Hub id or a directory of the full-size model, for errors.

    Raises:
        ModelError: The architecture cannot be shrunk.
    """
    try:
        _shrink(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = model_class.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
        raise ModelError(
            "model.unsupported-architecture",
            f"{config.model_type}: --smoke cannot shrink this architecture: {format_exception(error).rstrip('.')}.",
            location=source,
            hint="Use another model of the same family, with `--set base.model=…` or in ppo.reward.",
        ) from error
    model.save_pretrained(folder)


def _shrink(config: Any) -> None:
    """Make a config tiny in place: 2 layers, width 64, and everything that depends on them."""
    for name in config.sub_configs:  # such as a vision part
        part = getattr(config, name, None)
        if part is not None:
            _set_sizes(part)
    _set_sizes(config.get_text_config())


def _set_sizes(config: Any) -> None:
    heads, kv_heads = getattr(config, "num_attention_heads", None), getattr(config, "num_key_value_heads", None)
    tiny_kv_heads = 4
    if kv_heads == 1:
        tiny_kv_heads = 1
    elif kv_heads not in (None, heads):  # grouped-query attention
        tiny_kv_heads = 2
    _cut_layer_lists(config)
    for name, size in {**SIZES, "num_key_value_heads": tiny_kv_heads}.items():
        _set_if_present(config, name, size)
    for name, limit in LIMITS.items():
        value = getattr(config, name, None)
        if isinstance(value, int) and value > limit:
            _set_if_present(config, name, limit)
    _cut_rope_factors(config)


def _cut_layer_lists(config: Any) -> None:
    """Cut each list with one value per layer to two layers, which are of different types if there are two types."""
    layers = getattr(config, "num_hidden_layers", None)
    lists = {name: value for name, value in vars(config).items() if isinstance(value, list) and len(value) == layers}
    types = next((lists[name] for name in LAYER_TYPES if name in lists), [])
    kept = [types.index(kind) for kind in dict.fromkeys(types)][:2]
    if len(kept) < 2:
        kept = [0, -1]
    for name, value in lists.items():
        _set_if_present(config, name, [value[i] for i in kept])
    if getattr(config, "is_heterogeneous", False):
        _cut_layer_overrides(config, [index % config.num_hidden_layers for index in kept])
    if getattr(config, "attention_types", None):  # of GPT-Neo, which expands them to `attention_layers`
        config.attention_types = [[config.attention_layers, 1]]


def _cut_layer_overrides(config: Any, kept: list[int]) -> None:
    """Keep the values in which the layers `kept` differ from the config, but for sizes, which become equal.

    Gemma 4 has another `head_dim` in its layers with full attention.
    """
    sizes = {*SIZES, "num_key_value_heads"}
    found = {int(index): values for index, values in config.to_dict()["per_layer_config"].items()}
    config.per_layer_config = {
        index: {name: value for name, value in found.get(layer, {}).items() if name not in sizes}
        for index, layer in enumerate(kept)
    }


def _cut_rope_factors(config: Any) -> None:
    """Cut the factors of long rope to those of a tiny head: one for each pair of its rotated dimensions."""
    rope = getattr(config, "rope_parameters", None) or {}
    fraction = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1
    for name in ("short_factor", "long_factor"):
        if rope.get(name) is not None:
            rope[name] = rope[name][: int(SIZES["head_dim"] * fraction) // 2]


def _set_if_present(config: Any, name: str, value: object) -> None:
    """Set a value that the config has, unless it computes it from others. A list has one value per layer."""
    # Not getattr for all names: Gemma 4 refuses to return a value that differs between its layers.
    before = vars(config)[name] if name in vars(config) else getattr(config, name, None)
    if before is not None:
        with contextlib.suppress(AttributeError, NotImplementedError):  # a read-only property
            setattr(config, name, [value, value] if isinstance(before, list) and isinstance(value, int) else value)
