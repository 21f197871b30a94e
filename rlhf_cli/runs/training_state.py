"""A training's state as safetensors and JSON: any tree of plain values and tensors, read back bit by bit. No pickles.

Needs torch, numpy and safetensors, and is for the stages alone; the rest of this package does without.
"""

from __future__ import annotations

import base64
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

TREE, TENSORS = "state.json", "state.safetensors"


def save_state(folder: Path, tree: Any) -> None:
    """Write `tree` into `folder`, which is made where it is not there.

    A tree is dict (with keys of any kind below), list, tuple, str, bytes, int, float, bool, None and tensors.

    Raises:
        TypeError: for anything else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_packed(tree, tensors), allow_nan=False)
    save_file(tensors, folder / TENSORS)
    (folder / TREE).write_text(text, encoding="utf-8")


def load_state(folder: Path) -> Any:
    """The tree that `save_state` wrote; its tensors lie in main memory, each with a storage of its own."""
    tensors = load_file(folder / TENSORS)
    return _unpacked(json.loads((folder / TREE).read_text(encoding="utf-8")), tensors)


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON. What JSON has no word for becomes an object of one key, the kind; so does every dict."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": value.hex()}
    if type(value) is list:
        return [_packed(item, tensors) for item in value]
    if type(value) is tuple:
        return {"tuple": [_packed(item, tensors) for item in value]}
    if isinstance(value, dict):  # an OrderedDict, a defaultdict: their order is kept
        return {"dict": [[_packed(key, tensors), _packed(item, tensors)] for key, item in value.items()]}
    if type(value) is bytes:
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A copy, because tensors that share storage (a view, a tie) are refused by safetensors.
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    raise TypeError(f"a state cannot hold {type(value).__name__}")


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "float":
        return float.fromhex(content)
    if kind == "tuple":
        return tuple(_unpacked(item, tensors) for item in content)
    if kind == "dict":
        return {_unpacked(key, tensors): _unpacked(item, tensors) for key, item in content}
    if kind == "bytes":
        return base64.b64decode(content)
    return tensors[content]


def generators() -> dict[str, Any]:
    """The states of the random generators that training draws from: Python's, numpy's, torch's on every device."""
    numpy: Any = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (numpy[0], numpy[1].tobytes(), *numpy[2:]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_generators(tree: dict[str, Any]) -> None:
    """Put the generators where `generators` found them; devices that this machine lacks are left out."""
    random.setstate(tree["python"])
    name, keys, *rest = tree["numpy"]
    np.random.set_state((name, np.frombuffer(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(tree["torch"])
    for device, state in enumerate(tree["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, device)
