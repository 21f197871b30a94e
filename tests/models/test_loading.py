"""Loading the base: quantization that stays differentiable, refusals with a hint, and the smoke model."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3Config,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rlhf_cli.errors import HardwareError, ModelError
from rlhf_cli.models import adapters, loading
from rlhf_cli.recipe.schema import Adapter, Base

IDS = torch.arange(3, 23).reshape(2, 10)


def recipe(folder: Path, **fields: object) -> Base:
    return Base(model=str(folder), **fields)


def test_a_plain_load_is_the_stored_model(base_folder: Path) -> None:
    model = loading.load_causal_lm(recipe(base_folder), str(base_folder))
    stored = AutoModelForCausalLM.from_pretrained(base_folder)
    assert torch.equal(model(IDS).logits, stored(IDS).logits)
    assert not model.training


def test_auto_dtype_is_float32_on_a_cpu() -> None:
    assert loading.compute_dtype(Base(model="x"), torch.device("cpu")) == torch.float32
    assert loading.compute_dtype(Base(model="x", dtype="bfloat16"), torch.device("cpu")) == torch.bfloat16


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(max_position_embeddings=300), 300),
        (GPT2Config(n_positions=200), 200),
        (Gemma3Config(text_config={"max_position_embeddings": 100}), 100),  # text beside pictures
        (BloomConfig(), None),  # ALiBi has no bound
    ],
)
def test_positions_are_those_of_the_config(tmp_path: Path, config: PreTrainedConfig, expected: int | None) -> None:
    config.save_pretrained(tmp_path)
    assert loading.read_model_sizes(str(tmp_path), "main").positions == expected


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_quantized_linears_and_full_heads(base_folder: Path, quantize: str) -> None:
    causal = loading.load_causal_lm(recipe(base_folder, quantize=quantize), str(base_folder))
    scorer = loading.load_scorer(recipe(base_folder, quantize=quantize), str(base_folder))
    expected = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quantize]
    assert type(causal.model.layers[0].mlp.down_proj).__name__ == expected
    assert type(causal.lm_head) is nn.Linear
    assert type(scorer.score) is nn.Linear
    assert scorer.score.weight.shape == (1, 64)


def test_nf4_gradients_survive_a_rollout_in_eval_mode(base_folder: Path, adapter: Adapter) -> None:
    """bitsandbytes' CPU kernel for inference has no backward pass, and stays in place once it was used."""

    def gradients(*, dequantized: bool) -> dict[str, torch.Tensor]:
        model = loading.load_causal_lm(recipe(base_folder, quantize="nf4"), str(base_folder))
        if dequantized:
            model = model.dequantize()
        torch.manual_seed(0)
        model = adapters.attach(model, adapter, task="CAUSAL_LM", start=None)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
        model.eval()
        with torch.no_grad():
            model(input_ids=IDS)
        model(input_ids=IDS, labels=IDS).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    expected = gradients(dequantized=True)
    for name, gradient in gradients(dequantized=False).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)  # float32 sums


def test_nf4_takes_widths_that_are_no_multiple_of_its_block(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=40, intermediate_size=172, num_hidden_layers=1, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = loading.load_causal_lm(recipe(tmp_path, quantize="nf4"), str(tmp_path))
    with torch.no_grad():
        quantized = model(IDS).logits
        torch.testing.assert_close(quantized, model.dequantize()(IDS).logits, rtol=1e-4, atol=1e-5)


def test_an_absent_kernel_is_a_hardware_error(base_folder: Path) -> None:
    with pytest.raises(HardwareError, match="flash_attention_2"):
        loading.load_causal_lm(recipe(base_folder, attention="flash_attention_2"), str(base_folder))


def test_eager_attention_is_taken(base_folder: Path) -> None:
    model = loading.load_causal_lm(recipe(base_folder, attention="eager"), str(base_folder))
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("load", [loading.load_causal_lm, loading.load_scorer, loading.load_tokenizer])
def test_an_absent_folder_is_told_without_asking_the_hub(tmp_path: Path, load: object) -> None:
    first = "main" if load is loading.load_tokenizer else recipe(tmp_path)
    arguments = (str(tmp_path / "none"), first) if load is loading.load_tokenizer else (first, str(tmp_path / "none"))
    with pytest.raises(ModelError, match="no model folder"):
        load(*arguments)  # type: ignore[operator]


def test_missing_tensors_are_refused_rather_than_drawn_at_random(tmp_path: Path, base_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    state = {name: tensor for name, tensor in model.state_dict().items() if "layers.1.mlp.up_proj" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj"):
        loading.load_causal_lm(recipe(tmp_path), str(tmp_path))


def test_an_adapter_folder_as_base_is_told(make_adapter, adapter: Adapter) -> None:
    folder = make_adapter()
    with pytest.raises(ModelError, match="adapter"):
        loading.load_causal_lm(recipe(folder), str(folder))


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_smoke_model_is_small_deterministic_and_leaves_the_rng_alone(base_folder: Path, quantize: str) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = loading.load_causal_lm(recipe(base_folder, quantize=quantize), str(base_folder), smoke=True)
    assert torch.equal(before, torch.random.get_rng_state())
    second = loading.load_causal_lm(recipe(base_folder, quantize=quantize), str(base_folder), smoke=True)
    assert torch.equal(first(IDS).logits, second(IDS).logits)
    assert first.config.num_hidden_layers == 2
    assert first.name_or_path == str(base_folder)  # what PEFT writes as the adapter's base
    stored = AutoModelForCausalLM.from_pretrained(base_folder)
    assert not torch.equal(first(IDS).logits, stored(IDS).logits)


def test_smoke_keeps_the_architecture_and_its_kinds_of_layers(tmp_path: Path) -> None:
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
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    model = loading.load_causal_lm(recipe(tmp_path), str(tmp_path), smoke=True)
    assert type(model) is Qwen3ForCausalLM
    small = model.config
    assert (small.num_hidden_layers, small.hidden_size, small.vocab_size) == (2, 64, 300)
    assert (small.num_attention_heads, small.num_key_value_heads) == (4, 2)
    assert small.layer_types == ["full_attention", "sliding_attention"]
    assert small.tie_word_embeddings
