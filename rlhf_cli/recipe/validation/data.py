"""Validate the datasets: each stage has its own, and each source names exactly one place with rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rlhf_cli.recipe.schema import Data, Key, Recipe, Source
from rlhf_cli.recipe.validation.keyed_issue import KeyedIssue, dependent_issues, exactly_one_issues, keyed_issue
from rlhf_cli.recipe.validation.paths import not_found_issue
from rlhf_cli.stages import STAGES

SOURCE_OWNERS = (("config", "hub"), ("revision", "hub"))  # a field, and the field that it belongs to


def missing_data_issues(recipe: Recipe, stages: Sequence[str]) -> Iterator[KeyedIssue]:
    """Yield an issue for each dataset that one of `stages` needs and the recipe lacks."""
    for stage in stages:
        spec = STAGES[stage]
        if spec.dataset is None or getattr(recipe.data, spec.dataset) is not None:
            continue
        key: Key = ("data", spec.dataset)
        hint = f"Add data.{spec.dataset}: {{path: …}}."
        if spec.generates and recipe.data.preferences is not None:
            hint += " The file of data.preferences also serves: its prompts are used."
        _, issue = keyed_issue("recipe.missing-data", key, f"missing dataset; {stage} needs it.", hint)
        # Located in the data section, or else in the section of the stage.
        yield key if "data" in recipe.model_fields_set else (spec.section,), issue


def data_issues(recipe: Recipe) -> Iterator[KeyedIssue]:
    """Yield issues of the data sources, and of settings that need a dataset."""
    for kind in Data.model_fields:
        sources = getattr(recipe.data, kind)
        if isinstance(sources, list):
            for index, source in enumerate(sources):
                yield from _source_issues(source, ("data", kind, index) if len(sources) > 1 else ("data", kind))
    for spec in STAGES.values():
        for kind, field in spec.dataset_switches.items():
            if getattr(getattr(recipe, spec.section), field) and getattr(recipe.data, kind) is None:
                hint = f"Add data.{kind}: {{path: …}}, or remove {field}."
                problem = f"needs data.{kind}, which is not set."
                yield keyed_issue("recipe.missing-data", (spec.section, field), problem, hint)


def _source_issues(source: Source, key: Key) -> Iterator[KeyedIssue]:
    yield from exactly_one_issues(source, ("path", "hub", "run"), key)
    yield from dependent_issues(source, SOURCE_OWNERS, key)
    if source.eval_split is not None and source.eval_fraction is not None:
        problem = "cannot be combined with eval_fraction."
        yield keyed_issue("recipe.conflicting-keys", (*key, "eval_split"), problem, "Keep one of them.")
    if source.path is not None and not Path(source.path).exists():
        yield not_found_issue("file", Path(source.path), (*key, "path"))
