"""`launch.processes`: one command, several processes, one run; with gloo on a CPU."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import count_lines, logged_values, start_rlhf, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]


def finish(process: subprocess.Popen[str], *, code: int = 0) -> tuple[str, str]:
    """Wait for a process that must end with `code`. Return its stdout and stderr."""
    out, err = process.communicate(timeout=200)
    assert process.returncode == code, err
    return out, err


def test_two_processes_train_on_the_batch_of_one(launch_project: Path) -> None:
    """Each computes half of the batch; there is one run, and one JSON object."""
    for arguments in (["sft", "--set", "launch.processes=1"], ["sft"]):
        out, _ = finish(start_rlhf(launch_project, *arguments))
        assert json.loads(out)["status"] == "ok"
    runs = launch_project / "runs/t/sft"
    assert sorted(path.name for path in runs.iterdir()) == ["latest", "v0001", "v0002"]
    one, two = runs / "v0001", runs / "v0002"
    assert logged_values(two, "loss") == pytest.approx(logged_values(one, "loss"), rel=1e-4)
    assert logged_values(one, "num_tokens") == logged_values(two, "num_tokens")


def test_pretrain_of_two_processes_evaluates_as_one(launch_project: Path) -> None:
    metrics = []
    for arguments in (["pretrain", "--set", "launch.processes=1"], ["pretrain"]):
        out, _ = finish(start_rlhf(launch_project, *arguments))
        metrics.append(json.loads(out)["metrics"])
    assert metrics[1]["pretrain.nll"] == pytest.approx(metrics[0]["pretrain.nll"], rel=1e-3)


def test_sharded_base_trains_as_a_whole_one(launch_project: Path) -> None:
    """With `strategy: fsdp`, PPO's completions end where they ended before, and no process waits forever."""
    settings = ["ppo.stop=[e]", "ppo.max_new_tokens=24", "ppo.micro_batch_tokens=64", "ppo.learning_rate=1.0e-3"]
    options = [word for setting in settings for word in ("--set", setting)]
    for stage, *words in (["sft"], ["ppo", *options]):
        for strategy in ("ddp", "fsdp"):
            out, _ = finish(start_rlhf(launch_project, stage, *words, "--set", f"launch.strategy={strategy}"))
            if stage == "sft":
                assert json.loads(out)["metrics"]["sft.nll"] > 0  # computed by all processes, after training
    for stage, names in (("sft", ("loss", "grad_norm")), ("ppo", ("reward", "policy_loss", "value_loss", "kl"))):
        whole, sharded = (launch_project / "runs/t" / stage / version for version in ("v0001", "v0002"))
        for name in names:
            expected = pytest.approx(logged_values(whole, name), rel=1e-4, abs=1e-6)
            assert logged_values(sharded, name) == expected, name
    assert logged_values(sharded, "truncation_rate")[0] < 1  # some completions end early
    assert len(set(logged_values(sharded, "response_length"))) > 1


def test_failure_in_one_process_ends_all_with_its_code(launch_project: Path) -> None:
    _, err = finish(start_rlhf(launch_project, "ppo", BROKEN_RANK="1"), code=7)
    assert err.count("KeyError: 'a word'") == 1
    assert "Traceback" not in err
    assert "internal" not in err


def test_signal_stops_all_processes_at_a_checkpoint_and_run_resumes(launch_project: Path) -> None:
    options = ("ppo", "--set", "ppo.iterations=1000")
    process = start_rlhf(launch_project, *options, SLOW="0.2")
    run = launch_project / "runs/t/ppo/v0001"
    wait_for(lambda: count_lines(run / "metrics.jsonl") > 0)
    process.send_signal(signal.SIGTERM)
    _, err = finish(process, code=75)
    assert err.count("--resume") == 1
    done = count_lines(run / "metrics.jsonl")
    _, err = finish(start_rlhf(launch_project, *options, "--resume", BROKEN_RANK="0"), code=7)
    assert count_lines(run / "metrics.jsonl") == done  # the resumed run went into the broken reward function
    assert f"resuming from step {done}" in err


def test_sft_of_two_processes_resumes_exactly(launch_project: Path) -> None:
    """Each process has dropout of its own."""
    options = ("sft", "--set", "sft.max_steps=40", "--set", "adapter.dropout=0.2")
    finish(start_rlhf(launch_project, *options))
    process = start_rlhf(launch_project, *options)
    runs = launch_project / "runs/t/sft"
    wait_for(lambda: count_lines(runs / "v0002/metrics.jsonl") >= 3)
    process.send_signal(signal.SIGTERM)
    finish(process, code=75)
    finish(start_rlhf(launch_project, *options, "--resume"))
    for name in ("loss", "grad_norm", "num_tokens", "epoch"):
        assert logged_values(runs / "v0001", name) == logged_values(runs / "v0002", name)
    files = [json.loads((runs / run / "manifest.json").read_text())["files"] for run in ("v0001", "v0002")]
    assert files[0]["adapter_model.safetensors"] == files[1]["adapter_model.safetensors"]


def test_workers_of_a_killed_launcher_save_and_stop(launch_project: Path) -> None:
    process = start_rlhf(launch_project, "ppo", "--set", "ppo.iterations=1000", SLOW="0.2")
    run = launch_project / "runs/t/ppo/v0001"
    wait_for(lambda: count_lines(run / "metrics.jsonl") > 0)
    process.kill()
    process.communicate(timeout=100)  # the workers hold its stderr: it ends when they do
    assert list((run / "checkpoints").glob("step-*"))
