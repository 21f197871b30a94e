"""A run that was killed or stopped and then resumed is bit-identical to an unbroken one: on a CPU, with dropout.

Each kill is a SIGKILL of a forked child, which shares only the disk with this process.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from rlhf_cli.errors import StoppedError
from rlhf_cli.pipeline.runner import StageResult
from rlhf_cli.runs.run import Run
from rlhf_cli.runs.training_state import load_state, save_state
from rlhf_cli.training import trl
from tests.support.equality import bit_equal
from tests.support.issues import raises_issue
from tests.support.stage_harness import (
    PASSES_PER_STEP,
    StageHarness,
    assert_bit_identical,
    kill_this_process,
    write_training_project,
)

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]

Unbroken = tuple[StageHarness, StageResult]
SETTINGS = {
    "sft": ("sft",),
    "reward": ("reward",),
    "pretrain": ("pretrain",),
    "sft, order from the global generator": ("sft", "sft.trainer={train_sampling_strategy: group_by_length}"),
    "sft, 4 bits": ("sft", "base.quantize=nf4", "adapter.dora=true"),
    "reward, whole model": ("reward", "adapter=null"),
    "reward, two members": ("reward", "reward.members=2"),
    "sft, with a worker": ("sft", "sft.trainer={dataloader_num_workers: 1}"),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """Write a recipe for sft, reward and pretrain, and its data."""
    return write_training_project(tmp_path_factory.mktemp("resume"), tiny_base)


@pytest.fixture(scope="module", params=SETTINGS)
def unbroken(request: pytest.FixtureRequest, project: Path) -> Unbroken:
    """Run a stage with each of the settings to its end."""
    harness = StageHarness(project, *SETTINGS[request.param])
    return harness, harness.run(f"unbroken {request.param}")


@pytest.fixture(scope="module")
def sft(project: Path) -> Unbroken:
    """Run sft to its end."""
    harness = StageHarness(project, "sft")
    return harness, harness.run("unbroken")


def before_forward_pass(number: int, act: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Call `act` before a trainer's forward pass of this number, counted from 1."""
    training_step, passes = Trainer.training_step, 0

    def step(self: Trainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal passes
        passes += 1
        if passes == number:
            act()
        return training_step(self, *args, **kwargs)

    patch.setattr(Trainer, "training_step", step)


def die_before_forward_pass(number: int) -> Callable[[], None]:
    """Return a trap: die before a trainer's forward pass of this number."""
    return lambda: before_forward_pass(number, kill_this_process, pytest.MonkeyPatch())


def die_in_checkpoint_of_step_8() -> None:
    """Die after the weights of the checkpoint were written, and before its state is."""

    def save(path: Path, tree: Any) -> None:
        if json.loads((path.parent / "model" / "trainer_state.json").read_text())["global_step"] == 8:
            kill_this_process()
        save_state(path, tree)

    pytest.MonkeyPatch().setattr("rlhf_cli.training.checkpointing.save_state", save)


def die_in_final_save() -> None:
    """Die when the model is half written."""

    def save(trainer: Trainer, tokenizer: object, run: Run) -> None:  # noqa: ARG001 - the signature of trl.save
        (run.model_dir / "adapter_model.safetensors").write_bytes(b"half")
        kill_this_process()

    pytest.MonkeyPatch().setattr(trl, "save", save)


def test_run_killed_between_micro_batches_resumes_exactly(unbroken: Unbroken) -> None:
    harness, expected = unbroken
    runs = f"killed {expected.path.parents[2].name}"
    harness.run_killed(runs, die_before_forward_pass(9 * PASSES_PER_STEP + 2))  # in the second epoch, as the checkpoint
    assert harness.checkpoint_names(runs) == ["step-000004", "step-000008"]
    assert_bit_identical(harness.run(runs, resume=True), expected)


def test_run_killed_after_checkpoint_at_end_of_epoch_resumes_exactly(project: Path, sft: Unbroken) -> None:
    harness = StageHarness(project, "sft", "sft.save_every=5")
    harness.run_killed("epoch", die_before_forward_pass(6 * PASSES_PER_STEP))
    assert harness.checkpoint_names("epoch") == ["step-000005"]
    assert_bit_identical(harness.run("epoch", resume=True), sft[1])


def test_run_killed_in_checkpoint_and_again_after_resume_resumes_exactly(sft: Unbroken) -> None:
    harness, expected = sft
    harness.run_killed("save", die_in_checkpoint_of_step_8)
    committed = [name for name in harness.checkpoint_names("save") if not name.startswith(".tmp-")]
    assert committed == ["step-000004"]
    harness.run_killed("save", die_before_forward_pass(7 * PASSES_PER_STEP), resume=True)
    assert harness.checkpoint_names("save") == ["step-000004", "step-000008"]
    assert_bit_identical(harness.run("save", resume=True), expected)


def test_run_killed_in_final_save_resumes_exactly(sft: Unbroken) -> None:
    harness, expected = sft
    harness.run_killed("last", die_in_final_save)
    assert harness.checkpoint_names("last") == ["step-000004", "step-000008"]
    assert_bit_identical(harness.run("last", resume=True), expected)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_checkpoint_of_signal_is_that_of_a_run_never_killed(
    sft: Unbroken, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    harness, expected = sft
    unkilled, resumed = f"never killed {number}", f"stopped {number}"
    harness.run_killed(resumed, die_before_forward_pass(6 * PASSES_PER_STEP - 1))
    # Both receive the signal within step 7; the second one resumes from step 4.
    for runs, resume, passes in ((unkilled, False, 7), (resumed, True, 3)):
        checkpoint = harness.stage_dir(runs) / "v0001/checkpoints/step-000007"
        with monkeypatch.context() as patch:
            before_forward_pass(passes * PASSES_PER_STEP - 1, lambda: os.kill(os.getpid(), number), patch)
            with raises_issue("run.stopped", error=StoppedError, location="sft") as issues:
                harness.run(runs, resume=resume)
        assert issues[0].message == f"stopped by a signal after step 7; saved in {checkpoint}."
        assert "--resume" in issues[0].hint
    sides = [harness.stage_dir(runs) / "v0001/checkpoints/step-000007" for runs in (unkilled, resumed)]
    states = [load_state(side / "state") for side in sides]
    for state in states:
        del state["metrics"]["seconds"]
    assert bit_equal(*states)
    for file in ("adapter_model.safetensors", "trainer_state.json"):
        assert len({(side / "model" / file).read_bytes() for side in sides}) == 1
    assert {path.suffix for path in sides[0].rglob("*") if path.is_file()} == {".json", ".safetensors", ".md"}
    assert_bit_identical(harness.run(resumed, resume=True), expected)


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        (12, ["step-000008", "step-000012"]),  # between the members
        (18, ["step-000012", "step-000016"]),  # in the second one
    ],
)
def test_ensemble_killed_after_first_member_resumes_exactly(project: Path, steps: int, kept: list[str]) -> None:
    harness = StageHarness(project, "reward", "reward.members=2")
    expected = harness.run(f"whole ensemble {steps}")
    runs = f"ensemble {steps}"
    harness.run_killed(runs, die_before_forward_pass(steps * PASSES_PER_STEP + 1))
    assert harness.checkpoint_names(runs) == kept
    assert_bit_identical(harness.run(runs, resume=True), expected)


def test_signal_in_last_step_lets_the_run_complete(sft: Unbroken, monkeypatch: pytest.MonkeyPatch) -> None:
    harness, expected = sft
    with monkeypatch.context() as patch:
        before_forward_pass(12 * PASSES_PER_STEP, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        result = harness.run("end")
    assert result.stop_requested
    assert_bit_identical(result, expected)
