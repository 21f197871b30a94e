"""Build TRL configs and datasets from the recipe, and save what a TRL trainer trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from datasets import Dataset, concatenate_datasets

from rlhf_cli import distributed
from rlhf_cli.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer

    from rlhf_cli.recipe.schema import TrainerSection
    from rlhf_cli.runs.run import Run

C = TypeVar("C")

ROUTER_SETTINGS = ("output_router_logits", "router_aux_loss_coef")  # config values that SFTTrainer sets


def arguments(section: TrainerSection, run: Run, seed: int, *, dtype: torch.dtype) -> dict[str, Any]:
    """Return keyword arguments of a TRL config: ours, over those of `trainer:`, over our defaults.

    Raises:
        RecipeError: The batch size is not a multiple of what all processes compute in one forward pass.
    """
    on_gpu = torch.cuda.is_available()
    defaults = {
        "report_to": "none",
        # TRL's default, True, trades time for GPU memory; a CPU has the memory but not the time.
        "gradient_checkpointing": on_gpu,
        "dataloader_pin_memory": on_gpu,
    }
    processes = distributed.world_size()
    rows_per_pass = section.micro_batch_size * processes
    if section.batch_size % rows_per_pass:
        message = (
            f"must be a multiple of micro_batch_size × processes; found {section.batch_size}, "
            f"expected a multiple of {section.micro_batch_size} × {processes}."
        )
        hint = "Change batch_size or micro_batch_size."
        raise RecipeError("recipe.not-divisible", message, location=f"{run.stage}.batch_size", hint=hint)
    owned = {
        "output_dir": str(run.path),
        "save_strategy": "no",  # the run saves checkpoints, after any step; so every step's loss is logged
        "logging_strategy": "steps",
        "logging_steps": 1,
        "seed": seed,
        "learning_rate": section.learning_rate,
        "per_device_train_batch_size": section.micro_batch_size,
        "gradient_accumulation_steps": section.batch_size // rows_per_pass,
        "num_train_epochs": 1.0 if section.epochs is None else section.epochs,
        "max_steps": -1 if section.max_steps is None else section.max_steps,
        "bf16": dtype == torch.bfloat16,
        "fp16": on_gpu and dtype == torch.float16,
        "disable_tqdm": True,
        "use_cpu": not torch.accelerator.is_available(),
        "ddp_find_unused_parameters": False,
        "logging_nan_inf_filter": False,  # otherwise a NaN loss is logged as 0
        "push_to_hub": False,
    }
    return {**defaults, **section.trainer, **owned}


def config(config_class: type[C], stage: str, arguments: dict[str, Any]) -> C:
    """Build a TRL config. Its keys were validated with the recipe.

    Raises:
        RecipeError: TRL refuses a value of `trainer:`.
    """
    try:
        return config_class(**arguments)
    except (TypeError, ValueError, ImportError) as error:
        message = f"rejected by {config_class.__name__}: {str(error).splitlines()[0].rstrip('.')}."
        hint = "See TRL's documentation for the allowed values."
        raise RecipeError("recipe.invalid-value", message, location=f"{stage}.trainer", hint=hint) from error


def sft_arguments(model: Any, max_length: int) -> dict[str, Any]:
    """Return arguments of an SFTConfig for rows that are tokenized, of at most `max_length` tokens.

    They switch off the load-balancing loss of experts if TRL cannot compute it: TRL reads the number of experts as
    `num_experts`, which the configs of Phi-3.5-MoE and Granite 4 do not have.
    """
    found: dict[str, Any] = {"max_length": max_length, "dataset_kwargs": {"skip_prepare_dataset": True}}
    text_config = model.config.get_text_config()
    if hasattr(text_config, "output_router_logits") and not hasattr(text_config, "num_experts"):
        found["router_aux_loss_coef"] = 0.0
    return found


@contextmanager
def keep_router_settings(model: Any) -> Iterator[None]:
    """Undo, after the block, what SFTTrainer changes in the config of a mixture of experts.

    The config is saved with a whole model, and later stages would then compute router losses that they do not use.
    """
    text_config = model.config.get_text_config()
    before = {name: getattr(text_config, name) for name in ROUTER_SETTINGS if hasattr(text_config, name)}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(text_config, name, value)


def dataset(parts: Iterable[dict[str, list[Any]]]) -> Dataset:
    """Build one dataset from parts of columns; Arrow holds tokens in a tenth of the memory of Python lists."""
    return concatenate_datasets([Dataset.from_dict(part) for part in parts if next(iter(part.values()))])


def save(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, run: Run) -> None:
    """Save the adapter or the whole model, as safetensors, and the tokenizer into the run's model folder."""
    trainer.model.save_pretrained(run.model_dir)
    tokenizer.save_pretrained(run.model_dir)
