"""The hint of a stage that does not fit the device names one setting to lower."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import pytest

from rlhf_cli.errors import HardwareError
from rlhf_cli.models import device_memory
from rlhf_cli.models.footprint import MemoryBreakdown
from rlhf_cli.runs.run import Run
from rlhf_cli.training import memory_check
from tests.support.issues import raises_issue
from tests.support.training_project import TrainingProject

SetCapacity = Callable[[float], None]
LONGEST = 64  # tokens of the longest row
BATCHES = {
    "sft": ("sft.micro_batch_size=8", "sft.batch_size=8"),
    "reward": ("reward.micro_batch_size=8", "reward.batch_size=8"),
    "ppo": ("ppo.micro_batch_tokens=4096", "ppo.rollout_batch_size=64", "ppo.minibatches=1"),
}


@pytest.fixture
def set_capacity(monkeypatch: pytest.MonkeyPatch) -> SetCapacity:
    """Return a function that sets the device's memory in bytes."""

    def set_to(size: float) -> None:
        monkeypatch.setattr(device_memory, "memory_capacity", lambda _: size)

    return set_to


def needed(project: TrainingProject, stage: str, *overrides: str) -> float:
    """Return the bytes that a stage is estimated to need."""
    found = memory_check.estimate(project.resolve(stage, *overrides), LONGEST, LONGEST)
    assert found is not None
    parts: MemoryBreakdown = found.parts
    return parts.needed


def open_run(project: TrainingProject, stage: str) -> Run:
    """Open a run of the stage."""
    return Run.create(project.runs_dir, "t", stage, smoke=False, reporter=project.reporter)


def check_hint(project: TrainingProject, stage: str, *overrides: str) -> str:
    """Return the hint of a check that fails."""
    resolved = project.resolve(stage, *overrides)
    with raises_issue("hardware.not-enough-memory", error=HardwareError, location=stage) as issues:
        memory_check.check(resolved, [LONGEST], [LONGEST])
    return issues[0].hint


@pytest.mark.parametrize("stage", BATCHES)
def test_hint_names_largest_batch_that_fits(
    training_project: TrainingProject, set_capacity: SetCapacity, stage: str
) -> None:
    """Of the values that are halved until one fits, the hint names the first, and no other setting."""
    batch = BATCHES[stage]
    key, full = batch[0].split("=")
    capacity = 0.5 * needed(training_project, stage, *batch)
    set_capacity(capacity)
    hint = check_hint(training_project, stage, *batch)
    named = re.fullmatch(rf"Set {re.escape(key)}: (\d+) \([\d.]+ .B\)\.", hint)
    assert named is not None, hint
    value = int(named[1])
    assert value < int(full)
    assert needed(training_project, stage, *batch[1:], f"{key}={value}") <= capacity
    assert needed(training_project, stage, *batch[1:], f"{key}={2 * value}") > capacity


def test_hint_keeps_batch_size_divisible_by_all_processes(
    training_project: TrainingProject, set_capacity: SetCapacity
) -> None:
    """Half of 5 rows is 2, which would fit; but 10 is not a multiple of 2 × 2."""
    two_processes = ("launch.processes=2", "reward.micro_batch_size=1", "pretrain.micro_batch_size=1")
    set_capacity(needed(training_project, "sft", "sft.micro_batch_size=4", "sft.batch_size=8", *two_processes))
    hint = check_hint(training_project, "sft", "sft.micro_batch_size=5", "sft.batch_size=10", *two_processes)
    assert hint.startswith("Set sft.micro_batch_size: 1 (")


@pytest.mark.parametrize("stage", BATCHES)
@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("seed=0", "Set base.quantize: nf4."),
        ("adapter=null", "Train an adapter instead of all weights: remove `adapter: null`."),
        ("base.quantize=nf4", "Use a smaller base model or shorter rows."),
    ],
)
def test_hint_names_next_setting_if_no_batch_fits(
    training_project: TrainingProject, set_capacity: SetCapacity, stage: str, override: str, hint: str
) -> None:
    set_capacity(1e4)
    assert check_hint(training_project, stage, *BATCHES[stage], override) == hint


def test_check_of_smoke_run_is_skipped(
    training_project: TrainingProject, set_capacity: SetCapacity, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rlhf_cli")
    set_capacity(1.0)
    memory_check.check(training_project.resolve("sft", smoke=True), [LONGEST], [])
    assert caplog.messages == []


def test_check_that_passes_logs_the_estimate(
    training_project: TrainingProject, set_capacity: SetCapacity, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rlhf_cli")
    set_capacity(1e12)
    memory_check.check(training_project.resolve("sft"), [LONGEST], [])
    (message,) = caplog.messages
    assert re.match(r"memory: an estimated \d+ MB \(cpu has 1,000\.0 GB\) during update: ", message)


def test_out_of_memory_hint_aims_below_the_failed_estimate(
    training_project: TrainingProject, set_capacity: SetCapacity
) -> None:
    """The estimate was too low, so a batch is named that needs at most three quarters of it."""
    batch = BATCHES["sft"]
    estimated = needed(training_project, "sft", *batch)
    set_capacity(2 * estimated)
    run = open_run(training_project, "sft")
    run.log(1, {"loss": 0.5})
    error = memory_check.out_of_memory_error(run, training_project.resolve("sft", *batch))
    (issue,) = error.issues
    assert (issue.code, issue.location) == ("hardware.out-of-memory", "sft")
    assert issue.message.startswith("out of memory after step 1, at a peak of ")
    assert issue.message.endswith(f"incomplete run: {run.path}.")
    assert issue.hint.startswith("With rows as long as sft.max_length allows (64 tokens), the stage needs ")
    named = re.search(r"Set sft\.micro_batch_size: (\d+) \(", issue.hint)
    assert named is not None, issue.hint
    assert needed(training_project, "sft", *batch[1:], f"sft.micro_batch_size={named[1]}") <= 0.75 * estimated


@pytest.mark.parametrize(
    ("stage", "hint"), [("pretrain", "Lower pretrain.micro_batch_size."), ("eval", "Lower eval.batch_size.")]
)
def test_out_of_memory_hint_without_estimate_names_the_batch(
    training_project: TrainingProject, stage: str, hint: str
) -> None:
    overrides = ("eval.candidate=base", "eval.baseline=null", "eval.reward=null")
    resolved = training_project.resolve(stage, *(overrides if stage == "eval" else ()))
    error = memory_check.out_of_memory_error(open_run(training_project, stage), resolved)
    assert error.issues[0].hint == hint
