"""A training's state on disk: what is read back is what was written, bit by bit, and no file is a pickle."""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_cli.runs.training_state import generators, load_state, restore_generators, save_state


def same(a: Any, b: Any) -> bool:
    """Equal in kind and value, tensors and floats bit by bit."""
    if isinstance(a, torch.Tensor):
        whole = isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape
        return whole and a.contiguous().view(-1).view(torch.uint8).equal(b.contiguous().view(-1).view(torch.uint8))
    if isinstance(a, dict):
        alike = isinstance(b, dict) and [*map(repr, a)] == [*map(repr, b)]
        return alike and all(same(x, y) for x, y in zip(a.values(), b.values(), strict=True))
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return isinstance(b, float) and a.hex() == b.hex()
    return type(a) is type(b) and a == b


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
def test_a_plain_value_comes_back_as_it_was(tmp_path: Path, value: Any) -> None:
    save_state(tmp_path / "state", value)
    assert same(value, load_state(tmp_path / "state"))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
)
def test_a_tensor_comes_back_as_it_was(tmp_path: Path, dtype: torch.dtype) -> None:
    noise = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    tensors = [noise.to(dtype), torch.zeros(0, dtype=dtype), torch.ones((), dtype=dtype)]
    save_state(tmp_path, tensors)
    assert same(tensors, load_state(tmp_path))


def test_special_floats_in_a_tensor_keep_their_bits(tmp_path: Path) -> None:
    bits = torch.tensor([0x7FC00001, 0x7F800000, 0x00000001, -0x80000000], dtype=torch.int64).to(torch.int32)
    save_state(tmp_path, bits.view(torch.float32))
    assert load_state(tmp_path).view(torch.int32).tolist() == bits.tolist()


def test_views_and_ties_come_back_each_by_itself(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tree = {"whole": whole, "again": whole, "row": whole[1], "turned": whole.T, "wide": whole[:1].expand(5, 4)}
    save_state(tmp_path, tree)
    found = load_state(tmp_path)
    assert same(tree, found)
    found["row"].zero_()
    assert found["whole"].equal(whole)


def test_an_optimizer_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    def steps(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            ((parameter - 3).pow(2).sum() + torch.rand(2).sum() * parameter.sum()).backward()
            optimizer.step()

    def made() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        parameter = torch.nn.Parameter(torch.ones(2))
        return parameter, torch.optim.AdamW([parameter], lr=0.1)

    parameter, optimizer = made()
    steps(parameter, optimizer, 3)
    saved = {"weights": parameter.data, "optimizer": optimizer.state_dict(), "generators": generators()}
    save_state(tmp_path, saved)
    steps(parameter, optimizer, 3)

    other, its_optimizer = made()
    found = load_state(tmp_path)
    other.data.copy_(found["weights"])
    its_optimizer.load_state_dict(found["optimizer"])
    restore_generators(found["generators"])
    steps(other, its_optimizer, 3)
    assert other.equal(parameter)
    assert same(its_optimizer.state_dict(), optimizer.state_dict())


def test_every_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    def draw() -> list[Any]:
        return [random.random(), random.gauss(0, 1), np.random.randn(), np.random.rand(), torch.randn(3)]

    draw()  # leaves half a pair of normal numbers in two of them
    save_state(tmp_path, generators())
    expected = draw()
    draw()
    restore_generators(load_state(tmp_path))
    assert same(expected, draw())


def test_two_files_and_none_a_pickle(tmp_path: Path) -> None:
    save_state(tmp_path / "a" / "b", OrderedDict(x=torch.ones(2)))
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == {"state.json", "state.safetensors"}
    assert load_state(tmp_path / "a" / "b")["x"].equal(torch.ones(2))


@pytest.mark.parametrize("value", [object(), {1, 2}, np.float64(1), np.ones(2)], ids=lambda v: type(v).__name__)
def test_what_it_cannot_hold_is_refused_and_nothing_written(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match=type(value).__name__):
        save_state(tmp_path, [1, value])
    assert [*tmp_path.iterdir()] == []
