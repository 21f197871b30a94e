"""Which keys `trainer:` may hold, and values of which type, without importing TRL: read from the installed source's
syntax tree, which takes 30 ms.

Five kinds are refused: keys that do not exist, keys that a field of the recipe sets, keys that the run decides, keys
that would have no effect because rows are tokenized here and not by TRL, and values that their field does not take.
"""

from __future__ import annotations

import ast
import difflib
import functools
import math
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

FILES: dict[
    str, tuple[tuple[str, str, str], ...]
] = {  # stage: where its config's fields are, as (package, file, class)
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
FILES["ppo"] = FILES["sft"][-1:]
WORDS_IN = ("trainer_utils.py", "training_args.py")  # of transformers: the enumerations that fields are annotated with
TYPES: dict[str, tuple[tuple[type, ...], str]] = {  # an annotation, what YAML makes of it, and how it is told
    "bool": ((bool,), "true or false"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "text"),
    "dict": ((dict,), "a mapping"),
    "list": ((list,), "a list"),
    "None": ((type(None),), "null"),
}
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


class KeyIssue(NamedTuple):
    """A key that cannot stand in `trainer:`, why, and what to do."""

    name: str
    message: str
    hint: str


def issues(stage: str, trainer: Mapping[str, Any]) -> Iterator[KeyIssue]:
    """Every key of a stage's `trainer:` that is refused, and every value."""
    for name, value in trainer.items():
        refused = [*(_ppo_key(name) if stage == "ppo" else _key(stage, name))]
        yield from refused or _value(name, value, known_keys(stage)[name])


def _key(stage: str, name: str) -> Iterator[KeyIssue]:
    if name in SET_BY:
        yield KeyIssue(name, "the run owns this key.", f"Set {SET_BY[name]}.")
    elif name in RUNS_OWN:
        yield KeyIssue(name, "the run owns this key.", "Remove it.")
    elif name in WITHOUT_EFFECT:
        yield KeyIssue(name, "has no effect here: rows come to TRL tokenized.", "Remove it.")
    elif name not in known_keys(stage):
        near = difflib.get_close_matches(name, known_keys(stage), n=1)
        hint = f"Did you mean {near[0]}?" if near else "See TRL's documentation for its keys."
        yield KeyIssue(name, f"{FILES[stage][0][2]} has no such key.", hint)


def _ppo_key(name: str) -> Iterator[KeyIssue]:
    if name not in PPO_TAKES:
        near = difflib.get_close_matches(name, PPO_TAKES, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"It takes {', '.join(PPO_TAKES)}."
        yield KeyIssue(name, "PPO's loop has no use for this key.", hint)


def _value(name: str, value: Any, annotation: str) -> Iterator[KeyIssue]:
    """What is wrong with a value, by its field's annotation, such as `float | None` or `SchedulerType | str`."""
    parts = [part.partition("[")[0] for part in annotation.split(" | ")]
    words = next((_words()[part] for part in parts if part in _words()), None)
    if words is not None:
        if value not in words:
            near = difflib.get_close_matches(str(value), words, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"It takes {', '.join(words[:8])}{', …' * (len(words) > 8)}."
            yield KeyIssue(name, f"found {value}, which is none of its words.", hint)
        return
    if not all(part in TYPES for part in parts):
        return  # what it takes is the library's to tell
    taken = [kind for part in parts for kind in TYPES[part][0]]
    if type(value) not in taken or (isinstance(value, float) and not math.isfinite(value)):
        shown = str(value) if len(str(value)) < 60 else f"{str(value)[:40]}…"
        hint = "Write it without quotes." if isinstance(value, str) else ""
        yield KeyIssue(name, f"found {shown}, expected {' or '.join(TYPES[part][1] for part in parts)}.", hint)


@functools.cache
def known_keys(stage: str) -> Mapping[str, str]:
    """The fields of the stage's TRL config, those that it inherits included, each with its annotation."""
    fields: dict[str, str] = {}
    for package, file, class_name in reversed(FILES[stage]):  # a class overrides those that it inherits from
        body = next(n.body for n in _classes(package, file) if n.name == class_name)
        for node in body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                fields[node.target.id] = ast.unparse(node.annotation)
    return fields


@functools.cache
def _words() -> Mapping[str, list[str]]:
    """The words of transformers' enumerations."""
    return {
        node.name: [
            str(n.value.value) for n in node.body if isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant)
        ]
        for file in WORDS_IN
        for node in _classes("transformers", file)
        if any(isinstance(base, ast.Name) and base.id == "ExplicitEnum" for base in node.bases)
    }


@functools.cache
def _classes(package: str, file: str) -> list[ast.ClassDef]:
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(next(iter(spec.submodule_search_locations))) / file
    return [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
