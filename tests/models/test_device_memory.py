"""Test the memory of a device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlhf_cli.models import device_memory

CPU = torch.device("cpu")


def test_memory_capacity_in_a_container_is_at_most_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "limit").write_text("1000000\n")
    monkeypatch.setattr(device_memory, "CONTAINER_LIMITS", (str(tmp_path / "max"), str(tmp_path / "none")))
    assert device_memory.memory_capacity(CPU) > 1e8
    monkeypatch.setattr(device_memory, "CONTAINER_LIMITS", (str(tmp_path / "max"), str(tmp_path / "limit")))
    assert device_memory.memory_capacity(CPU) == 1e6


def test_peak_memory_on_a_cpu_is_that_of_this_process() -> None:
    assert 1e7 < device_memory.peak_memory(CPU) < 1e12
