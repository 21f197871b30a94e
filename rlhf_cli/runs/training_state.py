"""Save and load training state bit for bit: a tree of plain values and tensors, as safetensors and JSON, no pickles.

Needs torch, numpy and safetensors, unlike the other modules of this package. Only stages import it.
"""

from __future__ import annotations

import base64
import json
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

TREE_FILE, TENSORS_FILE = "state.json", "state.safetensors"


def save_state(folder: Path, tree: Any) -> None:
    """Write `tree` into `folder`, which is created if it does not exist.

    Args:
        folder: The folder.
        tree: Nested dict, list, tuple, str, bytes, int, float, bool, None and tensors. A dict's keys may be any of
            them but tensors, list and dict.

    Raises:
        TypeError: The tree holds another type. Nothing is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_pack(tree, tensors), allow_nan=False)
    save_file(tensors, folder / TENSORS_FILE)
    (folder / TREE_FILE).write_text(text, encoding="utf-8")


def load_state(folder: Path) -> Any:
    """Return the tree that `save_state` wrote. Its tensors are on the CPU and share no storage."""
    tensors = load_file(folder / TENSORS_FILE)
    return _unpack(json.loads((folder / TREE_FILE).read_text(encoding="utf-8")), tensors)


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return `value` as JSON. Types that JSON lacks, and dicts, become an object with the type as its only key."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": value.hex()}
    if type(value) is list:
        return [_pack(item, tensors) for item in value]
    if type(value) is tuple:
        return {"tuple": [_pack(item, tensors) for item in value]}
    if isinstance(value, dict):  # also OrderedDict and defaultdict; the order is kept
        return {"dict": [[_pack(key, tensors), _pack(item, tensors)] for key, item in value.items()]}
    if type(value) is bytes:
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A copy: safetensors refuses tensors that share storage, such as views and tied weights.
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    raise TypeError(f"unsupported type in a training state: {type(value).__name__}")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "float":
        return float.fromhex(content)
    if kind == "tuple":
        return tuple(_unpack(item, tensors) for item in content)
    if kind == "dict":
        return {_unpack(key, tensors): _unpack(item, tensors) for key, item in content}
    if kind == "bytes":
        return base64.b64decode(content)
    return tensors[content]


def generator_states() -> dict[str, Any]:
    """Return the states of Python's, numpy's and torch's random generators, the latter on every device."""
    numpy: Any = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (numpy[0], numpy[1].tobytes(), *numpy[2:]),
        "torch": torch.get_rng_state(),
        "devices": _device_states(),
    }


def restore_generators(states: dict[str, Any]) -> None:
    """Set the random generators to the states of `generator_states`. Devices that this machine lacks are skipped."""
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.frombuffer(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if torch.accelerator.is_available():
        module = torch.get_device_module()
        for device, state in enumerate(states["devices"][: torch.accelerator.device_count()]):
            if torch.accelerator.device_count() > 1:
                module.set_rng_state(state, device)
            else:
                module.set_rng_state(state)


@contextmanager
def forked_generators() -> Iterator[None]:
    """Leave all random generators behind as they were before the block."""
    states = generator_states()
    try:
        yield
    finally:
        restore_generators(states)


def _device_states() -> list[Tensor]:
    """Return the state of each accelerator's random generator. MPS has one device and no list of states."""
    if not torch.accelerator.is_available():
        return []
    module = torch.get_device_module()
    if hasattr(module, "get_rng_state_all"):
        states: list[Tensor] = module.get_rng_state_all()
        return states
    return [module.get_rng_state()]
