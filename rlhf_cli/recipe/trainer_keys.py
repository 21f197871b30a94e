"""Which keys `trainer:` may hold, known without importing TRL: read from the installed source's syntax tree.

Four kinds are refused: keys that do not exist, keys that a field of the recipe sets, keys that the run decides, and
keys that would have no effect because rows are tokenized here and not by TRL.
"""

from __future__ import annotations

import ast
import difflib
import functools
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

FILES = {  # stage: where its config's fields are, as (package, file, class)
    "sft": (
        ("trl", "trainer/sft_config.py", "SFTConfig"),
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("transformers", "training_args.py", "TrainingArguments"),
    ),
    "reward": (
        ("trl", "trainer/reward_config.py", "RewardConfig"),
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("transformers", "training_args.py", "TrainingArguments"),
    ),
}
FILES["pretrain"] = FILES["sft"]
SET_BY = {  # a key, and what sets it
    "output_dir": "--runs-dir",
    "seed": "seed",
    "data_seed": "seed",
    "learning_rate": "learning_rate",
    "num_train_epochs": "epochs",
    "max_steps": "max_steps",
    "per_device_train_batch_size": "micro_batch_size",
    "gradient_accumulation_steps": "batch_size and micro_batch_size",
    "max_length": "max_length",
    "bf16": "base.dtype",
    "fp16": "base.dtype",
    "chat_template_path": "base.chat_template",
    "hub_token": "HF_TOKEN in the environment",
}
RUNS_OWN = (  # the run saves, logs and resumes
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "save_only_model",
    "load_best_model_at_end",
    "enable_jit_checkpoint",
    "resume_from_checkpoint",
    "restore_callback_states_from_checkpoint",
    "ignore_data_skip",
    "auto_find_batch_size",
    "logging_strategy",
    "logging_steps",
    "logging_first_step",
    "push_to_hub",
    "remove_unused_columns",
    "disable_tqdm",
    "logging_nan_inf_filter",
)
WITHOUT_EFFECT = (  # rows come tokenized, with their labels
    "packing",
    "packing_strategy",
    "eval_packing",
    "padding_free",
    "completion_only_loss",
    "assistant_only_loss",
    "dataset_kwargs",
    "dataset_text_field",
    "dataset_num_proc",
    "truncation_mode",
    "shuffle_dataset",
    "eos_token",
    "pad_token",
    "model_init_kwargs",
    "trust_remote_code",
)


PPO_TAKES = (  # what our own loop acts on, in the words of transformers.TrainingArguments
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "weight_decay",
    "max_grad_norm",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "activation_checkpointing",
    "report_to",
    "project",
)


class KeyFault(NamedTuple):
    """A key that cannot stand in `trainer:`, why, and what to do."""

    name: str
    message: str
    mend: str


def faults(stage: str, trainer: Mapping[str, Any]) -> Iterator[KeyFault]:
    """Every key of a stage's `trainer:` that is refused."""
    if stage == "ppo":
        yield from _ppo_faults(trainer)
        return
    for name in trainer:
        if name in SET_BY:
            yield KeyFault(name, "the run owns this key.", f"Set {SET_BY[name]}.")
        elif name in RUNS_OWN:
            yield KeyFault(name, "the run owns this key.", "Remove it.")
        elif name in WITHOUT_EFFECT:
            yield KeyFault(name, "has no effect here: rows come to TRL tokenized.", "Remove it.")
        elif name not in known_keys(stage):
            near = difflib.get_close_matches(name, known_keys(stage), n=1)
            mend = f"Did you mean {near[0]}?" if near else "See TRL's documentation for its keys."
            yield KeyFault(name, f"{FILES[stage][0][2]} has no such key.", mend)


def _ppo_faults(trainer: Mapping[str, Any]) -> Iterator[KeyFault]:
    for name in trainer:
        if name in PPO_TAKES:
            continue
        near = difflib.get_close_matches(name, PPO_TAKES, n=1)
        mend = f"Did you mean {near[0]}?" if near else f"It takes {', '.join(PPO_TAKES)}."
        yield KeyFault(name, "PPO's loop has no use for this key.", mend)


@functools.cache
def known_keys(stage: str) -> tuple[str, ...]:
    """The fields of the stage's TRL config, those that it inherits included; importing nothing of TRL."""
    names: list[str] = []
    for package, file, class_name in FILES[stage]:
        spec = find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        path = Path(next(iter(spec.submodule_search_locations))) / file
        tree = ast.parse(path.read_text(encoding="utf-8"))
        body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name)
        names += [n.target.id for n in body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    return tuple(names)
