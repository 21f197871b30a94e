"""Several processes that work on one run: who this one is, and what they tell each other. With one: all is free.

The launcher (accelerate, torchrun) says so in the environment. torch is imported where there is more than one alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
TIMEOUT = timedelta(days=7)  # how long one waits for another, which may be at an evaluation, or write a large model


def world_size() -> int:
    """How many processes work on this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this one writes and speaks."""
    return rank() == 0


def init_process_group() -> None:
    """Meet the other processes, by NCCL between GPUs and gloo between CPUs; where they have met, nothing."""
    if world_size() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.accelerator.is_available(), timeout=TIMEOUT)


def broadcast_object(value: T) -> T:
    """The main process's `value`, in every process."""
    return all_gather_object(value)[0]


def all_gather_object(value: T) -> list[T]:
    """Every process's `value`, in the order of ranks."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def all_reduce_sum(tensors: Sequence[Tensor]) -> None:
    """Make each tensor the sum of every process's, in place; in one message."""
    if world_size() == 1 or not tensors:
        return
    import torch
    import torch.distributed as dist

    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
