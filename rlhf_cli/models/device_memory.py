"""Read the memory of this process's device, and return freed memory to the system."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

import psutil
import torch

M_MMAP_THRESHOLD = -3  # glibc's malloc.h
MMAP_THRESHOLD_BYTES = 65_536  # tensors of at least this size get pages of their own
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # cgroup v2 and v1


def memory_capacity(device: torch.device) -> float:
    """Return the memory of the device in bytes; for a CPU including swap, and at most the container's limit."""
    if device.type in ("cuda", "xpu"):
        return float(getattr(torch, device.type).mem_get_info(device)[1])
    limits = [float(psutil.virtual_memory().total + psutil.swap_memory().total)]
    for path in map(Path, CONTAINER_LIMITS):
        text = path.read_text().strip() if path.is_file() else "max"
        if text.isdecimal():
            limits.append(float(text))
    return min(limits)


def peak_memory(device: torch.device) -> float:
    """Return the highest memory use so far in bytes: of the GPU's allocator, or on a CPU of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


def release_freed_memory() -> None:
    """Make the C library return the memory of large tensors as soon as they are freed. No-op without glibc.

    By default glibc keeps blocks below 32 MiB and reuses few of them: the temporary tensors of a forward pass occupy as
    much memory as the saved ones (measured: 1.9 times the size of the tensors). Returning memory costs time (up to half
    the speed at width 512), so call this only if memory is short.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
