"""Count the tensors that autograd saves in a forward pass, on torch's meta device: they have a shape and no memory.

The tensors are those that autograd really saves, for any architecture and any target modules, in the dtypes that they
will have. In one Llama block in float32 with LoRA on all its linear layers they take, per token, with hidden width H,
width A of all query heads, K of the key (or value) heads, intermediate width I, h heads and rank r:

    4 · (4H + 2A + 2K + 4I + h + 7r + 2) bytes: input and output of both norms (4H); queries and the attention's output
    (2A); keys and values (2K, or 2A plus T if padding adds a mask of T tokens); gate, up, activation and their product
    (4I); one number per head and per norm that the kernels keep (h + 2); the hidden layer of each of seven adapters
    (7r).
"""

from __future__ import annotations

import functools
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import linear
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

ATTENTION = "rlhf_counted"  # name of the attention that saves the same tensors as the fused kernels


class TracedForward(NamedTuple):
    """Memory that a forward pass of one row leaves, in bytes."""

    saved: list[int]  # each tensor that autograd saves, in the order of saving
    checkpointed: int  # all that is alive if layers recompute their activations: their inputs, and the largest layer
    kv_cache: int  # keys and values of all layers


def build_meta_model(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """Return the language model of a config on the meta device, with the counting attention."""
    AttentionInterface.register(ATTENTION, _counting_attention([], padded=False, eager=False))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION)


def trace_forward(
    model: PreTrainedModel, width: int, dtype: torch.dtype, *, padded: bool, eager: bool
) -> TracedForward:
    """Call a model from `build_meta_model` with one row and count the tensors that its forward pass saves.

    Args:
        model: The model; autograd saves tensors for its parameters with gradients.
        width: Tokens of the row.
        dtype: The dtype of computation.
        padded: Whether attention gets a mask, as for padded rows.
        eager: Whether attention forms all its weights, as the eager kernel does.
    """
    keys_and_values: list[Tensor] = []
    AttentionInterface.register(ATTENTION, _counting_attention(keys_and_values, padded=padded, eager=eager))
    recorder = _SavedTensorRecorder(model)
    with _autocast(model, dtype), recorder.recording():
        output = model.get_decoder()(input_ids=torch.zeros(1, width, dtype=torch.long, device="meta"), use_cache=False)
    by_layer: dict[int | None, int] = defaultdict(int)
    saved = recorder.saved_sizes(ignored=[*model.parameters(), *model.buffers()])
    del output  # the graph, and with it the saved tensors, had to live until here
    for layer, size in saved:
        by_layer[layer] += size
    outside_layers = by_layer.pop(None, 0)
    largest_layer = max(by_layer.values(), default=0)
    return TracedForward(
        saved=[size for _, size in saved],
        checkpointed=recorder.layer_inputs + outside_layers + largest_layer,
        kv_cache=sum(tensor.nbytes for tensor in keys_and_values),
    )


class _SavedTensor:
    """A tensor that autograd saves. The graph owns this object, so it dies with that part of the graph."""

    def __init__(self, tensor: Tensor, layer: int | None) -> None:
        self.tensor, self.layer = tensor, layer


class _SavedTensorRecorder:
    """Record which tensors autograd saves in a forward pass, and in which layer.

    Attributes:
        layer_inputs: Bytes of the inputs of all layers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layer_inputs = 0
        self._layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        self._entered: list[int | None] = [None]  # the layers that are being called, the innermost last
        self._saved: list[weakref.ref[_SavedTensor]] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the forward pass inside the block."""
        hooks = []
        for index, layer in enumerate(self._layers):
            hooks.append(layer.register_forward_pre_hook(functools.partial(self._enter, index), with_kwargs=True))
            hooks.append(layer.register_forward_hook(self._leave))
        try:
            with saved_tensors_hooks(self._pack, lambda saved: saved.tensor):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def saved_sizes(self, ignored: Sequence[Tensor]) -> list[tuple[int | None, int]]:
        """Return the layer (None outside of layers) and bytes of each storage that the graph still holds.

        Args:
            ignored: Parameters and buffers, which are no activations.
        """
        seen = {id(tensor.untyped_storage()) for tensor in ignored}
        sizes = []
        for reference in self._saved:
            saved = reference()
            if saved is None:
                continue
            storage = saved.tensor.untyped_storage()
            if id(storage) not in seen:
                seen.add(id(storage))
                sizes.append((saved.layer, storage.nbytes()))
        return sizes

    def _pack(self, tensor: Tensor) -> _SavedTensor:
        saved = _SavedTensor(tensor, self._entered[-1])
        self._saved.append(weakref.ref(saved))
        return saved

    def _enter(self, index: int, _module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.layer_inputs += (args[0] if args else kwargs["hidden_states"]).nbytes
        self._entered.append(index)

    def _leave(self, *_: object) -> None:
        self._entered.pop()


class _FusedAttention(torch.autograd.Function):
    """Save the same tensors as torch's fused attention, and return a tensor of the output's shape."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *further: Tensor) -> Tensor:
        """Save the inputs, the output, one float32 number per query and head, and `further` tensors."""
        rows, heads, width, _ = query.shape  # (b, h, T, D)
        output = query.new_empty(rows, width, heads, value.shape[-1])
        log_sum_exp = query.new_empty(rows, heads, width, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, log_sum_exp, *further)
        return output


def _counting_attention(
    keys_and_values: list[Tensor], *, padded: bool, eager: bool
) -> Callable[..., tuple[Tensor, None]]:
    """Return an attention function to register. It appends the keys and values of a cache to `keys_and_values`."""

    def attend(
        _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _attention_mask: Tensor | None, **_: Any
    ) -> tuple[Tensor, None]:
        rows, heads, width, _size = query.shape
        keys_and_values.extend((key, value))
        if query.dtype != key.dtype or query.dtype != value.dtype:
            query, key, value = (tensor.to(value.dtype) for tensor in (query, key, value))
        further: list[Tensor] = []
        if padded:  # each layer converts the bool mask to numbers, and no kernel takes grouped heads with a mask
            further.append(query.new_empty(rows, 1, width, width))
            group_size = heads // key.shape[1]
            if group_size > 1:
                key, value = (tensor.repeat_interleave(group_size, dim=1) for tensor in (key, value))
        if eager:
            further.append(query.new_empty(rows, heads, width, width, dtype=torch.float32))
        return _FusedAttention.apply(query, key, value, *further), None

    return attend


@contextmanager
def _autocast(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Make linear layers compute in `dtype`, as torch.autocast does; it does not support the meta device.

    Each layer copies its input and its weight, unless they already have the dtype.
    """
    layers = [] if dtype == torch.float32 else [m for m in model.modules() if isinstance(m, nn.Linear)]
    for layer in layers:
        layer.forward = functools.partial(_linear, layer, dtype)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _linear(layer: nn.Linear, dtype: torch.dtype, inputs: Tensor) -> Tensor:
    """Apply a linear layer in `dtype`."""
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return linear(inputs.to(dtype), layer.weight.to(dtype), bias)
