"""Connect a transformers Trainer with the run: metrics, divergence, checkpoints and signals."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlhf_cli import distributed
from rlhf_cli.errors import DivergedError
from rlhf_cli.runs.run import Run
from rlhf_cli.training.checkpointing import TrainerCheckpoints

logger = logging.getLogger(__name__)

MAX_SHOWN_CHARACTERS = 60  # of a row in an error message
MAX_SHOWN_ROWS = 3


@dataclass(frozen=True)
class Position:
    """Which of a run's trainings a trainer does. All have the same number of steps, and most runs have only one.

    Attributes:
        index: Number of trainings before this one.
        count: Number of trainings.
    """

    index: int = 0
    count: int = 1

    def step(self, state: TrainerState) -> int:
        """Return the step of the run."""
        return self.index * state.max_steps + state.global_step


class TrainingMetrics:
    """Logs a trainer's metrics to the run, with tokens per second. Raises an error if the loss is not finite."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.tokens = 0.0  # trained on so far
        self.tokens_before = 0.0  # before a resume; the trainer does not know of them
        self.losses = 0.0  # sum over the steps
        self.seconds = 0.0  # of training, before a resume and in earlier trainings
        self.since = time.perf_counter()
        self.started: float | None = None  # None while nothing is trained
        self.batch: list[Tensor] = []  # (b, T) token ids of each forward pass of the step

    def watch(self, trainer: Trainer) -> None:
        """Record the rows of each step, so that an error can name those of a step that diverges."""
        self.tokenizer: Any = trainer.processing_class

        def record(module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module.training and isinstance(ids := kwargs.get("input_ids"), Tensor):
                self.batch.append(ids.detach())

        trainer.model.register_forward_pre_hook(record, with_kwargs=True)

    def state(self) -> dict[str, float]:
        """Return the state that `restore` takes."""
        return {"tokens": self.tokens, "losses": self.losses, "seconds": self.elapsed()}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from `state`."""
        self.tokens = self.tokens_before = state["tokens"]
        self.losses, self.seconds = state["losses"], state["seconds"]

    def start(self) -> None:
        """Start the clock. The trainer counts tokens from zero."""
        self.tokens_before = self.tokens
        self.started = self.since = time.perf_counter()

    def stop(self) -> None:
        """Stop the clock."""
        self.seconds, self.started = self.elapsed(), None

    def log(self, step: int, logs: Mapping[str, float], *, fp16: bool) -> None:
        """Append one line to metrics.jsonl.

        Raises:
            DivergedError: The loss or the gradient norm is not finite.
        """
        now = time.perf_counter()
        tokens = self.tokens_before + float(logs.get("num_tokens", 0.0))
        speed = (tokens - self.tokens) / max(now - self.since, 1e-9)
        self.tokens, self.since = tokens, now
        numbers = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
        numbers["num_tokens"] = tokens
        self.losses += numbers["loss"]
        self.run.log(step, {**numbers, "tokens_per_second": speed})
        # In float16 an overflow of the gradient is routine: the scaler skips that step.
        for name in ("loss",) if fp16 else ("loss", "grad_norm"):
            value = numbers.get(name, 0.0)
            if not math.isfinite(value):
                raise self._diverged(name, value, step)

    def _diverged(self, name: str, value: float, step: int) -> DivergedError:
        message = f"training diverged: {name} is {value} at step {step}{self._rows()}."
        hint = "Lower the learning rate, or check these rows."
        if saved := self.run.checkpoints():
            hint += f" The last checkpoint is {saved[-1]}; to start from it, set {self.run.stage}.start to its model."
        return DivergedError("training.non-finite", message, location=self.run.stage, hint=hint)

    def _rows(self) -> str:
        """Return the beginnings of the step's rows, and log all of them."""
        rows = [row for ids in self.batch for row in ids.tolist()]
        texts = [" ".join(self.tokenizer.decode(row, skip_special_tokens=True).split()) for row in rows]
        if not texts:
            return ""
        logger.debug("\n".join(["rows of the step that diverged:", *texts]))
        shown = ", ".join(f"“{_shorten(text)}”" for text in texts[:MAX_SHOWN_ROWS])
        hidden = len(texts) - MAX_SHOWN_ROWS
        return f", on {shown}" + (f" and {hidden:,} more (see log.txt)" if hidden > 0 else "")

    def summary(self, stage: str, steps: int) -> dict[str, float]:
        """Return the metrics for the manifest; seconds are of training only."""
        seconds = self.elapsed()
        return {
            f"{stage}.train_loss": self.losses / steps,
            f"{stage}.steps": float(steps),
            f"{stage}.tokens_per_second": self.tokens / seconds,
            f"{stage}.train_seconds": seconds,
        }

    def elapsed(self) -> float:
        """Return the seconds of training so far, including those before a resume."""
        return self.seconds + (0.0 if self.started is None else time.perf_counter() - self.started)


class RunCallback(TrainerCallback):
    """Logs each step to the run, and saves a checkpoint when one is due or a signal came."""

    def __init__(self, run: Run, metrics: TrainingMetrics, checkpoints: TrainerCheckpoints, position: Position) -> None:
        self.run, self.metrics, self.checkpoints, self.position = run, metrics, checkpoints, position

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        """Restore the optimizer of a resumed run. The trainer has loaded the weights and created a new optimizer."""
        if not self.run.started_training:
            self.run.begin(self.position.count * state.max_steps, "step", handles_signals=True)
        self.checkpoints.restore_optimizer(optimizer, lr_scheduler)
        self.metrics.start()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the random generators before the epoch's order is drawn."""
        self.checkpoints.begin_epoch()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the random generators once the trainer has skipped the rows of earlier steps."""
        self.checkpoints.begin_step()
        self.metrics.batch.clear()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log a step, then save it if it is due: weights, optimizer and generators are at rest only after the log.

        The last step is not saved, because the model itself is saved after it.

        Raises:
            DivergedError: The loss or the gradient norm is not finite.
            StoppedError: A signal came; the step is saved.
        """
        if not logs or "loss" not in logs:
            return  # an evaluation, or the summary at the end
        step = self.position.step(state)
        member = {"member": self.position.index + 1} if self.position.count > 1 else {}
        self.metrics.log(step, {**logs, **member}, fp16=args.fp16)
        if state.global_step >= state.max_steps:
            return
        is_stopped = any(distributed.all_gather_object(self.run.stop_requested))
        if step % self.checkpoints.save_every == 0 or is_stopped:
            objects = {name: kwargs[name] for name in ("model", "optimizer", "lr_scheduler")}
            self.checkpoints.save(step, state, self.metrics.state(), **objects)
        if is_stopped:
            raise self.run.stopped(step)


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}…"
