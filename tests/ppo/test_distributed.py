"""Test that two processes on one run compute what one process computes on the same rollouts: gloo on a CPU."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[2]
TIMED = ("seconds.", "tokens_per_second", "memory_peak_bytes")
TIMEOUT = 240  # seconds


def run_workers(count: int, *arguments: object) -> list[dict[str, Any]]:
    """Run `count` processes of the worker. Return what each of them printed last, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.ppo.distributed_worker", *map(str, arguments)],
            cwd=ROOT,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    outputs = [process.communicate(timeout=TIMEOUT) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, outputs
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.mark.subprocess
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "strategy"), [("adapter", "ddp"), ("shared", "ddp"), ("adapter", "fsdp")])
def test_train_two_processes_equal_one(
    base_folder: Path, sft_folder: Path, reward_folder: Path, tmp_path: Path, kind: str, strategy: str
) -> None:
    arguments = (base_folder, sft_folder, reward_folder, kind, strategy)
    (single,) = run_workers(1, *arguments, tmp_path / "one")
    both = run_workers(2, *arguments, tmp_path / "two")
    assert both[0]["weights"] == both[1]["weights"]
    for process in both:
        assert len(process["history"]) == len(single["history"]) == 3
        for found, expected in zip(process["history"], single["history"], strict=True):
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                if not name.startswith(TIMED):
                    assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
        assert process["weights"] == pytest.approx(single["weights"], rel=1e-4)
    assert abs(single["history"][2]["kl"] - single["history"][0]["kl"]) > 0.03  # the policy has moved
    layers = AutoModelForCausalLM.from_pretrained(base_folder).model.layers.parameters()
    half = sum(p.numel() for p in layers) / 2  # each process holds half of the layers
    assert [process["sharded"] for process in both] == [half if strategy == "fsdp" else 0] * 2
    assert sorted(both[0]["prompts"] + both[1]["prompts"]) == sorted(single["prompts"])  # no prompt is served twice
