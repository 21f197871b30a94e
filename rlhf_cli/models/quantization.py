"""Quantize the linear layers of a base model with bitsandbytes, find the layers that it leaves out, and undo it."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import AutoHfQuantizer

from rlhf_cli.errors import ModelError
from rlhf_cli.recipe.schema import Base

logger = logging.getLogger(__name__)

MAX_UNQUANTIZED = 0.05  # of the weights in matrices: routers and short convolutions take less, experts far more


class LayerWeights(NamedTuple):
    """Weights in matrices outside embeddings and heads.

    Attributes:
        quantized: The number of weights in quantized layers.
        unquantized: The number of weights in all other layers.
        classes: Names of the classes of those other layers.
    """

    quantized: int
    unquantized: int
    classes: set[str]


def quantization_config(base: Base, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return the quantization settings. transformers itself leaves output heads and score heads unquantized."""
    if base.quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
    )


def use_exact_kernels(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking the weights for its bfloat16 CPU kernel.

    It repacks them permanently at the first forward pass in eval mode without gradients, such as a rollout. That kernel
    does not have a backward pass: from then on every gradient through the layer is lost, with only a warning (measured:
    LoRA gradients wrong by 100 % of their norm). It also only supports widths that are multiples of 32. The plain path
    dequantizes and multiplies: exact, differentiable, any width, about 1.5 to 4 times slower in batches.
    """
    from bitsandbytes.nn import Linear4bit  # imported here because it costs 2 s

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def build_quantized_meta_model(base: Base, config: PreTrainedConfig) -> PreTrainedModel:
    """Return the language model of a config on the meta device, with the layers that a load would quantize replaced.

    An architecture that cannot be built may raise any exception.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    quantizer = AutoHfQuantizer.from_config(quantization_config(base, torch.float32), pre_quantized=False)
    quantizer.preprocess_model(model, device_map=None)
    return model


def find_quantized_layers(model: PreTrainedModel) -> dict[str, Any]:
    """Return the quantized layers of a model by name."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit | Linear8bitLt)}


def count_layer_weights(model: PreTrainedModel) -> LayerWeights:
    """Count the weights of quantized and other layers."""
    layers = set(find_quantized_layers(model).values())
    quantized = sum(layer.in_features * layer.out_features for layer in layers)  # nf4 packs two weights into a byte
    unquantized, classes = 0, set()
    for module in model.base_model.modules():  # without heads
        if module in layers or isinstance(module, nn.Embedding):
            continue
        weights = sum(parameter.numel() for parameter in module.parameters(recurse=False) if parameter.ndim > 1)
        if weights:
            unquantized += weights
            classes.add(type(module).__name__)
    return LayerWeights(quantized, unquantized, classes)


def check_quantized(model: PreTrainedModel) -> LayerWeights:
    """Return the counts of `count_layer_weights`.

    Raises:
        ModelError: No layer of the model is quantized.
    """
    found = count_layer_weights(model)
    if not found.quantized:
        raise ModelError(
            "model.not-quantized",
            f"bitsandbytes cannot quantize any layer of this {model.config.model_type} model; found "
            f"{', '.join(sorted(found.classes))}, expected Linear or Conv1D.",
            location="base.quantize",
            hint="Set base.quantize to none.",
        )
    return found


def warn_of_unquantized(base: Base, found: LayerWeights) -> None:
    """Warn if a considerable share of the weights stays unquantized."""
    share = found.unquantized / (found.quantized + found.unquantized)
    if share > MAX_UNQUANTIZED:
        names = ", ".join(sorted(found.classes))
        logger.warning(
            f"base.quantize: {share:.0%} of the layers' weights are not quantized to {base.quantize}: {names}"
        )


def dequantize(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with all layers dequantized, in their original classes.

    transformers puts a Linear in place of every layer, also of GPT-2's Conv1D, which stores its weight transposed.
    """
    transposed = [name for name, layer in find_quantized_layers(model).items() if issubclass(layer.source_cls, Conv1D)]
    model = model.dequantize()
    for name in transposed:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        with torch.device("meta"):
            layer = Conv1D(linear.out_features, linear.in_features)
        layer.weight = nn.Parameter(linear.weight.detach().T.contiguous())
        layer.bias = linear.bias
        model.set_submodule(name, layer)
    return model
