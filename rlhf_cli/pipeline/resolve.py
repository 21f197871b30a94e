"""Resolve a stage once: its references, the hashes of its inputs, and the recipe with all versions pinned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rlhf_cli.errors import ErrorCollector
from rlhf_cli.feedback.store_input import read_store
from rlhf_cli.feedback.types import Snapshot
from rlhf_cli.pipeline.fingerprint import fingerprint, settings_of
from rlhf_cli.pipeline.inputs import Input, hash_inputs
from rlhf_cli.pipeline.references import Key, ResolvedReference, find_references, resolve_reference
from rlhf_cli.recipe.schema import Recipe, Section
from rlhf_cli.recipe.smoke import SMOKE_ROWS
from rlhf_cli.stages import STAGES, StageSpec

S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class ResolvedStage:
    """A stage with everything that it reads pinned. Runner, dry run, preflight and cards take this value.

    Attributes:
        name: The stage.
        spec: Its row in the stage table.
        recipe: The recipe with every run and Hub revision that the stage reads pinned to a version.
        inputs: What the stage reads, with content hashes.
        settings: The recipe values that decide the result.
        fingerprint: Hash of settings, inputs and seed.
        base_path: Folder or Hub id of the base model; "scratch" if the stage creates it.
        runs_dir: The runs directory.
        smoke: Whether this is a smoke run.
        snapshot: The judgments in the feedback store, for a stage that reads them; None if it reads none, or if there
            is no store.
    """

    name: str
    spec: StageSpec
    recipe: Recipe
    inputs: tuple[Input, ...]
    settings: Mapping[str, Any]
    fingerprint: str
    base_path: str
    runs_dir: Path
    smoke: bool
    snapshot: Snapshot | None = None

    @property
    def section(self) -> Any:
        """The stage's section of the recipe."""
        return getattr(self.recipe, self.spec.section)

    @property
    def max_length(self) -> int:
        """The limit on a row's tokens."""
        length: int = getattr(self.section, self.spec.max_length_key)
        return length

    @property
    def row_limit(self) -> int | None:
        """How many rows of each dataset are read, or None for all."""
        return SMOKE_ROWS if self.smoke else None

    @property
    def sharded(self) -> bool:
        """Whether the base model is sharded over processes with FSDP."""
        return self.recipe.launch.strategy == "fsdp"

    def model_path(self, role: str) -> Path | None:
        """Return the folder of the model that plays `role`, or None if the recipe names the bare base model."""
        found = next((item for item in self.inputs if item.role == role), None)
        return None if found is None else Path(found.model_path)

    def dataset_path(self, ref: str) -> Path:
        """Return the folder of the run that a data source of the pinned recipe names."""
        runs = {item.versioned_ref: item.path for item in self.inputs if item.kind == "run"}
        return Path(runs[ref])


def find_all(stage: str, recipe: Recipe, runs_dir: Path, *, smoke: bool) -> list[ResolvedReference]:
    """Resolve every reference of `stage`, reading only manifests.

    Raises:
        RecipeError: With one issue for each run that does not exist, is incomplete or is of the wrong stage.
        ModelError: A folder holds no model, or a manifest is damaged.
    """
    found, errors = [], ErrorCollector()
    for reference in find_references(stage, recipe):
        with errors.collect():
            found.append(resolve_reference(reference, recipe.name, runs_dir, smoke=smoke))
    errors.raise_all()
    return found


def resolve(
    stage: str, recipe: Recipe, runs_dir: Path, *, smoke: bool, found: Sequence[ResolvedReference] | None = None
) -> ResolvedStage:
    """Resolve the references of `stage`, hash its inputs and pin the recipe to their versions.

    A run that completes meanwhile, or a branch that moves, then changes nothing: what is loaded is what is recorded.

    Args:
        stage: Name of the stage.
        recipe: The validated recipe; already shrunk for a smoke run.
        runs_dir: The runs directory.
        smoke: Whether smoke runs are read and written.
        found: The result of `find_all`, if the caller has it.

    Raises:
        RecipeError: As `find_all`.
        ModelError: A run was trained on another base model, or the Hub cannot be reached.
    """
    spec = STAGES[stage]
    found = find_all(stage, recipe, runs_dir, smoke=smoke) if found is None else found
    keyed_inputs = hash_inputs(stage, recipe, found, runs_dir, smoke=smoke)
    reads_store = spec.reads_store or getattr(getattr(recipe, spec.section), "blind", False)
    content = read_store(recipe) if reads_store else None
    if content is not None:
        keyed_inputs.append(((), Input("store", content.location, "store", content.location, None, content.digest)))
    inputs = tuple(item for _, item in keyed_inputs)
    settings = settings_of(stage, recipe)
    base_role = "base" if spec.adapts_base else spec.base_key.rpartition(".")[2]
    base = next((item for item in inputs if item.role == base_role), None)
    return ResolvedStage(
        name=stage,
        spec=spec,
        recipe=_pin(recipe, found, keyed_inputs),
        inputs=inputs,
        settings=settings,
        fingerprint=fingerprint(settings, inputs, recipe, smoke=smoke),
        base_path="scratch" if base is None else base.model_path,
        runs_dir=runs_dir,
        smoke=smoke,
        snapshot=None if content is None else content.snapshot,
    )


def _pin(recipe: Recipe, found: Sequence[ResolvedReference], keyed_inputs: Sequence[tuple[Key, Input]]) -> Recipe:
    """Return the recipe with the version of every run and the commit of every Hub repository written out."""
    revision_keys = {one.reference.key: one.reference.revision_key for one in found}
    pins: dict[Key, Any] = {}
    for key, item in keyed_inputs:
        is_source = key[:1] == ("data",)
        if item.kind == "hub":
            pins[(*key, "revision") if is_source else revision_keys[key]] = item.version
        elif item.kind == "run" and key and not Path(item.ref).is_absolute():
            pins[(*key, "run") if is_source else key] = item.versioned_ref
    return _with_values(recipe, pins)


def _with_values(section: S, values: Mapping[Key, Any]) -> S:
    """Return `section` with the values at the given keys replaced. Which fields the user set stays recorded."""
    changed = {}
    for name in {str(key[0]) for key in values}:
        below = {key[1:]: value for key, value in values.items() if key[0] == name}
        changed[name] = _replaced(getattr(section, name), below)
    copy = section.model_copy(update=changed)
    copy.__pydantic_fields_set__ = set(section.model_fields_set)
    return copy


def _replaced(value: Any, values: Mapping[Key, Any]) -> Any:
    if () in values:
        return values[()]
    if isinstance(value, Section):
        return _with_values(value, values)
    items = list(value)
    for index in {int(key[0]) for key in values}:
        items[index] = _replaced(items[index], {key[1:]: v for key, v in values.items() if key[0] == index})
    return items
