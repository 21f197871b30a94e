"""Compute a stage's settings and fingerprint. Equal fingerprints mean that a run is up to date."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_cli.pipeline.inputs import Input
from rlhf_cli.pipeline.references import datasets_of, uses_judge
from rlhf_cli.recipe.schema import PathKind, Recipe, RewardSource, Section, Source
from rlhf_cli.runs.manifest import digest
from rlhf_cli.stages import STAGES, DatasetKind

# How a reward source is reached does not change its scores; a revision counts as the commit that it names.
UNFINGERPRINTED_REWARD_FIELDS = ("revision", "timeout", "batch_size", "retries")


def fingerprint(settings: dict[str, Any], inputs: Sequence[Input], recipe: Recipe, *, smoke: bool) -> str:
    """Hash the settings, the contents of the inputs and the seed."""
    contents = [[item.role, item.sha256 or item.ref] for item in inputs]
    return digest({"settings": settings, "inputs": contents, "seed": recipe.seed, "smoke": smoke})


def settings_of(stage: str, recipe: Recipe) -> dict[str, Any]:
    """Return the recipe values that decide the result of `stage`, apart from its inputs."""
    spec = STAGES[stage]
    own = _settings(getattr(recipe, spec.section))
    settings: dict[str, Any] = {spec.section: {name: own[name] for name in spec.result_fields or own}}
    if spec.adapts_base:
        settings["base"] = {name: v for name, v in _settings(recipe.base).items() if name not in ("model", "revision")}
        settings["adapter"] = recipe.adapter.model_dump(mode="json") if recipe.adapter else None
    elif spec.base_key and _value(recipe, spec.base_key) != "scratch":
        settings["base"] = [recipe.base.dtype, recipe.base.attention]
    for name, key in spec.fallbacks.items():
        if settings[spec.section][name] is None:
            settings[spec.section][name] = _value(recipe, key)
    judge = recipe.feedback.judge
    if judge is not None and uses_judge(getattr(recipe, spec.section)):
        settings["feedback.judge"] = [_path_placeholder(judge.model), judge.http, judge.http_model]
    for key in spec.reads_settings:
        settings[key] = _value(recipe, key)
    for kind in datasets_of(stage, recipe):
        if kind in spec.dataset_switches:  # its rows are truncated as in the stage that trains on them
            key = _length_key(kind)
            settings[key] = _value(recipe, key)
        sources: list[Source] = getattr(recipe.data, kind) or []
        settings[f"data.{kind}"] = [_settings(source) for source in sources]
    return settings


def _length_key(kind: DatasetKind) -> str:
    """Return the key of the length limit of the first stage that trains on a dataset."""
    spec = next(spec for spec in STAGES.values() if spec.dataset == kind)
    return f"{spec.section}.{spec.max_length_key}"


def _value(recipe: Recipe, key: str) -> Any:
    """Return the recipe's value at the dotted key `section.field`."""
    section, _, field = key.partition(".")
    return getattr(getattr(recipe, section), field)


def _settings(section: Section) -> dict[str, Any]:
    """Return a section's values. Paths become placeholders: their contents count among the inputs."""
    settings: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        if name == "save_every" or (isinstance(section, RewardSource) and name in UNFINGERPRINTED_REWARD_FIELDS):
            continue
        value = getattr(section, name)
        is_path = any(isinstance(item, PathKind) for item in field.metadata)
        values = [_setting(item, is_path=is_path) for item in (value if isinstance(value, list) else [value])]
        settings[name] = values if isinstance(value, list) else values[0]
    return settings


def _setting(value: Any, *, is_path: bool) -> Any:
    if isinstance(value, Section):
        return _settings(value)
    return _path_placeholder(value) if is_path else value


def _path_placeholder(path: str | None) -> str | None:
    """Return what a path's content cannot show: the words base and scratch, a function's name, or that one is set."""
    if path in (None, "base", "scratch"):
        return path
    return path.rpartition(":")[2] if ".py:" in path else "…"
