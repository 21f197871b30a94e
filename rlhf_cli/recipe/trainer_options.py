"""Validate the keys and values of `trainer:` without importing TRL.

The fields of TRL's config classes are read from the installed source's syntax tree, which takes 30 ms; importing TRL
takes 6 s. Five kinds of options are refused: those that do not exist, those that a field of the recipe sets, those
that rlhf manages, those that have no effect because rlhf tokenizes the rows itself, and those with an invalid value.
"""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlhf_cli.errors import Issue
from rlhf_cli.formatting import did_you_mean
from rlhf_cli.recipe.foreign_keys import foreign_key_hint
from rlhf_cli.recipe.schema import Key
from rlhf_cli.recipe.trackers import OWN_LOOP_TRACKERS, TRL_TRACKERS, Trackers, tracker_issue
from rlhf_cli.recipe.yaml_document import dotted, format_value
from rlhf_cli.stages import STAGES

TRANSFORMERS_CONFIG = "TrainingArguments"  # the class that all config classes of TRL inherit from
ENUM_FILES = ("trainer_utils.py", "training_args.py")  # of transformers, with the enumerations that annotate fields
TYPES: Mapping[str, tuple[tuple[type, ...], str]] = {  # annotation: the types that YAML gives, and their description
    "bool": ((bool,), "true or false"),
    "int": ((int,), "an integer"),
    "float": ((int, float), "a number"),
    "str": ((str,), "text"),
    "dict": ((dict,), "a mapping"),
    "list": ((list,), "a list"),
    "None": ((type(None),), "null"),
}
SET_BY: Mapping[str, str] = {  # option: what sets it
    "output_dir": "--runs-dir",
    "seed": "seed",
    "data_seed": "seed",
    "learning_rate": "{section}.learning_rate",
    "num_train_epochs": "{section}.epochs",
    "max_steps": "{section}.max_steps",
    "per_device_train_batch_size": "{section}.micro_batch_size",
    "gradient_accumulation_steps": "{section}.batch_size",
    "max_length": "{section}.max_length",
    "bf16": "base.dtype",
    "fp16": "base.dtype",
    "chat_template_path": "base.chat_template",
    "hub_token": "HF_TOKEN in the environment",
}
MANAGED_OPTIONS = (  # saving, logging and resuming are done by the run
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
OPTIONS_WITHOUT_EFFECT = (  # TRL receives tokenized rows with labels
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
OWN_LOOP_OPTIONS = (  # options of transformers.TrainingArguments that rlhf's own training loops implement
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


def trainer_issues(stage: str, trainer: Mapping[str, Any]) -> Iterator[tuple[Key, Issue]]:
    """Yield an issue without location, and its key, for each option of a stage's `trainer:` that is refused."""
    spec = STAGES[stage]
    for name, value in trainer.items():
        key = (spec.section, "trainer", name)
        issue = _name_issue(key, spec.trl_config)
        if issue is None:
            issue = _value_issue(key, value, config_fields(spec.trl_config or TRANSFORMERS_CONFIG)[name])
        if issue is None and name == "report_to":
            issue = tracker_issue(dotted(key), value, supported_trackers(stage))
        if issue is not None:
            yield key, issue


def supported_trackers(stage: str) -> Trackers:
    """Return the experiment trackers that a stage can report to, each with its packages."""
    return OWN_LOOP_TRACKERS if STAGES[stage].trl_config is None else TRL_TRACKERS


def accepts_trainer_option(section: str, name: str) -> bool:
    """Return whether `trainer:` of the stage with this section accepts an option of this name."""
    specs = [spec for spec in STAGES.values() if spec.section == section]
    return any(_name_issue((section, "trainer", name), spec.trl_config) is None for spec in specs)


def _name_issue(key: tuple[str, str, str], config: str | None) -> Issue | None:
    """Return the issue of an option's name, or None if it is valid. `config` is None for a training loop of rlhf."""
    return _own_loop_issue(key) if config is None else _trl_issue(key, config)


def _trl_issue(key: tuple[str, str, str], config: str) -> Issue | None:
    section, _, name = key
    if name in SET_BY or name in MANAGED_OPTIONS:
        hint = f"Set {SET_BY[name].format(section=section)} instead." if name in SET_BY else "Remove it."
        return Issue("recipe.managed-key", f"{dotted(key)}: managed by rlhf and cannot be set here.", hint=hint)
    if name in OPTIONS_WITHOUT_EFFECT:
        message = f"{dotted(key)}: no effect, because rlhf tokenizes the rows before TRL receives them."
        return Issue("recipe.no-effect", message, hint="Remove it.")
    fields = config_fields(config)
    if name in fields:
        return None
    hint = foreign_key_hint(name, (section,), relative=False)
    hint = hint or did_you_mean(name, fields, otherwise=f"See the documentation of trl.{config} for its options.")
    return Issue("recipe.unknown-key", f"{dotted(key)}: unknown option of trl.{config}.", hint=hint)


def _own_loop_issue(key: tuple[str, str, str]) -> Issue | None:
    section, _, name = key
    if name in OWN_LOOP_OPTIONS:
        return None
    hint = foreign_key_hint(name, (section,), relative=False)
    hint = hint or did_you_mean(name, OWN_LOOP_OPTIONS, otherwise=f"Choose from {', '.join(OWN_LOOP_OPTIONS)}.")
    return Issue("recipe.unknown-key", f"{dotted(key)}: not an option of the {section} trainer.", hint=hint)


def _value_issue(key: Key, value: Any, annotation: str) -> Issue | None:
    """Return the issue of a value for a field with `annotation`, such as `SchedulerType | str`, or None."""
    parts = [part.partition("[")[0] for part in annotation.split(" | ")]
    choices = next((_enumerations()[part] for part in parts if part in _enumerations()), None)
    if choices is not None:
        return None if value in choices else _choice_issue(key, value, choices)
    if not all(part in TYPES for part in parts):
        return None  # only the library can validate it
    types = [kind for part in parts for kind in TYPES[part][0]]
    if type(value) in types and not (isinstance(value, float) and not math.isfinite(value)):
        return None
    expected = " or ".join(TYPES[part][1] for part in parts)
    hint = "Write it without quotes." if isinstance(value, str) else ""
    message = f"{dotted(key)}: invalid value; found {format_value(value)}, expected {expected}."
    return Issue("recipe.invalid-value", message, hint=hint)


def _choice_issue(key: Key, value: Any, choices: list[str]) -> Issue:
    shown = [*choices[:8], "…"] if len(choices) > 8 else choices
    message = f"{dotted(key)}: invalid value; found {format_value(value)}, expected one of {', '.join(shown)}."
    return Issue("recipe.invalid-value", message, hint=did_you_mean(str(value), choices))


@functools.cache
def config_fields(config: str) -> Mapping[str, str]:
    """Return the fields of a config class of TRL or transformers, including inherited ones, with their annotations."""
    fields: dict[str, str] = {}
    for node in reversed(_class_hierarchy(config)):  # a class overrides the fields that it inherits
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                fields[item.target.id] = ast.unparse(item.annotation)
    return fields


def _class_hierarchy(config: str) -> list[ast.ClassDef]:
    """Return a config class and its bases, up to transformers.TrainingArguments."""
    hierarchy: list[ast.ClassDef] = []
    name = config
    while name != TRANSFORMERS_CONFIG:
        hierarchy.append(_find_class("trl", _trl_file(name), name))
        name = ast.unparse(hierarchy[-1].bases[0])
    return [*hierarchy, _find_class("transformers", "training_args.py", TRANSFORMERS_CONFIG)]


def _trl_file(config: str) -> str:
    """Return TRL's file with a config class, by TRL's naming: `_BaseConfig` is in trainer/base_config.py."""
    return f"trainer/{config.removeprefix('_').removesuffix('Config').lower()}_config.py"


@functools.cache
def _enumerations() -> Mapping[str, list[str]]:
    """Return the values of each enumeration of transformers."""
    return {
        node.name: [
            str(item.value.value)
            for item in node.body
            if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)
        ]
        for file in ENUM_FILES
        for node in _classes("transformers", file)
        if any(isinstance(base, ast.Name) and base.id == "ExplicitEnum" for base in node.bases)
    }


def _find_class(package: str, file: str, name: str) -> ast.ClassDef:
    return next(node for node in _classes(package, file) if node.name == name)


@functools.cache
def _classes(package: str, file: str) -> list[ast.ClassDef]:
    """Return the classes of a file of an installed package, without importing it."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(next(iter(spec.submodule_search_locations))) / file
    return [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
