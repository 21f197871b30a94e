"""What a model takes in memory, before its weights are loaded.

Its config is enough: the model is built on torch's meta device, where tensors have a shape and no memory, the recipe's
adapter is put on it, and it is called there. Weights are counted, and so is what autograd keeps of the forward pass:
the very tensors, of any architecture, with any targets, in the dtypes that they will have. Of a Llama block in float32
with LoRA on all its linear layers these are, a token, with H hidden, A of all heads, K of the key (and value) heads, I
intermediate, heads h and rank r:

    4 · (4H + 2A + 2K + 4I + h + 7r + 2) bytes: the inputs of both norms and what they give (4H), queries and the
    attention's output (2A), keys and values (2K, or 2A and T more where padding brings a mask of T), gate, up, the
    activation and their product (4I), and what stands between A and B of each adapted layer (7r).
"""

from __future__ import annotations

import ctypes
import functools
import re
import resource
import sys
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import linear
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf_cli.models import adapters
from rlhf_cli.models.fsdp import layers_of
from rlhf_cli.models.loading import compute_dtype, default_device, silence_library_logging
from rlhf_cli.recipe.schema import Adapter, Base

TRIED = (64, 128, 256)  # tokens of the rows that are called: bytes are a polynomial of the second degree in them
COUNTED = "rlhf_counted"  # the attention that keeps what the fused kernels keep
NF4 = 0.5 + (1 + 4 / 256) / 64  # bytes a weight: 4 bits, an 8-bit scale for 64 of them, a float32 one for 256 scales
M_MMAP_THRESHOLD, LARGE = -3, 65_536  # glibc's malloc.h; bytes from which a tensor has pages of its own
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


class QuadraticCost(NamedTuple):
    """Bytes that rows of equal length take."""

    fixed: float
    token: float  # a token
    pair: float  # a token, for each token of its row

    def of(self, rows: int, width: int) -> float:
        """Of `rows` rows of `width` tokens."""
        return self.fixed + rows * width * (self.token + self.pair * width)


class ModelFootprint(NamedTuple):
    """One model with one adapter (or whole) on this process's device. Bytes where nothing else is said."""

    weights: float  # as loaded, frozen and quantized
    mapped: float  # on a CPU: their file's pages that stay mapped beside them though nothing reads them any more
    layers: float  # of the weights: what is split over processes where that is asked for
    layer: float  # of them: the largest
    head: float  # of the weights: an output layer of its own, which a scorer lacks
    trained: float  # what a role trains, in float32: its adapter, or all weights
    embedding: float  # the largest gradient of a whole model, float32
    unpacked: float  # the largest quantized layer in full, as it is while it is multiplied with
    itemsize: int  # of the dtype of computation
    vocab_size: int
    hidden: int  # of a token's hidden state
    kept: QuadraticCost  # for the backward pass
    recomputed: QuadraticCost  # the same where layers compute their activations again
    widest: float  # of a token in the widest tensor of a layer
    cache: float  # of a token's keys and values in all layers
    is_called: bool  # False: it could not be called; the last four are 0


class Parts(NamedTuple):
    """What is alive when most is, in bytes."""

    weights: float
    adapters: float
    training: float  # gradients, and the optimizer's two moments
    activations: float
    cache: float  # keys and values, of a rollout
    logits: float
    copies: float  # the last good weights, or a state that is being saved; in main memory
    mapped: float  # pages of a file that the system takes back where memory is short

    @property
    def total(self) -> float:
        return sum(self)

    @property
    def needed(self) -> float:
        """What there has to be memory for."""
        return self.total - self.mapped

    def __str__(self) -> str:
        return ", ".join(f"{name} {format_bytes(size)}" for name, size in self._asdict().items() if size >= 5e5)


def format_bytes(size: float) -> str:
    """Bytes as 4.2 GB, or 310 MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def capacity(device: torch.device) -> float:
    """Bytes of memory that the device has in all; of a CPU, swap included, what a container leaves of it."""
    if device.type in ("cuda", "xpu"):
        return float(getattr(torch, device.type).mem_get_info(device)[1])
    allowed = [float(psutil.virtual_memory().total + psutil.swap_memory().total)]
    for path in map(Path, LIMITS):
        text = path.read_text().strip() if path.is_file() else "max"
        allowed += [float(text)] if text.isdecimal() else []
    return min(allowed)


def peak(device: torch.device) -> float:
    """Bytes at the highest point so far: of the GPU's allocator, else of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(highest if sys.platform == "darwin" else highest * 1024)


def shape(base: Base, adapter: Adapter | None, source: str, *, padded: bool) -> ModelFootprint:
    """The model at `source` as `base` asks for it. `padded`: attention is given a mask, as for padded rows.

    Raises:
        OSError, ValueError, …: there is no such config, or no way to build a model of it.
    """
    silence_library_logging()
    dtype = compute_dtype(base, default_device())
    config = AutoConfig.from_pretrained(source, revision=base.revision, trust_remote_code=False)
    model = _built(config, dtype)
    head = model.get_output_embeddings()
    table = model.get_input_embeddings().weight
    has_own_head = head is not None and head.weight is not table
    quantized = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head] * (base.quantize != "none")
    text = config.get_text_config()
    layers = [sum(p.nbytes for p in layer.parameters()) for layer in layers_of(model)]
    numbers = sum(p.numel() for p in model.parameters())
    packed = sum(m.weight.numel() for m in quantized)
    found = ModelFootprint(
        weights=(numbers - packed) * dtype.itemsize + packed * (NF4 if base.quantize == "nf4" else 1),
        mapped=packed * dtype.itemsize if default_device().type == "cpu" and config.dtype == dtype else 0,
        layers=sum(layers),
        layer=max(layers, default=0),
        head=head.weight.nbytes if has_own_head else 0,
        trained=4 * numbers,
        embedding=4 * table.numel(),
        unpacked=max((m.weight.nbytes for m in quantized), default=0),
        itemsize=dtype.itemsize,
        vocab_size=text.vocab_size,
        hidden=text.hidden_size * dtype.itemsize,
        kept=QuadraticCost(0, 0, 0),
        recomputed=QuadraticCost(0, 0, 0),
        widest=0,
        cache=0,
        is_called=False,
    )
    if adapter is None:
        model.float()
    else:
        own = sum(p.numel() for p in _adapted(model, adapter))
        found = found._replace(trained=4 * own, embedding=0)
    try:
        calls = [_call(model, width, dtype, padded=padded, eager=base.attention == "eager") for width in TRIED]
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError, KeyError, IndexError):
        return found  # a mixture of experts, whose ways hang on the numbers
    return found._replace(
        kept=_growth([sum(call.kept) for call in calls]),
        recomputed=_growth([call.recomputed for call in calls]),
        widest=max(_growth(sizes).token for sizes in zip(*(call.kept for call in calls), strict=True)),
        cache=calls[0].cache / TRIED[0],
        is_called=True,
    )


def trainable(base: Base, adapter: Adapter | None, source: str) -> dict[str, int]:
    """How many parameters are trained, by the name of their module, over all layers. Raises as `shape` does."""
    silence_library_logging()
    config = AutoConfig.from_pretrained(source, revision=base.revision, trust_remote_code=False)
    model = _built(config, torch.float32)
    if adapter is not None:
        _adapted(model, adapter)
    found: dict[str, int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            module = re.sub(r"\.(lora_|weight$|bias$).*", "", name)
            found[module.rpartition(".")[2]] += parameter.numel()
    return dict(found)


def scorer_weights(base: Base) -> float:
    """Bytes of a whole reward model, unquantized. Raises as `shape` does."""
    silence_library_logging()
    config = AutoConfig.from_pretrained(base.model, revision=base.revision, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, dtype=compute_dtype(base, default_device()))
    return float(sum(p.nbytes for p in model.parameters()))


def release_freed_memory() -> None:
    """Have the C library give the memory of large tensors back when they are freed, where it can (glibc).

    It keeps what is below 32 MiB, and hardly fills the holes again: of tensors that come and go in a forward pass as
    much stays as of those that are kept (measured: 1.9 times what the tensors take). Giving it back costs time (up to
    half, at width 512), so this is for where memory is short.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)


class _Call(NamedTuple):
    """What one forward pass of one row keeps, in bytes."""

    kept: list[int]  # each tensor, in their order
    recomputed: int
    cache: int


class _Kept:
    """A tensor that autograd keeps, for as long as the graph is there."""

    def __init__(self, tensor: Tensor, layer: int | None) -> None:
        self.tensor, self.layer = tensor, layer


def _built(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    AttentionInterface.register(COUNTED, _attention_of([], padded=False, eager=False))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=COUNTED)


def _adapted(model: PreTrainedModel, adapter: Adapter) -> list[nn.Parameter]:
    """Put the adapter on the model; its parameters."""
    with torch.device("meta"):
        get_peft_model(model, adapters.lora_config(adapter, "CAUSAL_LM"))
    return [p for p in model.parameters() if p.requires_grad]


def _call(model: PreTrainedModel, width: int, dtype: torch.dtype, *, padded: bool, eager: bool) -> _Call:
    cached: list[Tensor] = []
    AttentionInterface.register(COUNTED, _attention_of(cached, padded=padded, eager=eager))
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    inside: list[int | None] = [None]  # the layer that is being called
    inputs = 0
    packed: list[weakref.ref[_Kept]] = []

    def pack(tensor: Tensor) -> _Kept:
        kept = _Kept(tensor, inside[-1])
        packed.append(weakref.ref(kept))
        return kept

    def enter(index: int, module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        nonlocal inputs
        inputs += (args[0] if args else kwargs["hidden_states"]).nbytes
        inside.append(index)

    def leave(*_: object) -> None:
        inside.pop()

    hooks = [m.register_forward_pre_hook(functools.partial(enter, i), with_kwargs=True) for i, m in enumerate(layers)]
    hooks += [m.register_forward_hook(leave) for m in layers]
    try:
        ids = torch.zeros(1, width, dtype=torch.long, device="meta")
        with _autocast(model, dtype), saved_tensors_hooks(pack, lambda kept: kept.tensor):
            out = model.get_decoder()(input_ids=ids, use_cache=False)  # while it is there, so is the graph
    finally:
        for hook in hooks:
            hook.remove()
    seen = {id(t.untyped_storage()) for t in (*model.parameters(), *model.buffers())}
    sizes: list[int] = []
    by_layer: dict[int | None, int] = defaultdict(int)
    for kept in filter(None, (ref() for ref in packed)):
        storage = kept.tensor.untyped_storage()
        if id(storage) not in seen:
            seen.add(id(storage))
            sizes.append(storage.nbytes())
            by_layer[kept.layer] += storage.nbytes()
    del out
    outside = by_layer.pop(None, 0)
    return _Call(sizes, inputs + outside + max(by_layer.values(), default=0), sum(t.nbytes for t in cached))


def _growth(sizes: Sequence[int]) -> QuadraticCost:
    """The polynomial through the sizes at TRIED: Newton's divided differences."""
    (a, b, c), (x, y, z) = TRIED, sizes
    first, second = (y - x) / (b - a), (z - y) / (c - b)
    pair = (second - first) / (c - a)
    token = first - pair * (a + b)
    return QuadraticCost(x - token * a - pair * a * a, token, pair)


class _Fused(torch.autograd.Function):
    """Keeps what torch's fused attention keeps for its backward pass; gives a tensor of the output's shape."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *more: Tensor) -> Tensor:
        rows, heads, width, _ = query.shape  # (b, h, T, D)
        out = query.new_empty(rows, width, heads, value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(rows, heads, width, dtype=torch.float32), *more)
        return out


def _attention_of(cached: list[Tensor], *, padded: bool, eager: bool) -> Callable[..., tuple[Tensor, None]]:
    """Attention to register; keys and values as they go into a cache are put into `cached`."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
    ) -> tuple[Tensor, None]:
        rows, heads, width, _size = query.shape
        cached.extend((key, value))
        if query.dtype != key.dtype or query.dtype != value.dtype:
            query, key, value = (t.to(value.dtype) for t in (query, key, value))
        groups = heads // key.shape[1]
        more: list[Tensor] = []
        if padded:  # a bool mask becomes one of numbers in each layer, and no kernel takes grouped heads with it
            more.append(query.new_empty(rows, 1, width, width))
            key, value = (t.repeat_interleave(groups, dim=1) if groups > 1 else t for t in (key, value))
        if eager:
            more.append(query.new_empty(rows, heads, width, width, dtype=torch.float32))
        return _Fused.apply(query, key, value, *more), None

    return attend


@contextmanager
def _autocast(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, linear layers compute in `dtype` as under torch.autocast, which the meta device has not: each takes a
    copy of its input and of its weight, unless that has the dtype already."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)] * (dtype != torch.float32)
    for layer in layers:
        layer.forward = functools.partial(_linear, layer, dtype)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _linear(layer: nn.Linear, dtype: torch.dtype, input: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return linear(input.to(dtype), layer.weight.to(dtype), bias)
