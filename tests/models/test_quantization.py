"""Test that every load says which layers are not quantized, and that dequantized layers are the original ones."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from rlhf_cli.errors import ModelError
from rlhf_cli.models import loading, quantization
from tests.support.families import MakeFamily
from tests.support.issues import raises_issue
from tests.support.plain_models import base_of

IDS = torch.arange(3, 23).reshape(2, 10)


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
@pytest.mark.parametrize("load", [loading.load_causal_lm, loading.load_scorer])
def test_load_quantized_falcon_whose_layers_bitsandbytes_skips_is_refused(
    make_family: MakeFamily, quantize: str, load: object
) -> None:
    folder = make_family("falcon")
    assert callable(load)
    with raises_issue("model.not-quantized", error=ModelError, location="base.quantize") as issues:
        load(base_of(folder, quantize=quantize), str(folder))
    assert "found FalconLinear, expected" in issues[0].message


def test_check_quantization_refuses_before_weights_are_read(make_family: MakeFamily, tmp_path: Path) -> None:
    shutil.copy(make_family("falcon") / "config.json", tmp_path)
    loading.check_quantization(base_of(tmp_path), str(tmp_path))
    with raises_issue("model.not-quantized", error=ModelError, location="base.quantize"):
        loading.check_quantization(base_of(tmp_path, quantize="nf4"), str(tmp_path))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_check_quantization_passes_if_some_layers_are_quantized(make_family: MakeFamily, name: str) -> None:
    folder = make_family(name)
    loading.check_quantization(base_of(folder, quantize="nf4"), str(folder))


def test_load_quantized_mixture_of_experts_warns_with_the_unquantized_share(
    make_family: MakeFamily, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_family("mixtral")
    with caplog.at_level(logging.WARNING, logger="rlhf_cli"):
        loading.load_causal_lm(base_of(folder, quantize="nf4"), str(folder))
    matrices = {
        name: parameter.numel()
        for name, parameter in AutoModelForCausalLM.from_pretrained(folder).named_parameters()
        if parameter.ndim > 1 and "embed" not in name and "lm_head" not in name
    }
    share = 1 - sum(size for name, size in matrices.items() if "self_attn" in name) / sum(matrices.values())
    (record,) = caplog.records
    assert f"{share:.0%} of the layers' weights" in record.getMessage()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_load_quantized_model_of_linear_layers_does_not_warn(
    make_family: MakeFamily, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    folder = make_family(name)
    with caplog.at_level(logging.WARNING, logger="rlhf_cli"):
        loading.load_causal_lm(base_of(folder, quantize="nf4"), str(folder))
    assert not caplog.records


def test_dequantize_restores_transposed_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=64, n_layer=2, n_head=4, n_positions=32, initializer_range=0.2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model = loading.load_causal_lm(base_of(tmp_path, quantize="nf4"), str(tmp_path))
    packed = model.get_submodule("transformer.h.1.mlp.c_fc").weight
    expected = dequantize_4bit(packed.data, packed.quant_state)  # (4·64, 64)
    with torch.no_grad():
        logits = model(IDS).logits
        model = quantization.dequantize(model)
        torch.testing.assert_close(model(IDS).logits, logits, rtol=1e-4, atol=1e-5)
    layer = model.get_submodule("transformer.h.1.mlp.c_fc")
    assert isinstance(layer, Conv1D)
    assert torch.equal(layer.weight, expected.T)
    stored = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in stored.state_dict().items()
    }
    assert torch.equal(layer.bias, stored.get_submodule("transformer.h.1.mlp.c_fc").bias)
