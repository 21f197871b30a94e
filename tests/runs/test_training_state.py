"""Training state is read back bit for bit, and no file is a pickle."""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_cli.runs.training_state import (
    forked_generators,
    generator_states,
    load_state,
    restore_generators,
    save_state,
)
from tests.support.equality import bit_equal

VALUES = [
    None,
    True,
    0,
    -(2**70),
    "é \ud7ff\n",
    b"\x00\xff",
    0.1,
    -0.0,
    5e-324,
    math.inf,
    -math.inf,
    math.nan,
    [],
    {},
    (),
    [1, (2.5, [None])],
    {0: {"a": 1}, 1: {}, "0": True, (1, "x"): [()]},
    {"tuple": [1], "tensor": "0", "dict": {}},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_state_plain_value_is_read_back(tmp_path: Path, value: Any) -> None:
    save_state(tmp_path / "state", value)
    assert bit_equal(value, load_state(tmp_path / "state"))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
)
def test_state_tensor_is_read_back(tmp_path: Path, dtype: torch.dtype) -> None:
    noise = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    tensors = [noise.to(dtype), torch.zeros(0, dtype=dtype), torch.ones((), dtype=dtype)]
    save_state(tmp_path, tensors)
    assert bit_equal(tensors, load_state(tmp_path))


def test_state_special_floats_in_tensor_keep_their_bits(tmp_path: Path) -> None:
    bits = torch.tensor([0x7FC00001, 0x7F800000, 0x00000001, -0x80000000], dtype=torch.int64).to(torch.int32)
    save_state(tmp_path, bits.view(torch.float32))
    assert load_state(tmp_path).view(torch.int32).tolist() == bits.tolist()


def test_state_views_and_ties_get_their_own_storage(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tree = {"whole": whole, "again": whole, "row": whole[1], "turned": whole.T, "wide": whole[:1].expand(5, 4)}
    save_state(tmp_path, tree)
    found = load_state(tmp_path)
    assert bit_equal(tree, found)
    found["row"].zero_()
    assert found["whole"].equal(whole)


def test_state_restored_optimizer_continues_bit_for_bit(tmp_path: Path) -> None:
    def steps(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            ((parameter - 3).pow(2).sum() + torch.rand(2).sum() * parameter.sum()).backward()
            optimizer.step()

    def build() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        parameter = torch.nn.Parameter(torch.ones(2))
        return parameter, torch.optim.AdamW([parameter], lr=0.1)

    parameter, optimizer = build()
    steps(parameter, optimizer, 3)
    saved = {"weights": parameter.data, "optimizer": optimizer.state_dict(), "generators": generator_states()}
    save_state(tmp_path, saved)
    steps(parameter, optimizer, 3)

    other, other_optimizer = build()
    found = load_state(tmp_path)
    other.data.copy_(found["weights"])
    other_optimizer.load_state_dict(found["optimizer"])
    restore_generators(found["generators"])
    steps(other, other_optimizer, 3)
    assert other.equal(parameter)
    assert bit_equal(other_optimizer.state_dict(), optimizer.state_dict())


def test_generator_states_restore_every_generator(tmp_path: Path) -> None:
    def draw() -> list[Any]:
        return [random.random(), random.gauss(0, 1), np.random.randn(), np.random.rand(), torch.randn(3)]

    draw()  # two generators draw normal numbers in pairs and keep the second
    save_state(tmp_path, generator_states())
    expected = draw()
    draw()
    restore_generators(load_state(tmp_path))
    assert bit_equal(expected, draw())


def test_forked_generators_leave_all_generators_as_they_were() -> None:
    def draw() -> list[Any]:
        return [random.random(), np.random.rand(), torch.randn(3)]

    before = generator_states()
    expected = draw()
    restore_generators(before)
    with forked_generators():
        torch.manual_seed(5)
        draw()
    assert bit_equal(expected, draw())


@pytest.mark.parametrize("has_list", [True, False])
def test_generator_states_hold_those_of_any_accelerator(monkeypatch: pytest.MonkeyPatch, has_list: bool) -> None:
    """XPU has a list of states, MPS only one; neither is CUDA."""
    state = {"now": torch.tensor([1], dtype=torch.uint8)}
    device: dict[str, Any] = {
        "get_rng_state": lambda: state["now"],
        "set_rng_state": lambda value: state.update(now=value),
    }
    if has_list:
        device["get_rng_state_all"] = lambda: [state["now"]]
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "get_device_module", lambda: SimpleNamespace(**device))
    with forked_generators():
        state["now"] = torch.tensor([2], dtype=torch.uint8)
    assert state["now"].tolist() == [1]


def test_state_is_exactly_two_files(tmp_path: Path) -> None:
    save_state(tmp_path / "a" / "b", OrderedDict(x=torch.ones(2)))
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == {"state.json", "state.safetensors"}
    assert load_state(tmp_path / "a" / "b")["x"].equal(torch.ones(2))


@pytest.mark.parametrize("value", [object(), {1, 2}, np.float64(1), np.ones(2)], ids=lambda v: type(v).__name__)
def test_state_unsupported_type_raises_before_writing(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match=type(value).__name__):
        save_state(tmp_path, [1, value])
    assert [*tmp_path.iterdir()] == []
