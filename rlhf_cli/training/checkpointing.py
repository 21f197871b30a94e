"""Checkpoints of a trainer, and the way back: a run that was stopped or killed goes on as if it had not been.

transformers' own checkpoints are written in place and hold pickles; these are written by the run, whole or not at all.
Trainer finds in them what it must see itself, the weights and its step count, from which it skips the rows that are
done; the rest is put back by the callback below.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import (
    GenerationConfig,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from rlhf_cli import distributed
from rlhf_cli.runs.run import Run
from rlhf_cli.runs.training_state import generators, load_state, restore_generators, save_state
from rlhf_cli.training.trl import MetricsCallback

MODEL, STATE, TRAINER_STATE = "model", "state", "trainer_state.json"


class Checkpoints(TrainerCallback):
    """Saves after each `save_every` steps, and after the step in which a signal came; to be called after `journal`.

    A step is saved once it is logged: then the weights, the optimizer and the generators are all at rest.
    """

    def __init__(self, run: Run, journal: MetricsCallback, trainer: Trainer, save_every: int) -> None:
        self.run, self.journal, self.every = run, journal, save_every
        self.scaler = trainer.accelerator.scaler  # of float16 on a GPU; else None
        self.epoch_start: dict[str, Any] = {}  # the generators then: some samplers draw their order from them
        self.tree: dict[str, Any] | None = None
        if run.resumed is not None:
            self.tree = load_state(run.resumed / STATE)
            journal.restore(self.tree["journal"])

    @property
    def resume_from(self) -> str | None:
        """What `Trainer.train` takes as `resume_from_checkpoint`."""
        return None if self.run.resumed is None else str(self.run.resumed / MODEL)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        """Trainer has loaded the weights and made a new optimizer and schedule."""
        if self.tree is not None:
            optimizer.load_state_dict(self.tree["optimizer"])
            lr_scheduler.load_state_dict(self.tree["schedule"])
            if self.scaler is not None:
                self.scaler.load_state_dict(self.tree["scaler"])

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The epoch's order is about to be drawn."""
        if self.tree is not None:
            # Of a step that ended its epoch, "epoch_start" belongs to the epoch before.
            self._restore("generators" if self.tree["epoch_ended"] else "epoch_start")
        self.epoch_start = generators()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The first step's rows are drawn, after those that were skipped."""
        if self.tree is not None:
            if not self.tree["epoch_ended"]:
                self._restore("generators")
            self.tree = None

    def _restore(self, name: str) -> None:
        """This process's generators, as they were; of another number of processes, some process's."""
        assert self.tree is not None
        saved = self.tree[name]
        restore_generators(saved[distributed.rank() % len(saved)])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        model: Any = None,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        """After a step: save where it is due. The last one is not saved, for what follows is the model itself.

        Raises:
            StoppedError: a signal came; the step is saved.
        """
        step = state.global_step
        if not logs or "loss" not in logs or step >= state.max_steps:
            return
        is_stopped = any(distributed.all_gather_object(self.run.stopping))
        if step % self.every and not is_stopped:
            return
        tree = {
            "optimizer": optimizer.state_dict(),
            "schedule": lr_scheduler.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "generators": distributed.all_gather_object(generators()),
            "epoch_start": distributed.all_gather_object(self.epoch_start),
            "epoch_ended": float(state.epoch).is_integer(),
            "journal": self.journal.state(),
        }
        weights = sum(p.nbytes for p in model.parameters() if p.requires_grad)
        with self.run.checkpoint(step, size=3 * weights) as folder:  # Adam's two moments are as large
            model.save_pretrained(folder / MODEL)
            dataclasses.replace(state, log_history=[]).save_to_json(str(folder / MODEL / TRAINER_STATE))
            save_state(folder / STATE, tree)
        distributed.all_gather_object(None)  # no process may end before it is saved
        if is_stopped:
            raise self.run.stopped(step)


def train(trainer: Trainer, journal: MetricsCallback, run: Run, save_every: int) -> dict[str, float]:
    """Train, from the start or from where the run was stopped; gives the figures for the manifest."""
    trainer.remove_callback(PrinterCallback)  # TRL's own printing of its log
    # What is trained is float32, also where the base is 16 bits wide: in bfloat16 most of Adam's small steps would be
    # rounded away. TRL casts it to bfloat16 on a quantized base. The optimizer is made after this.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    _make_savable(trainer.model)
    checkpoints = Checkpoints(run, journal, trainer, save_every)
    trainer.add_callback(checkpoints)
    journal.watch(trainer)
    with _silent() if run.resumed is not None else contextlib.nullcontext():
        trainer.train(resume_from_checkpoint=checkpoints.resume_from)
    return journal.summary(run.stage, trainer.state.global_step)


def _make_savable(model: Any) -> None:
    """A whole model is saved with its generation_config, and save_pretrained refuses one such as a temperature without
    sampling: found at the end of a training that is lost. It is for whoever generates, and no part of the training."""
    own = getattr(model, "generation_config", None)
    if own is None:
        return
    try:
        own.validate(strict=True)
    except ValueError:
        tokens = {name: getattr(own, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model.generation_config = GenerationConfig(**tokens)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Trainer warns of each tied weight that a checkpoint has under one name alone. Ours are held against hashes."""
    logger = logging.getLogger("transformers.trainer")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
