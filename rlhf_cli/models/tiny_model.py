"""Write a tiny model with random weights and the architecture of another model, for smoke runs."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig

from rlhf_cli.errors import ModelError
from rlhf_cli.formatting import format_exception


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
    _shrink(config)
    try:
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
    text = config.get_text_config()
    heads, kv_heads = getattr(text, "num_attention_heads", None), getattr(text, "num_key_value_heads", None)
    tiny_kv_heads = 4
    if kv_heads == 1:
        tiny_kv_heads = 1
    elif kv_heads not in (None, heads):  # grouped-query attention
        tiny_kv_heads = 2
    tiny: dict[str, object] = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": tiny_kv_heads,
        "head_dim": 16,
        "intermediate_size": 128,
        "moe_intermediate_size": 128,
        "ffn_dim": 128,
        "word_embed_proj_dim": 64,
        "pooler_hidden_size": 64,
    }
    if layer_types := getattr(text, "layer_types", None):  # one layer of each of the first two types
        tiny["layer_types"] = (list(dict.fromkeys(layer_types)) * 2)[:2]
    for name, size in tiny.items():
        if getattr(text, name, None) is not None:
            setattr(text, name, size)
