"""Compare nested values bit for bit."""

from __future__ import annotations

from typing import Any

import torch


def bit_equal(a: Any, b: Any) -> bool:
    """Return whether both are equal in type and value, tensors and floats bit for bit."""
    if isinstance(a, torch.Tensor):
        same_form = isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape
        return same_form and a.contiguous().view(-1).view(torch.uint8).equal(b.contiguous().view(-1).view(torch.uint8))
    if isinstance(a, dict):
        same_keys = isinstance(b, dict) and [*map(repr, a)] == [*map(repr, b)]
        return same_keys and all(bit_equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(bit_equal, a, b))
    if isinstance(a, float):
        return isinstance(b, float) and a.hex() == b.hex()
    return type(a) is type(b) and a == b
