"""Train with a TRL trainer: the common body of the stages around one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers import PrinterCallback, Trainer

from rlhf_cli import distributed
from rlhf_cli.models import fsdp
from rlhf_cli.models.generation_config import repair_generation_config
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.recipe.schema import TrainerSection
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.training import trl
from rlhf_cli.training.callbacks import Position, RunCallback, TrainingMetrics
from rlhf_cli.training.checkpointing import TrainerCheckpoints, silence_tied_weights_warning
from rlhf_cli.training.prepared_data import PreparedData

SINGLE = Position()
Evaluate = Callable[[Trainer], Mapping[str, float]]


class TrlTrainer(NamedTuple):
    """A TRL trainer, its config class, and the config arguments that the stage decides."""

    trainer_class: type[Any]
    config_class: type[Any]
    config: Mapping[str, Any]


def train_with_trl(
    stage: ResolvedStage,
    run: Run,
    data: PreparedData,
    *,
    trl_trainer: TrlTrainer,
    model: Any,
    dtype: torch.dtype,
    evaluate: Evaluate,
) -> StageMetrics:
    """Train `model` with a TRL trainer, from the start or from the run's checkpoint; save and evaluate it.

    Args:
        stage: The resolved stage.
        run: The run to write to.
        data: The tokenized rows and the tokenizer, which is saved with the model.
        trl_trainer: The trainer and its config.
        model: The model, with the adapter attached if there is one.
        dtype: Data type of the computation.
        evaluate: Computes metrics on held-out rows after training. With a sharded base, every process calls it.
    """
    rows = trl.dataset(data.train.parts)
    with trl.keep_router_settings(model):
        trainer = build_trainer(
            stage, run, data, trl_trainer=trl_trainer, model=model, dtype=dtype, rows=rows, seed=stage.recipe.seed
        )
        metrics = TrainingMetrics(run)
        train(trainer, run, metrics, TrainerCheckpoints(run, trainer, stage.section.save_every, run.resumed_from))
    trl.save(trainer, data.tokenizer, run)
    found = metrics.summary(run.stage, trainer.state.global_step)
    if evaluates(stage):
        found |= evaluate(trainer)
    return StageMetrics(found, conversational=data.conversational)


def evaluates(stage: ResolvedStage) -> bool:
    """Return whether this process evaluates: the forward pass of a sharded base needs every process."""
    return distributed.is_main() or stage.sharded


def build_trainer(
    stage: ResolvedStage,
    run: Run,
    data: PreparedData,
    *,
    trl_trainer: TrlTrainer,
    model: Any,
    dtype: torch.dtype,
    rows: Dataset,
    seed: int,
) -> Trainer:
    """Return a TRL trainer of `model`.

    Args:
        stage: The resolved stage.
        run: The run to write to.
        data: The prepared data.
        trl_trainer: The trainer class, its config class, and arguments of the config.
        model: The model.
        dtype: Data type of the computation.
        rows: The rows to train on.
        seed: Seed of the order of the rows and of dropout.
    """
    if stage.sharded:
        fsdp.ignore_in_ddp(model)
    section: TrainerSection = stage.section
    arguments = {**trl.arguments(section, run, seed, dtype=dtype), **trl_trainer.config}
    trainer: Trainer = trl_trainer.trainer_class(
        model=model,
        args=trl.config(trl_trainer.config_class, stage.name, arguments),
        train_dataset=rows,
        processing_class=data.tokenizer,
    )
    return trainer


def train(
    trainer: Trainer,
    run: Run,
    metrics: TrainingMetrics,
    checkpoints: TrainerCheckpoints,
    position: Position = SINGLE,
) -> None:
    """Train from the start, or from the checkpoint that `checkpoints` resumes from.

    Args:
        trainer: The trainer.
        run: The run to write to.
        metrics: Logs the metrics of every step.
        checkpoints: Saves the trainer's state.
        position: Which of the run's trainings this is.
    """
    trainer.remove_callback(PrinterCallback)  # prints TRL's log
    # Keep trainable parameters in float32 even on a 16-bit base: in bfloat16 most Adam updates round to zero. TRL
    # casts them to bfloat16 on a quantized base. The optimizer is created after this.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    repair_generation_config(trainer.model)  # save_pretrained refuses an invalid one, after the training
    if checkpoints.metrics_state is not None:
        metrics.restore(checkpoints.metrics_state)
    trainer.add_callback(RunCallback(run, metrics, checkpoints, position))
    metrics.watch(trainer)
    with silence_tied_weights_warning() if checkpoints.resume_from is not None else contextlib.nullcontext():
        trainer.train(resume_from_checkpoint=checkpoints.resume_from)
    metrics.stop()
