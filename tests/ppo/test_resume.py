"""Test that a run stopped after any iteration and resumed equals the unbroken run to the last bit."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from rlhf_cli.errors import ModelError, StoppedError
from rlhf_cli.ppo.actor_critic import POLICY, VALUE
from rlhf_cli.ppo.trainer import PPOTrainer
from rlhf_cli.ppo.types import Demonstrations
from rlhf_cli.recipe.schema import Critic, Kl, Ppo
from tests.support.equality import bit_equal
from tests.support.issues import raises_issue
from tests.support.tiny_policy import MakeTrainer, read_log, small_settings

ITERATIONS = 4
TIMED = ("seconds.", "tokens_per_second", "memory_peak_bytes", "time")
DEMONSTRATIONS = Demonstrations([[5, 6], [7], [8, 9], [10], [4]], [[10, 11, 2], [12, 2], [13, 2], [5, 2], [6, 7, 2]])


def stateful_settings(kind: str) -> Ppo:
    """Return settings with all state: adaptive KL, running moments, a schedule, demonstrations, several epochs."""
    return small_settings(
        iterations=ITERATIONS,
        rollout_batch_size=6,  # of 16 prompts: a checkpoint falls into the middle of a shuffle
        kl=Kl(coef=0.1, target=0.5, horizon=20),
        critic=Critic.model_validate({"kind": kind, "learning_rate": 1e-3, "warmup_iterations": 1}),
        normalize_reward=True,
        ptx_coef=0.1,
        learning_rate=1e-2,
        save_every=100,
        trainer={"lr_scheduler_type": "cosine", "warmup_steps": 2},
    )


class FinalState(NamedTuple):
    """All that a run leaves."""

    weights: list[Tensor]
    optimizer: dict[int, dict[str, Any]]
    schedule_steps: int
    kl_coef: float
    moments: dict[str, float]
    metrics: list[dict[str, float]]  # without times


def train(trainer: PPOTrainer) -> FinalState:
    """Train and return what the run leaves."""
    history = trainer.train()
    return FinalState(
        weights=[p.detach() for role in (POLICY, VALUE) for p in trainer.model.parameters(role)],
        optimizer=trainer.optimization.optimizer.state_dict()["state"],
        schedule_steps=trainer.optimization.schedule.state_dict()["last_epoch"],
        kl_coef=trainer.kl_coef,
        moments=dict(vars(trainer.scorer.moments)),
        metrics=[{k: v for k, v in metrics.items() if not k.startswith(TIMED)} for metrics in history],
    )


def resume_from(trainer: PPOTrainer, stopped: PPOTrainer, checkpoint: Path) -> None:
    """Make `trainer` resume another trainer's run."""
    shutil.copy(stopped.run.path / "metrics.jsonl", trainer.run.path)
    trainer.run.resumed_from = checkpoint


def stop_after(trainer: PPOTrainer, iteration: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Request a stop as soon as `iteration` is logged."""
    log = trainer.run.log

    def log_and_stop(step: int, metrics: Mapping[str, float]) -> None:
        log(step, metrics)
        trainer.run.stop_requested = step == iteration

    monkeypatch.setattr(trainer.run, "log", log_and_stop)


@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_train_stopped_after_any_iteration_and_resumed_equals_unbroken_run(
    make_trainer: MakeTrainer, sft_folder: Path, reward_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def new_trainer() -> PPOTrainer:
        return make_trainer(stateful_settings(kind), sft_folder, reward_folder, demonstrations=DEMONSTRATIONS)

    expected = train(new_trainer())
    assert len({metrics["kl.coef"] for metrics in expected.metrics}) > 1  # the state to restore changes
    for iteration in range(1, ITERATIONS):
        stopped = new_trainer()
        stop_after(stopped, iteration, monkeypatch)
        with raises_issue("run.stopped", error=StoppedError):
            stopped.train()
        resumed = new_trainer()
        torch.manual_seed(99)  # the checkpoint must restore the generators
        resumed.rollout_tokens = 1  # as on a device with less memory: one row per batch would change the draws
        resume_from(resumed, stopped, stopped.run.checkpoint_path(iteration))
        assert bit_equal(tuple(train(resumed)), tuple(expected))
        assert [line["step"] for line in read_log(resumed.run, "metrics.jsonl")] == list(range(1, ITERATIONS + 1))


def test_train_first_ratio_after_resume_is_one(
    make_trainer: MakeTrainer, sft_folder: Path, reward_folder: Path
) -> None:
    settings = stateful_settings("adapter")
    first = make_trainer(settings, sft_folder, reward_folder, demonstrations=DEMONSTRATIONS)
    first.train()
    checkpoint = first.save_checkpoint(ITERATIONS)
    longer = settings.model_copy(update={"iterations": ITERATIONS + 1, "epochs": 1, "minibatches": 1})
    resumed = make_trainer(longer, sft_folder, reward_folder, demonstrations=DEMONSTRATIONS)
    resume_from(resumed, first, checkpoint)
    last = resumed.train()[-1]
    assert last["kl"] > 0.01  # the policy is no longer at its start
    assert abs(last["ratio.min"] - 1) < 1e-5
    assert abs(last["ratio.max"] - 1) < 1e-5


def test_train_resumed_from_checkpoint_of_diverged_run_raises_issue(
    make_trainer: MakeTrainer, sft_folder: Path
) -> None:
    folder = make_trainer(small_settings(), sft_folder).save_checkpoint(0, with_state=False)
    trainer = make_trainer(small_settings(), sft_folder)
    trainer.run.resumed_from = folder
    with raises_issue("model.not-resumable", error=ModelError, location=str(folder)) as issues:
        trainer.train()
    assert "diverged" in issues[0].message
    assert f"Set `ppo.start: {folder / 'model'}`" in issues[0].hint
