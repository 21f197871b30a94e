"""Find the runs and models that a stage refers to: a run, a checkpoint, a folder, or a Hub model.

Only manifests are read, so a bad reference is reported in milliseconds, before anything is hashed or loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from rlhf_cli.errors import ErrorCollector, ModelError, RecipeError
from rlhf_cli.models import adapter_config, hub
from rlhf_cli.models.architectures import check_architecture
from rlhf_cli.recipe.schema import PathKind, Recipe, Revise, RewardSource, Section, is_run_reference
from rlhf_cli.runs import layout
from rlhf_cli.runs.checkpoint import checkpoints
from rlhf_cli.runs.layout import RunEntry
from rlhf_cli.runs.manifest import read_manifest
from rlhf_cli.stages import BASE_STAGES, POLICY_STAGES, REWARD_STAGES, STAGES, DatasetKind, StageSpec, command_of

NOT_A_RUN = (None, "base", "scratch")  # values of a run field that refer to no run
JUDGE_ROLE = "judge"
MODEL_FILES = ("config.json", "adapter_config.json")  # a folder that holds a model or an adapter has one of them

Key = tuple[str | int, ...]  # of a value in the recipe, such as ("ppo", "reward", 0, "run")


@dataclass(frozen=True)
class Reference:
    """A recipe value that names a run or a model.

    Attributes:
        role: The input's name in the manifest: base, start, of.0, candidate, ppo.reward.0, data.sft, …
        key: Where the value stands in the recipe.
        ref: The value.
        stages: Stages whose runs it accepts; empty: no run for a model, any run for a dataset.
        revision: Revision of a Hub model.
        revision_key: Where that revision stands in the recipe.
    """

    role: str
    key: Key
    ref: str
    stages: tuple[str, ...]
    revision: str = "main"
    revision_key: Key = ()

    @property
    def location(self) -> str:
        """The recipe key that error messages name."""
        if self.is_dataset:
            return self.role
        # A reward source is named as a whole: ppo.reward.0, not ppo.reward.0.run.
        key = self.key[:-1] if isinstance(self.key[-2], int) else self.key
        return ".".join(map(str, key))

    @property
    def is_dataset(self) -> bool:
        """Whether it names a run that wrote rows."""
        return self.role.startswith("data.")


class ResolvedReference(NamedTuple):
    """A reference and the run, folder or Hub model that it names."""

    reference: Reference
    kind: Literal["run", "folder", "hub"]
    path: str  # folder, or Hub id
    entry: RunEntry | None = None


def find_references(stage: str, recipe: Recipe) -> Iterator[Reference]:
    """Yield each model that `stage` reads, then each run that it reads rows from."""
    spec = STAGES[stage]
    revision = recipe.base.revision
    if spec.adapts_base:
        yield base_reference(recipe)
    section: Section = getattr(recipe, spec.section)
    for key, ref, stages in _run_fields(section, spec):
        role = ".".join(map(str, key))
        yield Reference(role, (spec.section, *key), ref, stages, revision, ("base", "revision"))
    yield from _reward_references(section, spec.section)
    if uses_judge(section):
        yield from judge_references(recipe)
    for kind in datasets_of(stage, recipe):
        for index, source in enumerate(getattr(recipe.data, kind) or []):
            if source.run is not None:
                yield Reference(f"data.{kind}", ("data", kind, index, "run"), source.run, ())


def _run_fields(section: Section, spec: StageSpec) -> Iterator[tuple[Key, str, tuple[str, ...]]]:
    """Yield each value that names a run, with its key in the section and the stages whose runs its field accepts."""
    for field, stages in spec.accepts.items():
        value = getattr(section, field)
        keys: list[Key] = [(field, index) for index in range(len(value))] if isinstance(value, list) else [(field,)]
        for key, ref in zip(keys, value if isinstance(value, list) else [value], strict=True):
            if ref not in NOT_A_RUN:
                yield key, ref, stages


def reward_sources(section: Section, key: Key = ()) -> Iterator[tuple[Key, RewardSource]]:
    """Yield the reward sources of a section, each with its key below `key`."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, RewardSource):
                    yield (*key, name, index), item


def base_reference(recipe: Recipe) -> Reference:
    """Return the base model."""
    return Reference(
        "base", ("base", "model"), recipe.base.model, BASE_STAGES, recipe.base.revision, ("base", "revision")
    )


def _reward_references(section: Section, name: str) -> Iterator[Reference]:
    """Yield the runs and models among the reward sources of the section `name`."""
    for key, source in reward_sources(section, (name,)):
        role = ".".join(map(str, key))
        if source.run is not None:
            yield Reference(role, (*key, "run"), source.run, REWARD_STAGES)
        elif source.model is not None:
            model_revision = source.revision or "main"
            yield Reference(role, (*key, "model"), source.model, (), model_revision, (*key, "revision"))


def uses_judge(section: Section) -> bool:
    """Return whether a stage with this section asks the judge in feedback.judge."""
    return bool(getattr(section, "judge", None)) or any(source.judge for _, source in reward_sources(section))


def judge_references(recipe: Recipe) -> Iterator[Reference]:
    """Yield the model of the judge, unless it is the base model or behind an endpoint."""
    judge = recipe.feedback.judge
    if judge is not None and judge.model not in NOT_A_RUN:
        assert judge.model is not None
        key: Key = ("feedback", "judge")
        revision = judge.revision or "main"
        yield Reference(JUDGE_ROLE, (*key, "model"), judge.model, POLICY_STAGES, revision, (*key, "revision"))


def constitution_of(section: Section, recipe: Recipe) -> str | None:
    """Return the path of the constitution that a stage with this section reads, or None if it reads none."""
    judge = recipe.feedback.judge
    if isinstance(section, Revise) and section.constitution is not None:
        return section.constitution
    if judge is None or not (isinstance(section, Revise) or uses_judge(section)):
        return None
    return judge.constitution


def user_functions(section: Section, key: Key = ()) -> Iterator[tuple[Key, str]]:
    """Yield each `file.py:function` of a section, with its key below `key`. A reward source is named as a whole."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        is_function = any(isinstance(item, PathKind) and item.kind == "function" for item in field.metadata)
        if is_function and isinstance(value, list):
            yield from (((*key, name, index), spec) for index, spec in enumerate(value))
    for source_key, source in reward_sources(section, key):
        if source.python is not None:
            yield source_key, source.python


def datasets_of(stage: str, recipe: Recipe) -> tuple[DatasetKind, ...]:
    """Return the datasets that `stage` reads with this recipe."""
    spec: StageSpec = STAGES[stage]
    section = getattr(recipe, spec.section)
    switched = [kind for kind, field in spec.dataset_switches.items() if getattr(section, field)]
    required = () if spec.dataset is None else (spec.dataset,)
    return (*required, *spec.datasets, *switched)


def producing_stage(reference: Reference, name: str) -> str | None:
    """Return the stage whose newest run in the recipe `name` is meant, or None for a specific run, folder or model.

    A chain may still have to run that stage.
    """
    if not is_run_reference(reference.ref):
        return None
    named = layout.parse(reference.ref, name)
    return named.stage if named.name == name and named.version is None else None


def resolve_reference(reference: Reference, name: str, runs_dir: Path, *, smoke: bool) -> ResolvedReference:
    """Return what `reference`, in the recipe `name`, refers to. Does not contact the Hub.

    Raises:
        RecipeError: The run does not exist, is incomplete, is a smoke run or is of another stage.
        ModelError: The folder holds no model, the base's architecture is not supported, or a manifest is damaged.
    """
    ref, location = reference.ref, reference.location
    if reference.is_dataset or is_run_reference(ref):
        return _resolve_run(reference, _find_run(runs_dir, reference, name, smoke=smoke))
    if not Path(ref).is_absolute():
        cached = hub.cached_file(ref, "config.json", reference.revision)
        if cached is not None and reference.role == "base":
            check_architecture(cached.parent, location=location)
        return ResolvedReference(reference, "hub", ref)
    folder = run_of_model_dir(Path(ref).resolve())  # resolves `latest`, so that the version is recorded
    manifest = read_manifest(folder)
    if manifest is not None and "stage" in manifest:
        _refuse_smoke_run(reference, manifest["smoke"], smoke=smoke)
        return _resolve_run(reference, RunEntry(manifest["name"], manifest["stage"], folder.name, folder, manifest))
    if manifest is not None and is_checkpoint(folder):
        return _resolve_checkpoint(reference, folder, smoke=smoke)
    if not any((folder / file).is_file() for file in MODEL_FILES):
        raise _no_model_error(reference, folder)
    if reference.role == "base":
        check_architecture(folder, location=location)
    return ResolvedReference(reference, "folder", ref)


def _find_run(runs_dir: Path, reference: Reference, name: str, *, smoke: bool) -> RunEntry:
    location = reference.location
    return layout.find(runs_dir, reference.ref, name, smoke=smoke, location=location, command_of=command_of)


def run_of_model_dir(folder: Path) -> Path:
    """Return the run or checkpoint whose `model/` is `folder`, or `folder` itself if it is not one."""
    parent = folder.parent
    is_model_dir = folder.name == "model" and (is_checkpoint(parent) or layout.VERSION.fullmatch(parent.name))
    return parent if is_model_dir else folder


def entry_of_model(folder: Path) -> layout.RunEntry:
    """Return the run that wrote the model in `folder`, itself or as a checkpoint. It has no manifest if there is none.

    Args:
        folder: The folder of the model; `latest` in its path is followed, so that the entry names a version.
    """
    found = run_of_model_dir(folder.resolve())
    return layout.read_entry(found.parents[1] if is_checkpoint(found) else found)


def is_checkpoint(folder: Path) -> bool:
    """Return whether `folder` has the path of a run's checkpoint."""
    return folder.parent.name == "checkpoints" and folder.name.startswith("step-")


def check_stage(reference: Reference, stage: str) -> None:
    """Raise RecipeError if `reference` does not accept a run of `stage`."""
    if reference.stages and stage not in reference.stages:
        expected = " or ".join(reference.stages)
        message = f"wrong kind of run; found {reference.ref}, a run of {stage}, expected a run of {expected}."
        raise RecipeError("recipe.wrong-stage", message, location=reference.location, hint="Use another run.")


def _resolve_run(reference: Reference, entry: RunEntry) -> ResolvedReference:
    check_stage(reference, entry.stage)
    return ResolvedReference(reference, "run", str(entry.path), entry)


def _resolve_checkpoint(reference: Reference, folder: Path, *, smoke: bool) -> ResolvedReference:
    """Return the checkpoint's model folder. Its run must be one that the reference accepts."""
    run = folder.parents[1]
    manifest = read_manifest(run)
    check_stage(reference, run.parent.name)
    _refuse_smoke_run(reference, bool(manifest and manifest["smoke"]), smoke=smoke)
    return ResolvedReference(reference, "folder", str(folder / "model"))


def check_adapters(stage: str, recipe: Recipe, found: Sequence[ResolvedReference]) -> None:
    """Check that the models that a stage starts from are adapters with the recipe's settings, or whole models.

    Only adapter_config.json is read; tensors are compared when they are loaded.

    Raises:
        ModelError: With the issues of every model.
    """
    errors = ErrorCollector()
    for one in found:
        reference = one.reference
        is_trained = STAGES[stage].adapts_base and reference.stages and not reference.is_dataset
        # The judge is loaded beside the base model if it is not an adapter on it.
        if not is_trained or reference.role in ("base", JUDGE_ROLE) or one.kind == "hub":
            continue
        folder = Path(one.path) if one.entry is None else one.entry.path / "model"
        with errors.collect():
            if any((folder / file).is_file() for file in MODEL_FILES):
                adapter_config.check_kind(folder, recipe.adapter)
            if recipe.adapter is not None and adapter_config.is_adapter(folder):
                adapter_config.check_settings(folder, recipe.adapter)
    errors.raise_all()


def _refuse_smoke_run(reference: Reference, is_smoke: bool, *, smoke: bool) -> None:
    if is_smoke and not smoke:
        message = f"{reference.ref} is a smoke run with random weights; expected a real run."
        raise RecipeError("recipe.smoke-run", message, location=reference.location, hint="Use a real run.")


def _no_model_error(reference: Reference, folder: Path) -> RecipeError | ModelError:
    """Return an error that says what a folder without a model holds instead."""
    if layout.VERSION.fullmatch(folder.name) and folder.parent.name in STAGES:
        saved = checkpoints(folder / "checkpoints")
        hint = f"Use another run, or its checkpoint {saved[-1]}." if saved else "Use another run."
        message = f"the run {reference.ref} is incomplete."
        return RecipeError("recipe.incomplete-run", message, location=reference.location, hint=hint)
    if folder.name in STAGES and any(layout.VERSION.fullmatch(path.name) for path in folder.iterdir()):
        hint = f"Use {folder / 'latest'}, or the directory of another version."
        message = f"{reference.ref} contains several runs; expected the directory of one run."
        return RecipeError("recipe.ambiguous-run", message, location=reference.location, hint=hint)
    message = f"no model in {reference.ref}; expected {' or '.join(MODEL_FILES)}."
    hint = "Use a transformers model, an adapter, or a run."
    return ModelError("model.not-found", message, location=reference.location, hint=hint)
