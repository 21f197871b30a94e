"""Two processes on one run compute what one computes on the same rollouts: gloo on a CPU, real messages."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

WORKER = Path(__file__).with_name("distributed_worker.py")
TIMED = ("seconds.", "tokens_per_second", "memory_peak_bytes")


def run(count, *arguments):
    """`count` processes of the worker; what each of them printed last, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.ppo.distributed_worker", *map(str, arguments)],
            cwd=WORKER.parents[2],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    outputs = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0] * count, outputs
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.mark.parametrize(("kind", "strategy"), [("adapter", "ddp"), ("shared", "ddp"), ("adapter", "fsdp")])
def test_two_processes_log_the_losses_of_one(base_folder, sft_folder, reward_folder, tmp_path, kind, strategy):
    arguments = (base_folder, sft_folder, reward_folder, kind, strategy)
    (alone,) = run(1, *arguments, tmp_path / "one")
    together = run(2, *arguments, tmp_path / "two")
    assert together[0]["weights"] == together[1]["weights"]
    for process in together:
        assert len(process["history"]) == len(alone["history"]) == 3
        for found, expected in zip(process["history"], alone["history"], strict=True):
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                if not name.startswith(TIMED):
                    assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
        assert process["weights"] == pytest.approx(alone["weights"], rel=1e-4)
    assert abs(alone["history"][2]["kl"] - alone["history"][0]["kl"]) > 0.1  # it has moved
    layers = AutoModelForCausalLM.from_pretrained(base_folder).model.layers.parameters()
    half = sum(p.numel() for p in layers) / 2  # of the base's layers, in each process
    assert [process["held"] for process in together] == [half if strategy == "fsdp" else 0] * 2
    assert sorted(together[0]["answered"] + together[1]["answered"]) == sorted(alone["answered"])  # none twice
