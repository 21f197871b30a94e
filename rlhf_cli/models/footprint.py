"""Measure a model's memory before its weights are loaded.

The model is built from its config on torch's meta device, the recipe's adapter is attached, and the model is called
there (see `models.activation_tracing`). Weights and saved activations are counted exactly, for any architecture.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from rlhf_cli.formatting import format_bytes
from rlhf_cli.models import adapters, quantization
from rlhf_cli.models.activation_tracing import build_meta_model, trace_forward
from rlhf_cli.models.fsdp import find_layers
from rlhf_cli.models.loading import compute_dtype, default_device, silence_library_logging
from rlhf_cli.recipe.schema import Adapter, Base

TRACED_WIDTHS = (64, 128, 256)  # tokens of the traced rows; the bytes are a polynomial of degree 2 in the width
NF4_BYTES = 0.5 + (1 + 4 / 256) / 64  # per weight: 4 bits, an 8-bit scale for 64, a float32 scale for 256 scales
SHOWN_BYTES = 5e5  # smaller parts are left out of a printed breakdown


class QuadraticCost(NamedTuple):
    """Bytes that a batch of rows of equal width takes, as a polynomial in the width."""

    fixed: float
    per_token: float
    per_token_pair: float  # per token and token of the same row

    def total(self, rows: int, width: int) -> float:
        """Return the bytes of `rows` rows of `width` tokens."""
        return self.fixed + rows * width * (self.per_token + self.per_token_pair * width)


class ModelFootprint(NamedTuple):
    """The memory of one model with one adapter (or trained whole) on this process's device, in bytes."""

    weights: float  # as loaded, frozen and quantized
    mapped: float  # on a CPU: pages of the weight file that stay mapped although nothing reads them any more
    layers: float  # the part of `weights` in transformer layers, which FSDP shards
    largest_layer: float  # the largest transformer layer
    output_head: float  # the part of `weights` in an untied output layer, which a scorer does not have
    trainable: float  # parameters that one role trains, in float32: its adapter, or all weights
    embedding_gradient: float  # the largest gradient of a whole model, in float32; 0 with an adapter
    largest_dequantized: float  # the largest quantized layer in the dtype of computation, while it is multiplied
    itemsize: int  # of the dtype of computation
    vocab_size: int  # token ids
    hidden_state: float  # per token
    saved_activations: QuadraticCost  # saved for the backward pass
    checkpointed_activations: QuadraticCost  # the same if layers recompute their activations
    widest_activation: float  # per token, the largest tensor of a layer
    kv_cache: float  # per token, keys and values of all layers
    is_traced: bool  # False if the model could not be called; then the four fields above are 0


class MemoryBreakdown(NamedTuple):
    """The memory in use at one moment by purpose, in bytes."""

    weights: float
    adapters: float
    training: float  # gradients and the optimizer's moments
    activations: float
    cache: float  # keys and values of a rollout
    logits: float
    copies: float  # in main memory: a snapshot of the weights, or a state that is being saved
    mapped: float  # pages of a file that the system reclaims if memory is short

    @property
    def total(self) -> float:
        """All bytes."""
        return sum(self)

    @property
    def needed(self) -> float:
        """The bytes that the device must have; without pages that the system can reclaim."""
        return self.total - self.mapped

    def __str__(self) -> str:
        return ", ".join(f"{name} {format_bytes(size)}" for name, size in self._asdict().items() if size >= SHOWN_BYTES)


def measure_footprint(base: Base, adapter: Adapter | None, source: str, *, padded: bool) -> ModelFootprint:
    """Measure the model at `source` as it would be loaded. Its weights are not read.

    Args:
        base: Gives the revision, dtype, attention kernel and quantization.
        adapter: Settings of the adapter, or None if the whole model is trained.
        source: A Hub id or a directory.
        padded: Whether attention gets a mask, as for padded rows.

    Raises:
        OSError, ValueError: The config is missing, or no model can be built from it; an architecture may raise other
            exceptions.
    """
    silence_library_logging()
    dtype = compute_dtype(base, default_device())
    config = AutoConfig.from_pretrained(source, revision=base.revision, trust_remote_code=False)
    model = build_meta_model(config, dtype)
    footprint = _measure_weights(base, config, model, dtype)
    if adapter is None:
        model.float()
    else:
        trainable = sum(parameter.numel() for parameter in _attach_adapter(model, adapter))
        footprint = footprint._replace(trainable=4 * trainable, embedding_gradient=0)
    eager = base.attention == "eager"
    try:
        traces = [trace_forward(model, width, dtype, padded=padded, eager=eager) for width in TRACED_WIDTHS]
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError, KeyError, IndexError):
        return footprint  # for example a mixture of experts, whose routing depends on the numbers
    return footprint._replace(
        saved_activations=_fit_cost([sum(trace.saved) for trace in traces]),
        checkpointed_activations=_fit_cost([trace.checkpointed for trace in traces]),
        widest_activation=max(
            _fit_cost(sizes).per_token for sizes in zip(*(trace.saved for trace in traces), strict=True)
        ),
        kv_cache=traces[0].kv_cache / TRACED_WIDTHS[0],
        is_traced=True,
    )


def count_trainable(base: Base, adapter: Adapter | None, source: str) -> dict[str, int]:
    """Return the number of trainable parameters by module name, over all layers.

    Arguments and errors are those of `measure_footprint`.
    """
    silence_library_logging()
    config = AutoConfig.from_pretrained(source, revision=base.revision, trust_remote_code=False)
    model = build_meta_model(config, torch.float32)
    if adapter is not None:
        _attach_adapter(model, adapter)
    counts: dict[str, int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            module = re.sub(r"\.(lora_|weight$|bias$).*", "", name)
            counts[module.rpartition(".")[2]] += parameter.numel()
    return dict(counts)


def measure_reward_model(base: Base) -> float:
    """Return the bytes of a third-party reward model, unquantized. Errors are those of `measure_footprint`."""
    silence_library_logging()
    config = AutoConfig.from_pretrained(base.model, revision=base.revision, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, dtype=compute_dtype(base, default_device()))
    return float(sum(parameter.nbytes for parameter in model.parameters()))


def _measure_weights(base: Base, config: Any, model: PreTrainedModel, dtype: torch.dtype) -> ModelFootprint:
    """Return the footprint of a model that is trained whole, without activations."""
    head = model.get_output_embeddings()
    embeddings = model.get_input_embeddings().weight
    has_own_head = head is not None and head.weight is not embeddings
    quantized: list[Any] = []
    if base.quantize != "none":
        names = quantization.find_quantized_layers(quantization.build_quantized_meta_model(base, config))
        quantized = [model.get_submodule(name) for name in names]
    layers = [sum(parameter.nbytes for parameter in layer.parameters()) for layer in find_layers(model)]
    count = sum(parameter.numel() for parameter in model.parameters())
    quantized_count = sum(module.weight.numel() for module in quantized)
    quantized_bytes = quantized_count * (NF4_BYTES if base.quantize == "nf4" else 1)
    is_mapped = default_device().type == "cpu" and config.dtype == dtype
    text = config.get_text_config()
    return ModelFootprint(
        weights=(count - quantized_count) * dtype.itemsize + quantized_bytes,
        mapped=quantized_count * dtype.itemsize if is_mapped else 0,
        layers=sum(layers),
        largest_layer=max(layers, default=0),
        output_head=head.weight.nbytes if has_own_head else 0,
        trainable=4 * count,
        embedding_gradient=4 * embeddings.numel(),
        largest_dequantized=max((module.weight.nbytes for module in quantized), default=0),
        itemsize=dtype.itemsize,
        vocab_size=text.vocab_size,
        hidden_state=text.hidden_size * dtype.itemsize,
        saved_activations=QuadraticCost(0, 0, 0),
        checkpointed_activations=QuadraticCost(0, 0, 0),
        widest_activation=0,
        kv_cache=0,
        is_traced=False,
    )


def _attach_adapter(model: PreTrainedModel, adapter: Adapter) -> list[nn.Parameter]:
    """Attach a new adapter to a model on the meta device. Return its parameters."""
    with torch.device("meta"):
        get_peft_model(model, adapters.lora_config(adapter, "CAUSAL_LM", model))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _fit_cost(sizes: Sequence[int]) -> QuadraticCost:
    """Return the polynomial through the sizes at TRACED_WIDTHS, by Newton's divided differences."""
    width_0, width_1, width_2 = TRACED_WIDTHS
    size_0, size_1, size_2 = sizes
    slope_01 = (size_1 - size_0) / (width_1 - width_0)
    slope_12 = (size_2 - size_1) / (width_2 - width_1)
    per_token_pair = (slope_12 - slope_01) / (width_2 - width_0)
    per_token = slope_01 - per_token_pair * (width_0 + width_1)
    fixed = size_0 - per_token * width_0 - per_token_pair * width_0 * width_0
    return QuadraticCost(fixed, per_token, per_token_pair)
