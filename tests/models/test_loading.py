"""Test loading the base: quantization that stays differentiable, refusals with a hint, and the smoke model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
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
)

from rlhf_cli.errors import HardwareError, ModelError
from rlhf_cli.models import adapters, loading
from rlhf_cli.recipe.schema import Adapter, Base
from tests.support.damaged_models import DAMAGES
from tests.support.issues import raises_issue
from tests.support.plain_models import MakeAdapter, base_of

IDS = torch.arange(3, 23).reshape(2, 10)


def test_load_causal_lm_equals_the_stored_model(base_folder: Path) -> None:
    model = loading.load_causal_lm(base_of(base_folder), str(base_folder))
    stored = AutoModelForCausalLM.from_pretrained(base_folder)
    assert torch.equal(model(IDS).logits, stored(IDS).logits)
    assert not model.training


def test_compute_dtype_auto_on_a_cpu_is_float32() -> None:
    assert loading.compute_dtype(Base(model="x"), torch.device("cpu")) == torch.float32
    assert loading.compute_dtype(Base(model="x", dtype="bfloat16"), torch.device("cpu")) == torch.bfloat16


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(max_position_embeddings=300), 300),
        (GPT2Config(n_positions=200), 200),
        (Gemma3Config(text_config={"max_position_embeddings": 100}), 100),  # a model of text and images
        (BloomConfig(), None),  # ALiBi does not limit positions
    ],
)
def test_read_model_sizes_positions_equal_those_of_the_config(
    tmp_path: Path, config: PreTrainedConfig, expected: int | None
) -> None:
    config.save_pretrained(tmp_path)
    assert loading.read_model_sizes(str(tmp_path), "main").positions == expected


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_load_quantized_leaves_heads_unquantized(base_folder: Path, quantize: str) -> None:
    causal = loading.load_causal_lm(base_of(base_folder, quantize=quantize), str(base_folder))
    scorer = loading.load_scorer(base_of(base_folder, quantize=quantize), str(base_folder))
    expected = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quantize]
    assert type(causal.model.layers[0].mlp.down_proj).__name__ == expected
    assert type(causal.lm_head) is nn.Linear
    assert type(scorer.score) is nn.Linear
    assert scorer.score.weight.shape == (1, 64)


def test_load_nf4_gradients_survive_a_rollout_in_eval_mode(base_folder: Path, adapter: Adapter) -> None:
    """bitsandbytes' CPU kernel for inference does not have a backward pass, and stays in place once it is used."""

    def gradients(*, dequantized: bool) -> dict[str, torch.Tensor]:
        model = loading.load_causal_lm(base_of(base_folder, quantize="nf4"), str(base_folder))
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
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients(dequantized=True)
    for name, gradient in gradients(dequantized=False).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)  # float32 sums


def test_load_nf4_width_that_is_no_multiple_of_the_block_is_exact(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=40, intermediate_size=172, num_hidden_layers=1, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = loading.load_causal_lm(base_of(tmp_path, quantize="nf4"), str(tmp_path))
    with torch.no_grad():
        quantized = model(IDS).logits
        torch.testing.assert_close(quantized, model.dequantize()(IDS).logits, rtol=1e-4, atol=1e-5)


def test_compute_dtype_unsupported_raises_issue() -> None:
    with raises_issue("hardware.unsupported-dtype", error=HardwareError, location="base.dtype") as issues:
        loading.compute_dtype(Base(model="x", dtype="float16"), torch.device("cpu"))
    assert issues[0].message.startswith("float16 is not supported: on a CPU")


def test_load_missing_kernel_raises_issue(base_folder: Path) -> None:
    with raises_issue("hardware.missing-kernel", error=HardwareError, location="base") as issues:
        loading.load_causal_lm(base_of(base_folder, attention="flash_attention_2"), str(base_folder))
    assert "cannot be loaded with quantize: none and attention: flash_attention_2" in issues[0].message


def test_load_eager_attention_is_used(base_folder: Path) -> None:
    model = loading.load_causal_lm(base_of(base_folder, attention="eager"), str(base_folder))
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: loading.load_causal_lm(base_of(folder), str(folder)),
        lambda folder: loading.load_scorer(base_of(folder), str(folder)),
        lambda folder: loading.load_tokenizer(str(folder), "main"),
    ],
    ids=["causal_lm", "scorer", "tokenizer"],
)
def test_load_missing_directory_raises_issue_without_asking_the_hub(
    tmp_path: Path, load: Callable[[Path], object]
) -> None:
    folder = tmp_path / "missing"
    with raises_issue("model.not-found", error=ModelError, location=str(folder)) as issues:
        load(folder)
    assert issues[0].message == "model directory not found."


@pytest.mark.parametrize(
    ("damage", "message", "hint"),
    [
        (
            "truncated_weights",
            "the model cannot be loaded: SafetensorError: ",
            "Use a complete transformers model directory",
        ),
        ("no_weights", "the model cannot be loaded: OSError: ", "Use a complete transformers model directory"),
        ("config_is_not_json", "the model cannot be loaded: OSError: ", "Use a complete transformers model directory"),
        ("unknown_architecture", "the model cannot be loaded: ", "Use a complete transformers model directory"),
        (
            "only_pickled_weights",
            "weights: pickles can run code when they are loaded; found only pickles (pytorch_model.bin), expected "
            "*.safetensors.",
            "Use a version with *.safetensors",
        ),
        (
            "missing_tensor",
            "weights: tensors of a LlamaForCausalLM are missing, such as model.norm.weight (1 in total).",
            "Check that the download is complete",
        ),
        (
            "another_width",
            "weights: tensors do not have the shapes given in config.json, such as lm_head.weight (21 in total); "
            "found (64, 64), expected (64, 128).",
            "Download the model again",
        ),
    ],
)
def test_load_damaged_directory_raises_issue(
    tmp_path: Path, base_folder: Path, damage: str, message: str, hint: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base_folder, folder)
    make_damage, code = DAMAGES[damage]
    make_damage(folder)
    with raises_issue(f"model.{code}", error=ModelError, location=str(folder)) as issues:
        loading.load_causal_lm(base_of(folder), str(folder))
    assert issues[0].message.startswith(message)
    assert issues[0].hint.startswith(hint)


def test_load_directory_without_config_raises_issue(tmp_path: Path) -> None:
    with raises_issue("model.incomplete", error=ModelError, location=str(tmp_path)) as issues:
        loading.load_causal_lm(base_of(tmp_path), str(tmp_path))
    assert issues[0].message == "config.json not found in the directory."
    assert issues[0].hint == "Use the directory of a transformers model."


def test_load_tokenizer_directory_without_one_raises_issue(base_folder: Path) -> None:
    with raises_issue("model.incomplete", error=ModelError, location=str(base_folder)) as issues:
        loading.load_tokenizer(str(base_folder), "main")
    assert issues[0].message == "tokenizer: not found in the directory."
    assert issues[0].hint.startswith("Copy the model's tokenizer.json and tokenizer_config.json")


def test_load_reward_model_config_with_two_labels_raises_issue(tmp_path: Path) -> None:
    LlamaConfig(num_labels=2).save_pretrained(tmp_path)
    with raises_issue("model.not-a-reward-model", error=ModelError, location=str(tmp_path)) as issues:
        loading.load_reward_model_config(str(tmp_path), "main")
    assert issues[0].message == "llama: a reward model has one label; found 2 labels, expected 1."
    assert "trained as a reward model" in issues[0].hint


def test_load_reward_model_config_of_an_adapter_raises_issue(make_adapter: MakeAdapter) -> None:
    folder = make_adapter("SEQ_CLS")
    with raises_issue("model.wrong-kind", error=ModelError, location=str(folder)) as issues:
        loading.load_reward_model_config(str(folder), "main")
    assert issues[0].message == "found an adapter, expected a full reward model."


def test_load_adapter_as_base_raises_issue(make_adapter: MakeAdapter) -> None:
    folder = make_adapter()
    with raises_issue("model.wrong-kind", error=ModelError, location=str(folder)) as issues:
        loading.load_causal_lm(base_of(folder), str(folder))
    assert issues[0].message == "found an adapter, expected a full model."


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_load_smoke_is_tiny_deterministic_and_draws_no_random_numbers(base_folder: Path, quantize: str) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = loading.load_causal_lm(base_of(base_folder, quantize=quantize), str(base_folder), smoke=True)
    assert torch.equal(before, torch.random.get_rng_state())
    second = loading.load_causal_lm(base_of(base_folder, quantize=quantize), str(base_folder), smoke=True)
    assert torch.equal(first(IDS).logits, second(IDS).logits)
    assert first.config.num_hidden_layers == 2
    assert first.name_or_path == str(base_folder)  # PEFT writes it as the adapter's base
    stored = AutoModelForCausalLM.from_pretrained(base_folder)
    assert not torch.equal(first(IDS).logits, stored(IDS).logits)
