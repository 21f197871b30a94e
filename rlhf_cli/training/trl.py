"""What the stages around a TRL trainer share: its arguments, its data set, the bridge from its log to the run."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from rlhf_cli import distributed
from rlhf_cli.errors import DivergedError, RecipeError
from rlhf_cli.recipe.schema import Pretrain, Reward, Sft
from rlhf_cli.runs.run import Run

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from rlhf_cli.data.rows import Split

C = TypeVar("C")
SHOWN = 60  # characters of a row that an error shows


def arguments(section: Pretrain | Sft | Reward, run: Run, seed: int, *, dtype: torch.dtype) -> dict[str, Any]:
    """Keyword arguments of a TRL config: what the run decides, over what `trainer:` asks for, over our defaults."""
    on_gpu = torch.cuda.is_available()
    defaults = {
        "report_to": "none",
        # TRL's default, True, trades time for GPU memory; a CPU has the memory and lacks the time.
        "gradient_checkpointing": on_gpu,
        "dataloader_pin_memory": on_gpu,
    }
    steps = section.max_steps
    together = distributed.world_size()
    rows = section.micro_batch_size * together  # of one pass of all processes
    if section.batch_size % rows:
        message = f"batch_size {section.batch_size} is not a multiple of micro_batch_size × {together} processes."
        raise RecipeError(message, location=run.stage, hint="Choose them so that it is.")
    owned = {
        "output_dir": str(run.path),
        "save_strategy": "no",  # the run saves, after any step; so each one's loss is logged by itself
        "logging_strategy": "steps",
        "logging_steps": 1,
        "seed": seed,
        "learning_rate": section.learning_rate,
        "per_device_train_batch_size": section.micro_batch_size,
        "gradient_accumulation_steps": section.batch_size // rows,
        "num_train_epochs": 1.0 if section.epochs is None else section.epochs,
        "max_steps": -1 if steps is None else steps,
        "bf16": dtype == torch.bfloat16,
        "fp16": on_gpu and dtype == torch.float16,
        "disable_tqdm": True,
        "use_cpu": not torch.accelerator.is_available(),
        "ddp_find_unused_parameters": False,
        "logging_nan_inf_filter": False,  # a NaN loss is told, not logged as 0
        "push_to_hub": False,
    }
    return {**defaults, **section.trainer, **owned}


def config(kind: type[C], stage: str, arguments: dict[str, Any]) -> C:
    """A TRL config. Raises RecipeError where it refuses a value of `trainer:`; its keys were checked before."""
    try:
        return kind(**arguments)
    except (TypeError, ValueError, ImportError) as error:
        message = f"{kind.__name__} refuses it: {str(error).splitlines()[0]}"
        raise RecipeError(
            message, location=f"{stage}.trainer", hint="See TRL's documentation for its values."
        ) from error


def dataset(parts: Iterable[dict[str, list[Any]]]) -> Dataset:
    """One data set of columns that come in parts; Arrow holds tokens in a tenth of what Python lists take."""
    return concatenate_datasets([Dataset.from_dict(part) for part in parts if next(iter(part.values()))])


def log_row_counts(run: Run, what: str, split: Split[Any], counts: Mapping[str, int]) -> None:
    """Say how many rows there are, and warn of each kind that was cut or dropped. `counts`: those by their length."""
    dropped = sum(number for reason, number in counts.items() if reason.startswith("dropped"))
    logger.info(f"{what}: {len(split.train) - dropped:,} rows to train on, {len(split.held_out):,} held out")
    for reason, number in {**split.counts, **counts}.items():
        if number and reason.startswith(("dropped", "truncated")):
            logger.warning(f"{what}: {number:,} rows {reason}")


class MetricsCallback(TrainerCallback):
    """Hands what a trainer logs to the run, with tokens a second; ends a run whose loss is not a number."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.tokens = 0.0  # that were trained on so far
        self.tokens_before = 0.0  # those before a resume, of which the trainer does not know
        self.losses = 0.0  # sum over the steps
        self.seconds = 0.0  # of training, before a resume
        self.since = time.perf_counter()
        self.started = self.since
        self.batch: list[Tensor] = []  # (b, T) token ids of each forward pass of the step

    def watch(self, trainer: Trainer) -> None:
        """See the rows of each step, to name those of one that goes wrong."""
        self.tokenizer: Any = trainer.processing_class

        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module.training and isinstance(ids := kwargs.get("input_ids"), Tensor):
                self.batch.append(ids.detach())

        trainer.model.register_forward_pre_hook(see, with_kwargs=True)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Its rows are about to be seen."""
        self.batch.clear()

    def state(self) -> dict[str, float]:
        """For `restore`, in another process."""
        return {"tokens": self.tokens, "losses": self.losses, "seconds": self._seconds()}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from `state`."""
        self.tokens = self.tokens_before = state["tokens"]
        self.losses, self.seconds = state["losses"], state["seconds"]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the run how many optimizer steps are to come."""
        self.run.begin(state.max_steps, "steps", handles_signals=True)
        self.started = self.since = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """One logged step becomes one line of metrics."""
        if not logs or "loss" not in logs:
            return  # the summary at the end, and evaluations
        now = time.perf_counter()
        tokens = self.tokens_before + float(logs.get("num_tokens", 0.0))
        speed = (tokens - self.tokens) / max(now - self.since, 1e-9)
        self.tokens, self.since = tokens, now
        numbers = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
        numbers["num_tokens"] = tokens
        self.losses += numbers["loss"]
        self.run.log(state.global_step, {**numbers, "tokens_per_second": speed})
        # In float16 an overflow is routine: the scaler skips that step and goes on.
        for name in ("loss",) if args.fp16 else ("loss", "grad_norm"):
            value = numbers.get(name, 0.0)
            if not math.isfinite(value):
                message = f"{name} is {value} at step {state.global_step}{self._rows()}."
                hint = "Lower the learning rate, or look at these rows."
                if saved := self.run.checkpoints():
                    hint += f" The last checkpoint is {saved[-1]}: {self.run.stage}.start takes its model folder."
                raise DivergedError(message, location=self.run.stage, hint=hint)

    def _rows(self) -> str:
        """The rows of the step, by how they begin; all of them go into the log."""
        rows = [row for ids in self.batch for row in ids.tolist()]
        texts = [" ".join(self.tokenizer.decode(row, skip_special_tokens=True).split()) for row in rows]
        if not texts:
            return ""
        logger.debug("\n".join(["rows of the step that went wrong:", *texts]))
        shown = ", ".join(f"“{text[:SHOWN]}…”" if len(text) > SHOWN else f"“{text}”" for text in texts[:3])
        more = f" and {len(texts) - 3:,} more, in log.txt" if len(texts) > 3 else ""
        return f", on {shown}{more}"

    def summary(self, stage: str, steps: int) -> dict[str, float]:
        """The figures that end up in the manifest; seconds are of training alone."""
        seconds = self._seconds()
        return {
            f"{stage}.train_loss": self.losses / steps,
            f"{stage}.steps": float(steps),
            f"{stage}.tokens_per_second": self.tokens / seconds,
            f"{stage}.train_seconds": seconds,
        }

    def _seconds(self) -> float:
        return self.seconds + time.perf_counter() - self.started


def save(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, run: Run) -> None:
    """Write what later stages load: the adapter or the whole model, safetensors alone, and the tokenizer."""
    trainer.model.save_pretrained(run.model_dir)
    tokenizer.save_pretrained(run.model_dir)
