"""The runs and models that a stage refers to, and where each of them lies: a run, a checkpoint, a folder, the hub.

Nothing is read but manifests: what a reference names is known in milliseconds, before anything is hashed or loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from rlhf_cli.errors import ModelError, RecipeError
from rlhf_cli.recipe.schema import Recipe, is_run_reference
from rlhf_cli.runs import layout
from rlhf_cli.runs.checkpoint import checkpoints
from rlhf_cli.runs.layout import Entry
from rlhf_cli.runs.manifest import read_manifest
from rlhf_cli.stages import STAGES

POLICIES = ("sft", "ppo")
MODEL_FILES = ("config.json", "adapter_config.json")  # a folder that holds a model, or an adapter, has one of them


class Reference(NamedTuple):
    """What a recipe's key refers to, and what may stand there."""

    role: str  # as the manifest has it: base, start, of, ppo.reward.0, data.sft …
    location: str  # the recipe's key
    ref: str
    stages: tuple[str, ...]  # whose runs may stand there; empty: of a model none, of rows any
    revision: str = "main"  # of a hub model

    @property
    def is_dataset(self) -> bool:
        """Whether a run is meant that wrote data."""
        return self.role.startswith("data.")


class Found(NamedTuple):
    """What stands behind a reference: the run, or the place."""

    kind: Literal["run", "folder", "hub"]
    path: str  # folder, or hub id
    entry: Entry | None = None


def references(stage: str, recipe: Recipe) -> Iterator[Reference]:
    """Each model that `stage` reads; then each run that it reads rows of."""
    if STAGES[stage].adapts_base:
        yield Reference("base", "base.model", recipe.base.model, ("pretrain",), recipe.base.revision)
    section = getattr(recipe, STAGES[stage].section)
    for field in STAGES[stage].runs:
        ref = getattr(section, field)
        if ref in (None, "base", "scratch"):
            continue
        wanted = ("reward",) if field == "reward" else ("sft", "reward") if stage == "reward" else POLICIES
        yield Reference(field, f"{stage}.{field}", ref, ("pretrain",) if stage == "pretrain" else wanted)
    if stage == "ppo":
        for index, term in enumerate(recipe.ppo.reward):
            role = f"ppo.reward.{index}"
            if term.run is not None:
                yield Reference(role, role, term.run, ("reward",))
            elif term.model is not None:
                yield Reference(role, role, term.model, (), term.revision or "main")
    for kind in rows_of(stage, recipe):
        for source in getattr(recipe.data, kind) or []:
            if source.run is not None:
                yield Reference(f"data.{kind}", f"data.{kind}", source.run, ())


def rows_of(stage: str, recipe: Recipe) -> tuple[str, ...]:
    """The data that the stage reads. PPO reads demonstrations where it mixes them in."""
    more = ("sft",) if stage == "ppo" and recipe.ppo.ptx_coef else ()
    return STAGES[stage].rows + more


def producing_stage(reference: Reference, name: str) -> str | None:
    """The stage whose newest run of this recipe, called `name`, is meant: one that a chain may have still to make."""
    if not is_run_reference(reference.ref):
        return None
    meant = layout.parse(reference.ref, name)
    return meant.stage if meant.name == name and meant.version is None else None


def find(reference: Reference, name: str, runs_dir: Path, *, smoke: bool) -> Found:
    """What `reference`, in the recipe called `name`, stands for. The hub is not asked.

    Raises:
        RecipeError: the run is absent, incomplete, a smoke run or of the wrong stage.
        ModelError: a folder that holds no model, or a manifest that is damaged.
    """
    ref, location = reference.ref, reference.location
    if reference.is_dataset or is_run_reference(ref):
        return _run(reference, layout.find(runs_dir, ref, name, smoke=smoke, location=location))
    if not os.path.isabs(ref):
        return Found("hub", ref)
    folder = run_of_model_dir(Path(ref).resolve())  # `latest` is the version that it is now
    manifest = read_manifest(folder)
    if manifest is not None and "stage" in manifest:
        _refuse_smoke(reference, manifest["smoke"], smoke=smoke)
        return _run(reference, Entry(manifest["name"], manifest["stage"], folder.name, folder, manifest))
    if manifest is not None and is_checkpoint(folder):
        return _checkpoint(reference, folder, smoke=smoke)
    if not any((folder / file).is_file() for file in MODEL_FILES):
        _refuse_folder(reference, folder)
    return Found("folder", ref)


def run_of_model_dir(folder: Path) -> Path:
    """The run or checkpoint whose `model/` is `folder`; `folder` itself where it is not called so."""
    above = folder.parent
    is_theirs = folder.name == "model" and (is_checkpoint(above) or layout.VERSION.fullmatch(above.name))
    return above if is_theirs else folder


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` lies where a run has its checkpoints."""
    return folder.parent.name == "checkpoints" and folder.name.startswith("step-")


def check_stage(reference: Reference, stage: str) -> None:
    """Raise RecipeError where a run of `stage` may not stand."""
    if reference.stages and stage not in reference.stages:
        message = f"{reference.ref} is a {stage} run, expected {' or '.join(reference.stages)}."
        raise RecipeError(message, location=reference.location, hint="Name another run.")


def _run(reference: Reference, entry: Entry) -> Found:
    check_stage(reference, entry.stage)
    return Found("run", str(entry.path), entry)


def _checkpoint(reference: Reference, folder: Path, *, smoke: bool) -> Found:
    """Of a checkpoint the model is meant; its run must be one that may stand there."""
    run = folder.parents[1]
    manifest = read_manifest(run)
    check_stage(reference, run.parent.name)
    _refuse_smoke(reference, bool(manifest and manifest["smoke"]), smoke=smoke)
    return Found("folder", str(folder / "model"))


def _refuse_smoke(reference: Reference, found: bool, *, smoke: bool) -> None:
    if found and not smoke:
        message = f"{reference.ref} is a smoke run, of random weights."
        raise RecipeError(message, location=reference.location, hint="Name a real run.")


def _refuse_folder(reference: Reference, folder: Path) -> None:
    """Say what a folder without a model is instead."""
    if layout.VERSION.fullmatch(folder.name) and folder.parent.name in STAGES:
        saved = checkpoints(folder / "checkpoints")
        hint = f"Name another run, or its checkpoint {saved[-1]}." if saved else "Name another run."
        raise RecipeError(f"the run {reference.ref} is incomplete.", location=reference.location, hint=hint)
    if folder.name in STAGES and any(layout.VERSION.fullmatch(path.name) for path in folder.iterdir()):
        hint = f"Write {folder / 'latest'}, or the folder of another version."
        raise RecipeError(f"{reference.ref} holds runs, each in a folder.", location=reference.location, hint=hint)
    message = f"{reference.ref} holds no model: there is neither {' nor '.join(MODEL_FILES)}."
    raise ModelError(message, location=reference.location, hint="Name a transformers model, an adapter, or a run.")
