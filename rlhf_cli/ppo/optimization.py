"""Build the optimizer, its schedule and the trackers from `ppo.trainer`.

The options are fields of transformers.TrainingArguments, which parses and validates them. Options without effect on
PPO's loop are refused when the recipe is validated (`recipe.trainer_options`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import LoggerType
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler

from rlhf_cli.errors import RecipeError
from rlhf_cli.formatting import format_exception
from rlhf_cli.recipe.schema import Ppo

CRITIC_RATE_FACTOR = 10  # of the policy's learning rate; measured in docs/benchmarks.md, "PPO: learning"
METRIC_DRIVEN_SCHEDULES = ("reduce_lr_on_plateau", "greedy")


class Optimization(NamedTuple):
    """The optimizer and its schedule. Parameter group 0 is the policy's, group 1 the critic's."""

    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    max_grad_norm: float  # of policy and critic each; 0 or less: no clipping


def training_arguments(options: Mapping[str, Any], folder: Path) -> TrainingArguments:
    """Return `ppo.trainer` as TrainingArguments.

    By default the learning rate decays linearly, nothing is reported, and activations are recomputed in the backward
    pass on a GPU, unless the memory estimate decides otherwise.

    Args:
        options: The options of `ppo.trainer`, whose names are already validated.
        folder: The directory that trackers write to.

    Raises:
        RecipeError: A value is invalid, or the schedule cannot be used with PPO.
    """
    arguments: dict[str, Any] = {
        "lr_scheduler_type": "linear",
        "report_to": "none",
        "project": "rlhf",
        "use_cpu": not torch.accelerator.is_available(),
        "activation_checkpointing": torch.accelerator.is_available(),
        **options,
    }
    try:
        parsed = TrainingArguments(output_dir=str(folder), **arguments)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            "recipe.invalid-value",
            f"invalid value: {format_exception(error).rstrip('.')}.",
            location="ppo.trainer",
            hint="Correct the value; see transformers.TrainingArguments.",
        ) from error
    if parsed.lr_scheduler_type in METRIC_DRIVEN_SCHEDULES:
        raise RecipeError(
            "recipe.invalid-value",
            f"{arguments['lr_scheduler_type']} needs an evaluation loss, which PPO does not compute.",
            location="ppo.trainer.lr_scheduler_type",
            hint="Use another schedule, such as linear or cosine.",
        )
    return parsed


def build_optimization(
    settings: Ppo, arguments: TrainingArguments, policy: list[nn.Parameter], critic: list[nn.Parameter]
) -> Optimization:
    """Build the optimizer and the schedule. The schedule counts optimizer steps and scales both learning rates.

    Args:
        settings: Gives the learning rates and the number of steps.
        arguments: From `training_arguments`.
        policy: Parameters of the policy.
        critic: Parameters of the critic.
    """
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    critic_rate = settings.critic.learning_rate or CRITIC_RATE_FACTOR * settings.learning_rate
    groups = [
        {"params": policy, "lr": settings.learning_rate, "weight_decay": arguments.weight_decay},
        {"params": critic, "lr": critic_rate, "weight_decay": arguments.weight_decay},
    ]
    optimizer = optimizer_class(groups, **options)
    step_count = settings.iterations * settings.epochs * settings.minibatches
    schedule = get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        num_warmup_steps=arguments.get_warmup_steps(step_count),
        num_training_steps=step_count,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
    )
    return Optimization(optimizer, schedule, arguments.max_grad_norm)


class Trackers:
    """Experiment trackers such as Weights & Biases or TensorBoard, through accelerate; none without `report_to`."""

    def __init__(self, arguments: TrainingArguments, config: Mapping[str, Any]) -> None:
        supported = {tracker.value for tracker in LoggerType}
        names = [name for name in arguments.report_to if name in supported]  # `all` stands for those of transformers
        self._accelerator = Accelerator(log_with=names, project_dir=arguments.output_dir) if names else None
        if self._accelerator is not None:
            self._accelerator.init_trackers(arguments.project, config=_scalars(config))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of one iteration."""
        if self._accelerator is not None:
            self._accelerator.log(dict(metrics), step=step)

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log completions of the sample prompts as text: keys prompt, response, reward."""
        if self._accelerator is not None:
            texts = {
                f"sample.{number}": "\n\n".join(f"{key}: {value}" for key, value in row.items())
                for number, row in enumerate(rows, start=1)
            }
            self._accelerator.log(texts, step=step)

    def close(self) -> None:
        """Flush the trackers."""
        if self._accelerator is not None:
            self._accelerator.end_training()


def _scalars(config: Any, key: str = "") -> dict[str, Any]:
    """Return the values below `config` by their dotted keys: TensorBoard accepts only scalars."""
    if not isinstance(config, (Mapping, list)):
        return {key: "null" if config is None else config}
    scalars: dict[str, Any] = {}
    for child, value in config.items() if isinstance(config, Mapping) else enumerate(config):
        scalars |= _scalars(value, f"{key}.{child}" if key else str(child))
    return scalars
