"""Shrink a recipe for `--smoke`. Every setting that is not a size stays unchanged."""

from __future__ import annotations

from rlhf_cli.recipe.schema import Data, PathKind, Recipe, Section, is_run_reference
from rlhf_cli.run_reference import parse_run_reference
from rlhf_cli.stages import STAGES

SMOKE_ROWS = 16  # of each dataset
SMOKE_CANDIDATES = 1024  # rows read of each source, of which the shortest are used: long ones may not fit


def shrink(recipe: Recipe) -> Recipe:
    """Return the recipe with two steps or iterations, small batches and short sequences.

    References to runs are replaced by the recipe's own smoke runs: a version, or a run of another recipe, becomes the
    stage of this recipe. The base model is shrunk when it is loaded, the rows when they are read.
    """
    small = recipe.smoke()
    for stage, spec in STAGES.items():
        section: Section = getattr(small, spec.section)
        references = {field: _own_references(stage, section, field, recipe) for field in spec.accepts}
        small = small.replace(**{spec.section: section.replace(**references)})
    return small.replace(data=_with_own_datasets(small.data))


def _with_own_datasets(data: Data) -> Data:
    """Return the datasets with each run that wrote rows replaced by the recipe's own smoke run of that stage."""
    changed = {}
    for kind in Data.model_fields:
        given = getattr(data, kind)
        if isinstance(given, list):
            changed[kind] = [source.replace(run=_stage_of(source.run)) for source in given]
    return data.replace(**changed)


def _stage_of(reference: str | None) -> str | None:
    parsed = parse_run_reference(reference) if reference and is_run_reference(reference) else None
    return parsed.stage if parsed else reference


def _own_references(stage: str, section: Section, field: str, recipe: Recipe) -> str | list[str] | None:
    """Return the references that replace a field's value, a list or a single one, in a smoke run."""
    value: str | list[str] | None = getattr(section, field)
    kind = next(item for item in type(section).model_fields[field].metadata if isinstance(item, PathKind))
    if isinstance(value, list):
        return [_own_reference(stage, field, text, kind, recipe) for text in value]
    return None if value is None else _own_reference(stage, field, value, kind, recipe)


def _own_reference(stage: str, field: str, text: str, kind: PathKind, recipe: Recipe) -> str:
    """Return the reference that replaces one of a field's values in a smoke run.

    A stage that starts from its own run, or from that of a later stage, would wait for itself; and the adapter in a
    folder does not fit the shrunk base model. Both are replaced by the field's special word, or else by the last stage
    of this recipe whose runs the field accepts.
    """
    reference = parse_run_reference(text) if is_run_reference(text) else None
    if reference is not None and _comes_before(reference.stage, stage):
        return reference.stage
    is_adapter_folder = text.startswith("/") and kind.kind == "run"
    if reference is None and not is_adapter_folder:
        return text
    if kind.words:
        return kind.words[0]
    accepted = STAGES[stage].accepts[field]
    in_recipe = [name for name in accepted if STAGES[name].section in recipe.model_fields_set]
    return in_recipe[-1] if in_recipe else accepted[0]


def _comes_before(stage: str, other: str) -> bool:
    names = list(STAGES)
    return names.index(stage) < names.index(other)
