"""Save and restore the state of a transformers Trainer, so that a resumed run is bit-identical to an unbroken one.

The Trainer's own checkpoints are written in place and hold pickles; ours are committed by the run, atomically. The
Trainer reads the weights and its step count from them, and skips the rows of earlier steps; the rest is restored here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerState

from rlhf_cli import distributed
from rlhf_cli.runs.run import Run
from rlhf_cli.runs.training_state import generator_states, load_state, restore_generators, save_state

MODEL, STATE, TRAINER_STATE = "model", "state", "trainer_state.json"


class TrainerCheckpoints:
    """Checkpoints of one Trainer.

    Attributes:
        save_every: Optimizer steps between checkpoints.
        metrics_state: State of the metrics at the checkpoint to resume from, or None.
    """

    def __init__(
        self,
        run: Run,
        trainer: Trainer,
        save_every: int,
        source: Path | None,
        save_more: Callable[[Path], None] | None = None,
    ) -> None:
        """Prepare checkpoints.

        Args:
            run: The run that they belong to.
            trainer: The trainer.
            save_every: Optimizer steps between checkpoints.
            source: The checkpoint to resume from, or None to start anew.
            save_more: Writes further files into a checkpoint.
        """
        self.run, self.save_every = run, save_every
        self._source, self._save_more = source, save_more
        self.scaler = trainer.accelerator.scaler  # of float16 on a GPU; otherwise None
        self.epoch_start: dict[str, Any] = {}  # generators then: some samplers draw their order from them
        self.restored: dict[str, Any] | None = None if source is None else load_state(source / STATE)
        self.metrics_state: Mapping[str, float] | None = None if self.restored is None else self.restored["metrics"]

    @property
    def resume_from(self) -> str | None:
        """The value of `resume_from_checkpoint` for `Trainer.train`."""
        return None if self._source is None else str(self._source / MODEL)

    def restore_optimizer(self, optimizer: Any, schedule: Any) -> None:
        """Restore the optimizer, the schedule and the scaler of a resumed run. No-op for a new run."""
        if self.restored is not None:
            optimizer.load_state_dict(self.restored["optimizer"])
            schedule.load_state_dict(self.restored["schedule"])
            if self.scaler is not None:
                self.scaler.load_state_dict(self.restored["scaler"])

    def begin_epoch(self) -> None:
        """Restore the generators from which the epoch's order is drawn, and remember them."""
        if self.restored is not None:
            # If the checkpoint ended its epoch, "epoch_start" belongs to the epoch before.
            self._restore_generators("generators" if self.restored["epoch_ended"] else "epoch_start")
        self.epoch_start = generator_states()

    def begin_step(self) -> None:
        """Restore the generators of the checkpoint in the first step: the skipped rows have drawn from them."""
        if self.restored is not None:
            if not self.restored["epoch_ended"]:
                self._restore_generators("generators")
            self.restored = None

    def save(
        self,
        step: int,
        state: TrainerState,
        metrics: Mapping[str, float],
        *,
        model: Any,
        optimizer: Any,
        lr_scheduler: Any,
    ) -> None:
        """Commit the checkpoint of the run's step `step`. Every process must call this."""
        tree = {
            "optimizer": optimizer.state_dict(),
            "schedule": lr_scheduler.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "generators": distributed.all_gather_object(generator_states()),
            "epoch_start": distributed.all_gather_object(self.epoch_start),
            "epoch_ended": float(state.epoch).is_integer(),
            "metrics": metrics,
        }
        weights = sum(p.nbytes for p in model.parameters() if p.requires_grad)
        with self.run.checkpoint(step, size=3 * weights) as folder:  # Adam keeps two moments of that size
            model.save_pretrained(folder / MODEL)
            dataclasses.replace(state, log_history=[]).save_to_json(str(folder / MODEL / TRAINER_STATE))
            save_state(folder / STATE, tree)
            if self._save_more is not None:
                self._save_more(folder)
        distributed.all_gather_object(None)  # no process may exit before the checkpoint is committed

    def _restore_generators(self, name: str) -> None:
        """Restore this process's generators; with another number of processes, those of some process."""
        assert self.restored is not None
        saved = self.restored[name]
        restore_generators(saved[distributed.rank() % len(saved)])


@contextlib.contextmanager
def silence_tied_weights_warning() -> Iterator[None]:
    """Silence the Trainer's warning about tied weights; checkpoint files are verified by hash instead."""
    logger = logging.getLogger("transformers.trainer")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
