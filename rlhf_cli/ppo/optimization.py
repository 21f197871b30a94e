"""The optimizer, its schedule and the trackers, as `ppo.trainer` asks for them in transformers' words.

The keys are fields of transformers.TrainingArguments, read and checked by it. Those that PPO's loop does not act on
are refused with the recipe (`recipe.trainer_keys`), rather than taken and left without effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler

from rlhf_cli.errors import RecipeError
from rlhf_cli.recipe.schema import Ppo

FED_BY_A_METRIC = ("reduce_lr_on_plateau", "greedy")


class Optimization(NamedTuple):
    """What moves the parameters. Group 0 of the optimizer is the policy's, group 1 the critic's."""

    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    max_grad_norm: float  # of policy and critic each; 0 or less: no clipping


def arguments(trainer: Mapping[str, Any], folder: Path) -> TrainingArguments:
    """`ppo.trainer` as TrainingArguments. The learning rate is constant, nothing is reported, and on a GPU activations
    are computed again in the backward pass, unless it says so.

    Raises:
        RecipeError: transformers refuses a value. The keys were checked with the recipe.
    """
    ours: dict[str, Any] = {"lr_scheduler_type": "constant", "report_to": "none", "project": "rlhf"}
    ours["use_cpu"] = not torch.accelerator.is_available()
    given = {**ours, "activation_checkpointing": torch.cuda.is_available(), **trainer}
    try:
        asked = TrainingArguments(output_dir=str(folder), **given)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"transformers refuses it: {error}", location="ppo.trainer") from error
    if asked.lr_scheduler_type in FED_BY_A_METRIC:
        location = "ppo.trainer.lr_scheduler_type"
        raise RecipeError(
            f"{given['lr_scheduler_type']} follows an evaluation loss, which PPO has not.", location=location
        )
    return asked


def build(
    settings: Ppo, asked: TrainingArguments, policy: list[nn.Parameter], critic: list[nn.Parameter]
) -> Optimization:
    """Optimizer and schedule over both; the schedule counts optimizer steps, and is the same factor for both."""
    kind, options = Trainer.get_optimizer_cls_and_kwargs(asked)
    groups = [
        {"params": policy, "lr": settings.learning_rate, "weight_decay": asked.weight_decay},
        {"params": critic, "lr": settings.critic.learning_rate, "weight_decay": asked.weight_decay},
    ]
    optimizer = kind(groups, **options)
    total = settings.iterations * settings.epochs * settings.minibatches
    schedule = get_scheduler(
        asked.lr_scheduler_type,
        optimizer,
        num_warmup_steps=asked.get_warmup_steps(total),
        num_training_steps=total,
        scheduler_specific_kwargs=asked.lr_scheduler_kwargs,
    )
    return Optimization(optimizer, schedule, asked.max_grad_norm)


class Trackers:
    """Weights & Biases, TensorBoard and the like, through accelerate; none unless `report_to` names them."""

    def __init__(self, asked: TrainingArguments, config: Mapping[str, Any]) -> None:
        names = [name for name in asked.report_to if name != "none"]
        self._accelerator = Accelerator(log_with=names, project_dir=asked.output_dir) if names else None
        if self._accelerator is not None:
            working = {str(getattr(tracker, "value", tracker)) for tracker in self._accelerator.log_with}
            absent = [name for name in names if name not in working]
            if absent:
                hint = f"pip install {' '.join(absent)}, or leave it out of report_to."
                raise RecipeError(f"{', '.join(absent)} is not installed.", location="ppo.trainer.report_to", hint=hint)
            self._accelerator.init_trackers(asked.project, config=dict(config))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One iteration's figures."""
        if self._accelerator is not None:
            self._accelerator.log(dict(metrics), step=step)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Answers to the watched prompts, as text: keys prompt, response, reward."""
        if self._accelerator is not None:
            texts = {f"sample.{i}": "\n\n".join(f"{k}: {v}" for k, v in row.items()) for i, row in enumerate(rows, 1)}
            self._accelerator.log(texts, step=step)

    def close(self) -> None:
        """Let the trackers write what they hold back."""
        if self._accelerator is not None:
            self._accelerator.end_training()
