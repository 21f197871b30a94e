"""Coordinate the processes of one run: ranks, gather, broadcast and sums. Everything is a no-op with one process.

accelerate or torchrun set the rank and the world size in the environment. torch is imported only with several
processes.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
TIMEOUT = timedelta(days=7)  # of a collective operation; another process may be evaluating or writing a large model


def world_size() -> int:
    """Return the number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the index of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Return whether this is the process that writes files and prints."""
    return rank() == 0


def init_process_group() -> None:
    """Initialize the process group (NCCL on GPU, Gloo on CPU). No-op if already initialized."""
    if world_size() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.accelerator.is_available(), timeout=TIMEOUT)


def broadcast_object(value: T) -> T:
    """Return the main process's `value` in every process."""
    return all_gather_object(value)[0]


def all_gather_object(value: T) -> list[T]:
    """Return every process's `value`, in the order of ranks."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def call_together(function: Callable[[], T]) -> T:
    """Return `function()`. If it fails in any process, raise an error in every process.

    A process that failed would leave the others waiting in their next collective operation. Every process must call
    this, and `function` must not contain collective operations that follow the failure.
    """
    if world_size() == 1:
        return function()
    result, error = None, None
    try:
        result = function()
    except Exception as raised:
        error = _sendable(raised)
    first = next((other for other in all_gather_object(error) if other is not None), None)
    if first is not None:
        raise first if error is None else error
    return cast("T", result)


def _sendable(error: Exception) -> Exception:
    """Return `error`, or its text as an error if it cannot be sent to other processes."""
    try:
        pickle.dumps(error)
    except Exception:  # pickle raises errors of any kind
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def barrier() -> None:
    """Wait until every process has reached this call."""
    all_gather_object(None)


def all_reduce_sum(tensors: Sequence[Tensor]) -> None:
    """Sum each tensor across processes in place, with a single all-reduce."""
    if world_size() == 1 or not tensors:
        return
    import torch
    import torch.distributed as dist

    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
