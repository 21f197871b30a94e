"""Test that a tiny model keeps the architecture of the full-size one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen3Config

from rlhf_cli.errors import ModelError
from rlhf_cli.models.tiny_model import save_tiny_model
from tests.support.issues import raises_issue


def save_tiny(config: PreTrainedConfig, folder: Path) -> PreTrainedConfig:
    """Write a tiny model and return its config."""
    save_tiny_model(AutoModelForCausalLM, config, str(folder), source="org/model")
    return AutoModelForCausalLM.from_pretrained(folder).config


def test_save_tiny_model_keeps_architecture_and_layer_types(tmp_path: Path) -> None:
    config = Qwen3Config(
        vocab_size=300,
        hidden_size=96,
        intermediate_size=200,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=32,
        use_sliding_window=True,
        sliding_window=8,
        layer_types=["full_attention"] * 4 + ["sliding_attention"] * 2,
        tie_word_embeddings=True,
    )
    tiny = save_tiny(config, tmp_path)
    assert type(tiny) is Qwen3Config
    assert (tiny.num_hidden_layers, tiny.hidden_size, tiny.vocab_size) == (2, 64, 300)
    assert (tiny.num_attention_heads, tiny.num_key_value_heads) == (4, 2)
    assert tiny.layer_types == ["full_attention", "sliding_attention"]
    assert tiny.tie_word_embeddings


@pytest.mark.parametrize(("kv_heads", "expected"), [(1, 1), (3, 2), (6, 4)])
def test_save_tiny_model_keeps_the_kind_of_attention(tmp_path: Path, kv_heads: int, expected: int) -> None:
    """Multi-query, grouped-query and multi-head attention keep their kind."""
    config = LlamaConfig(
        vocab_size=30,
        hidden_size=96,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=kv_heads,
    )
    assert save_tiny(config, tmp_path).num_key_value_heads == expected


def test_save_tiny_model_unsupported_architecture_raises_issue(tmp_path: Path) -> None:
    class Broken:
        @staticmethod
        def from_config(*_: object, **__: object) -> None:
            raise ValueError("not divisible")

    with raises_issue("model.unsupported-architecture", error=ModelError, location="org/model") as issues:
        save_tiny_model(Broken, LlamaConfig(), str(tmp_path), source="org/model")
    assert issues[0].message == "llama: --smoke cannot shrink this architecture: ValueError: not divisible."


LONG_ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48, "long_factor": [4.0] * 48}
PUBLISHED: dict[str, dict[str, Any]] = {  # sizes of published models, or the defaults of their configs
    "falcon": {"hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71, "multi_query": True},
    "gptj": {},
    "gpt_neo": {"num_layers": 12, "num_heads": 12, "hidden_size": 768, "attention_types": [[["global", "local"], 6]]},
    "deepseek_v3": {},
    "phi3": {"original_max_position_embeddings": 4096, "rope_parameters": LONG_ROPE, "pad_token_id": 0},
    "qwen3_next": {},
    "gpt_oss": {},
    "gemma4_text": {"num_key_value_heads": 16, "num_attention_heads": 32, "num_global_key_value_heads": 4},
}


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_save_tiny_model_of_published_shape_runs(tmp_path: Path, model_type: str) -> None:
    config = AutoConfig.for_model(model_type, vocab_size=384, **PUBLISHED[model_type])
    save_tiny_model(AutoModelForCausalLM, config, str(tmp_path), source="org/model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.get_text_config().num_hidden_layers == 2
    assert sum(parameter.numel() for parameter in model.parameters()) < 10**7
    assert model(torch.arange(3, 13)[None]).logits.isfinite().all()
