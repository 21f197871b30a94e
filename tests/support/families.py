"""Model families: a tiny random model of each, and what docs/models.md says about it.

Each model has 2 layers and width 32. Its weights are large enough that positions, neighbors and adapters show in the
outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
WITH_HEAD_DIM = {**GROUPED, "head_dim": 8}
MULTI_HEAD = {**SIZES, "num_key_value_heads": 4}
GPT_SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
SLIDING_AND_FULL = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR_AND_FULL = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
SIGLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 64,
}


class Family(NamedTuple):
    """One model family.

    Attributes:
        model_type: transformers' name of the architecture.
        examples: Published models, for the table.
        config: Config values of a tiny model.
        name: Name of the test case, if it is not `model_type`.
        vision: Config values of a vision part, whose model then has a nested config, or None.
        note: Remarks for the table.
    """

    model_type: str
    examples: str
    config: dict[str, Any]
    name: str = ""
    vision: dict[str, Any] | None = None
    note: str = ""

    @property
    def id(self) -> str:
        """The name of the test case."""
        return self.name or self.model_type


FAMILIES = (
    Family("apertus", "Apertus", GROUPED, note="score head of rlhf"),
    Family("biogpt", "BioGPT", SIZES),
    Family("bloom", "BLOOM", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    Family("codegen", "CodeGen", {**GPT_SIZES, "rotary_dim": 8}, note="score head of rlhf"),
    Family("cohere", "Command R", {**GROUPED, "logit_scale": 0.25}, note="score head of rlhf; scaled logits"),
    Family(
        "cohere2",
        "Command R7B, Command A",
        {**GROUPED, **SLIDING_AND_FULL, "logit_scale": 0.25},
        note="score head of rlhf; scaled logits",
    ),
    Family(
        "deepseek_v3",
        "DeepSeek V3 and R1, Kimi K2",
        {
            **MULTI_HEAD,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
    Family("ernie4_5", "ERNIE 4.5", GROUPED, note="score head of rlhf"),
    Family("exaone4", "EXAONE 4", {**GROUPED, "sliding_window": 8}),
    Family(
        "falcon",
        "Falcon",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "multi_query": True,
            "max_position_embeddings": 128,
        },
    ),
    Family("gemma", "Gemma", WITH_HEAD_DIM),
    Family(
        "gemma2",
        "Gemma 2",
        {**WITH_HEAD_DIM, "sliding_window": 8, "final_logit_softcapping": 2.0},
        note="capped logits",
    ),
    Family("gemma3_text", "Gemma 3 1B", {**WITH_HEAD_DIM, **SLIDING_AND_FULL}),
    Family("gemma3", "Gemma 3 4B to 27B", {**WITH_HEAD_DIM, **SLIDING_AND_FULL}, vision=SIGLIP),
    Family(
        "gemma3n_text",
        "Gemma 3n (text only)",
        {
            **WITH_HEAD_DIM,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 8,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 330,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.0, 0.0],
        },
        note="score head of rlhf",
    ),
    Family(
        "gemma4_text",
        "Gemma 4 (text only)",
        {
            **WITH_HEAD_DIM,
            **SLIDING_AND_FULL,
            "final_logit_softcapping": 2.0,
            "global_head_dim": 8,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 330,
        },
        note="score head of rlhf; capped logits",
    ),
    Family("glm4", "GLM-4", WITH_HEAD_DIM),
    Family(
        "glm4_moe",
        "GLM-4.5",
        {
            **WITH_HEAD_DIM,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
        },
        note="score head of rlhf",
    ),
    Family("gpt2", "GPT-2", GPT_SIZES),
    Family("gpt_bigcode", "StarCoder, SantaCoder", {**GPT_SIZES, "multi_query": True}),
    Family(
        "gpt_neo",
        "GPT-Neo",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "max_position_embeddings": 128,
        },
    ),
    Family("gpt_neox", "GPT-NeoX, Pythia", SIZES),
    Family("gpt_oss", "gpt-oss", {**WITH_HEAD_DIM, **LOCAL_EXPERTS, **SLIDING_AND_FULL}),
    Family("gptj", "GPT-J", {**GPT_SIZES, "rotary_dim": 8}),
    Family(
        "granite",
        "Granite 3",
        {
            **GROUPED,
            "logits_scaling": 8.0,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.0156,
        },
        note="score head of rlhf; scaled logits",
    ),
    Family(
        "granitemoehybrid",
        "Granite 4",
        {
            **GROUPED,
            "logits_scaling": 2.0,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 32,
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
        },
        note="score head of rlhf; scaled logits; adapters leave out_proj of its state-space layers out",
    ),
    Family("hunyuan_v1_dense", "Hunyuan", WITH_HEAD_DIM),
    Family(
        "lfm2",
        "LFM2",
        {**GROUPED, "layer_types": ["conv", "full_attention"], "full_attn_idxs": [1]},
        note="score head of rlhf",
    ),
    Family("llama", "Llama 2 and 3, SmolLM2, Yi, TinyLlama", WITH_HEAD_DIM),
    Family("mistral", "Mistral, Ministral", {**WITH_HEAD_DIM, "sliding_window": 8}),
    Family("mixtral", "Mixtral", {**WITH_HEAD_DIM, **LOCAL_EXPERTS, "sliding_window": None}),
    Family("mpt", "MPT", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128}),
    Family("nemotron", "Nemotron, Minitron", WITH_HEAD_DIM),
    Family("olmo2", "OLMo 2", MULTI_HEAD),
    Family("olmo3", "OLMo 3", {**MULTI_HEAD, "sliding_window": 8}),
    Family("olmoe", "OLMoE", {**MULTI_HEAD, "num_experts": 4, "num_experts_per_tok": 2}, note="score head of rlhf"),
    Family(
        "opt",
        "OPT",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 48,
            "max_position_embeddings": 128,
            "word_embed_proj_dim": 32,
        },
    ),
    Family(
        "opt",
        "OPT-350m",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 48,
            "max_position_embeddings": 128,
            "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
        },
        name="opt-projected",
    ),
    Family("phi", "Phi-1 to Phi-2", MULTI_HEAD),
    Family("phi3", "Phi-3, Phi-4", GROUPED),
    Family(
        "phi3",
        "Phi-3-128k, Phi-3.5-mini, Phi-4-mini",
        {**GROUPED, "rope_parameters": LONG_ROPE, "original_max_position_embeddings": 64},
        name="phi3-longrope",
        note="rows up to the switch of its rope factors (4,096 tokens)",
    ),
    Family("phimoe", "Phi-3.5-MoE", {**GROUPED, **LOCAL_EXPERTS}, note="adapters leave its routers out"),
    Family("qwen2", "Qwen2, Qwen2.5", {**GROUPED, "tie_word_embeddings": True}),
    Family("qwen2_moe", "Qwen1.5-MoE, Qwen2-MoE", {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 32}),
    Family("qwen3", "Qwen3", {**WITH_HEAD_DIM, "tie_word_embeddings": True}),
    Family("qwen3_moe", "Qwen3-MoE", {**WITH_HEAD_DIM, **EXPERTS}),
    Family(
        "qwen3_next",
        "Qwen3-Next",
        {
            **WITH_HEAD_DIM,
            **EXPERTS,
            **LINEAR_AND_FULL,
            "shared_expert_intermediate_size": 32,
        },
    ),
    Family("qwen3_5_text", "Qwen3.5 (text only)", {**WITH_HEAD_DIM, **LINEAR_AND_FULL}),
    Family(
        "qwen3_5",
        "Qwen3.5",
        {**WITH_HEAD_DIM, **LINEAR_AND_FULL},
        vision={
            "hidden_size": 16,
            "intermediate_size": 32,
            "depth": 1,
            "num_heads": 2,
            "out_hidden_size": 32,
        },
    ),
    Family("smollm3", "SmolLM3", {**GROUPED, "no_rope_layers": [1, 0]}),
    Family("stablelm", "StableLM", MULTI_HEAD),
    Family("starcoder2", "StarCoder2", GROUPED),
    Family(
        "xglm",
        "XGLM",
        {
            "d_model": 32,
            "num_layers": 2,
            "attention_heads": 4,
            "ffn_dim": 48,
            "max_position_embeddings": 128,
        },
        note="score head of rlhf",
    ),
)


MakeFamily = Callable[[str], Path]


@pytest.fixture(scope="session")
def make_family(tmp_path_factory: pytest.TempPathFactory) -> MakeFamily:
    """Return a function that writes the tiny model of the family with the given id, once. It returns the folder."""
    folders: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in folders:
            family = next(family for family in FAMILIES if family.id == name)
            folders[name] = build_family(family, tmp_path_factory.mktemp(name))
        return folders[name]

    return make


def build_family(family: Family, folder: Path) -> Path:
    """Write the family's tiny model with random weights and a tokenizer. Return `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    from tests.support.tokenizers import build_tokenizer

    tokenizer = build_tokenizer(bos=True, special=("<pad>",), pad_token="<pad>")
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {**ids, **family.config}
    if family.vision is None:
        config = AutoConfig.for_model(family.model_type, **text)
    else:
        config = AutoConfig.for_model(family.model_type, text_config=text, vision_config=family.vision)
    torch.manual_seed(0)
    auto_class = AutoModelForCausalLM if family.vision is None else AutoModelForImageTextToText
    model = auto_class.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, min(0.3, 1.2 / parameter.shape[-1] ** 0.5))
            elif name.endswith("bias"):
                parameter.normal_(0, 0.02)
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
