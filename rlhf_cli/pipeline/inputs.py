"""What a stage reads, each with its content hash: known before torch, for lineage and for 'is this up to date?'."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rlhf_cli.errors import Issue, ModelError, RecipeError
from rlhf_cli.models import hub
from rlhf_cli.pipeline.local_imports import find_local_imports
from rlhf_cli.pipeline.references import Found, Reference, find, is_checkpoint, references, rows_of
from rlhf_cli.recipe.schema import PathKind, Recipe, RewardSource, Section, Source
from rlhf_cli.runs import layout
from rlhf_cli.runs.layout import Entry
from rlhf_cli.runs.manifest import FILE, damage, digest, read_manifest, sha256
from rlhf_cli.stages import STAGES

# Of a reward source: how it is reached changes nothing of what it says; a revision counts as the commit that it names.
ASIDE = ("revision", "timeout", "batch_size", "retries")


class Input(NamedTuple):
    """One thing that a stage reads. `sha256` is a hub commit for hub inputs, None where it cannot be told offline."""

    role: str  # base, start, candidate, baseline, reward, data.sft, ppo.reward.0 …
    ref: str  # as the recipe has it
    kind: Literal["run", "file", "folder", "hub"]
    path: str
    version: str | None
    sha256: str | None


def collect_inputs(stage: str, recipe: Recipe, runs_dir: Path, *, smoke: bool) -> list[Input]:
    """Resolve every input of `stage`.

    Raises:
        RecipeError: with one issue for every run that is absent, incomplete or of the wrong kind.
        ModelError: where a run stands on another base than the recipe's.
    """
    found: list[Input] = []
    runs_of_rows: list[Entry] = []
    issues: list[Issue] = []
    for reference in references(stage, recipe):
        try:
            one = find(reference, recipe.name, runs_dir, smoke=smoke)
            if reference.is_dataset:
                assert one.entry is not None
                runs_of_rows.append(one.entry)
            else:
                found.append(model_input(reference, one))
        except RecipeError as error:
            issues += error.issues
    if issues:
        raise RecipeError(issues)
    waiting = iter(runs_of_rows)
    for kind in rows_of(stage, recipe):
        for source in getattr(recipe.data, kind) or []:
            found.append(_source(f"data.{kind}", source, next(waiting) if source.run else None))
    for role, spec in _functions(stage, recipe):
        found += _code(role, spec)
    if stage == "export":
        found += _evaluation(found, recipe.name, runs_dir, smoke)
    if STAGES[stage].adapts_base:
        if recipe.base.chat_template != "auto":
            found.append(_file("base.chat_template", recipe.base.chat_template))
        check_base(stage, found)
    return found


def verify_inputs(inputs: list[Input]) -> None:
    """Hold the models of the runs and checkpoints among `inputs` against their manifests, every byte of them.

    Raises:
        ModelError: with one issue for each file that is missing, cut short or changed.
    """
    issues = []
    for path in dict.fromkeys(Path(item.path) for item in inputs if item.kind == "run"):
        manifest = read_manifest(path)
        if manifest is not None:
            hint = f"Run `rlhf {manifest['stage']}` again, or restore the file."
            issues += [Issue(f.message, f.location, hint) for f in damage(path / "model", manifest, _file_hash)]
    for path in dict.fromkeys(Path(item.path).parent for item in inputs if item.kind == "folder"):
        manifest = read_manifest(path) if is_checkpoint(path) else None
        if manifest is not None:
            hint = "Name another checkpoint, or restore the file."
            issues += [Issue(f.message, f.location, hint) for f in damage(path, manifest, _file_hash)]
    if issues:
        raise ModelError(issues)


def pin_versions(stage: str, recipe: Recipe, inputs: list[Input]) -> Recipe:
    """The recipe with every run and hub revision that `stage` reads made explicit, as they are among `inputs`.

    A run that completes meanwhile, or a branch that moves, changes nothing then: what is loaded is what is recorded.
    """
    by_role = {item.role: item for item in inputs}
    changed: dict[str, Any] = {}
    row = STAGES[stage]
    section = getattr(recipe, row.section)
    fields: dict[str, Any] = {name: _versioned_ref(by_role.get(name), getattr(section, name)) for name in row.runs}
    if stage == "ppo":
        terms: list[RewardSource] = recipe.ppo.reward
        fields["reward"] = [_pinned_term(term, by_role.get(f"ppo.reward.{i}")) for i, term in enumerate(terms)]
    changed[row.section] = section.model_copy(update=fields)
    base = by_role.get("start" if stage == "pretrain" else "base")  # pretrain reads its start as its base
    if base is not None and base.kind == "hub":
        changed["base"] = recipe.base.model_copy(update={"revision": base.version})
    data: dict[str, Any] = {}
    for kind in rows_of(stage, recipe):
        found = [item for item in inputs if item.role == f"data.{kind}"]
        sources: list[Source] = getattr(recipe.data, kind) or []
        data[kind] = [_pinned_source(source, item) for source, item in zip(sources, found, strict=True)] or None
    changed["data"] = recipe.data.model_copy(update=data)
    made = recipe.model_copy(update=changed)
    made.__pydantic_fields_set__ = set(recipe.model_fields_set)
    return made


def _versioned_ref(item: Input | None, ref: str | None) -> str | None:
    if item is None or item.kind != "run" or os.path.isabs(item.ref):
        return ref
    return "{}/{}@{}".format(*Path(item.path).parts[-3:])


def _pinned_term(term: RewardSource, item: Input | None) -> RewardSource:
    if item is not None and item.kind == "hub":
        return term.model_copy(update={"revision": item.version})
    return term.model_copy(update={"run": _versioned_ref(item, term.run)})


def _pinned_source(source: Source, item: Input) -> Source:
    if item.kind == "hub":
        return source.model_copy(update={"revision": item.version})
    return source.model_copy(update={"run": _versioned_ref(item, source.run)})


def fingerprint(stage: str, recipe: Recipe, inputs: list[Input], *, smoke: bool) -> str:
    """Equal exactly where running `stage` again would do the same: its settings, its inputs' contents, the seed."""
    contents = [[item.role, item.sha256 or item.ref] for item in inputs]
    settings = settings_of(stage, recipe)
    return digest({"settings": settings, "inputs": contents, "seed": recipe.seed, "smoke": smoke})


def settings_of(stage: str, recipe: Recipe) -> dict[str, Any]:
    """The recipe's values that decide what `stage` makes, inputs aside."""
    row = STAGES[stage]
    settings: dict[str, Any] = {row.section: _settings(getattr(recipe, row.section))}
    settings[row.section].pop("save_every", None)  # how often a checkpoint is made changes nothing of what is made
    if stage == "pretrain" and recipe.pretrain.start != "scratch":
        settings["base"] = [recipe.base.dtype, recipe.base.attention]
    if row.adapts_base:
        settings["base"] = {name: v for name, v in _settings(recipe.base).items() if name not in ("model", "revision")}
        settings["adapter"] = recipe.adapter.model_dump(mode="json") if recipe.adapter else None
    if stage == "eval":
        settings["max_new_tokens"] = recipe.eval.max_new_tokens or recipe.ppo.max_new_tokens
        settings["max_length"] = [recipe.sft.max_length, recipe.reward.max_length, recipe.ppo.max_prompt_length]
    for kind in rows_of(stage, recipe):
        sources: list[Source] = getattr(recipe.data, kind) or []
        settings[f"data.{kind}"] = [_settings(source) for source in sources]
    return settings


def _settings(section: Section) -> dict[str, Any]:
    """A section's values without the folders of its files, whose contents count among the inputs."""
    settings: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        if isinstance(section, RewardSource) and name in ASIDE:
            continue
        value = getattr(section, name)
        is_place = any(isinstance(item, PathKind) for item in field.metadata)
        values = [
            _settings(item) if isinstance(item, Section) else _word(item) if is_place else item
            for item in (value if isinstance(value, list) else [value])
        ]
        settings[name] = values if isinstance(value, list) else values[0]
    return settings


def _word(place: str | None) -> str | None:
    """Of a place, what its content does not tell: the words base and scratch, a function's name, that there is one."""
    if place in (None, "base", "scratch"):
        return place
    return place.rpartition(":")[2] if ".py:" in place else "…"


def referenced_models(stage: str, recipe: Recipe) -> list[str]:
    """The runs and models that `stage` refers to, as the recipe has them."""
    return [reference.ref for reference in references(stage, recipe)]


def _functions(stage: str, recipe: Recipe) -> Iterator[tuple[str, str]]:
    if stage == "ppo":
        terms: list[RewardSource] = recipe.ppo.reward
        yield from ((f"ppo.reward.{i}", term.python) for i, term in enumerate(terms) if term.python is not None)
    if stage == "eval":
        yield from ((f"eval.python.{i}", spec) for i, spec in enumerate(recipe.eval.python))


def _code(role: str, spec: str) -> Iterator[Input]:
    """A function's file, and those that it imports from its folder."""
    path = Path(spec.rpartition(":")[0])
    yield _file(role, str(path))._replace(ref=spec)
    for other in find_local_imports(path):
        yield _file(f"{role}/{other.relative_to(path.parent).as_posix()}", str(other))


def _file(role: str, path: str) -> Input:
    return Input(role, path, "file", path, None, sha256(Path(path)))


def model_input(reference: Reference, found: Found) -> Input:
    """What was found, with its hash; of a hub model the commit.

    Raises:
        ModelError: the hub has no such model, or cannot be reached.
    """
    role, ref = reference.role, reference.ref
    if found.entry is not None:
        return _run(role, ref, found.entry)
    if found.kind == "folder":
        return Input(role, ref, "folder", found.path, None, _folder_hash(Path(found.path)))
    commit = hub.commit_of("model", ref, reference.revision, location=reference.location)
    return Input(role, ref, "hub", ref, commit, commit)


def _run(role: str, ref: str, entry: Entry) -> Input:
    return Input(role, ref, "run", str(entry.path), entry.version, sha256(entry.path / FILE))


def _source(role: str, source: Source, entry: Entry | None) -> Input:
    """`entry`: the run that the source names, where it names one."""
    if entry is not None:
        return _run(role, str(source.run), entry)
    if source.hub is not None:
        commit = hub.commit_of("dataset", source.hub, source.revision or "main", location=role)
        return Input(role, source.hub, "hub", source.hub, commit, commit)
    assert source.path is not None
    path = Path(source.path)
    if path.is_dir():
        return Input(role, source.path, "folder", source.path, None, _folder_hash(path))
    return _file(role, source.path)


def _folder_hash(folder: Path) -> str:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and ".git" not in p.parts)
    return digest({p.relative_to(folder).as_posix(): _file_hash(p) for p in files})


def _file_hash(path: Path) -> str:
    """A file's sha256, once a process while its size and times stay: every stage of a chain reads the same base."""
    return _hash_of(path, *path.stat()[6:9])


@functools.cache
def _hash_of(path: Path, *state: float) -> str:
    return sha256(path)


def _evaluation(found: list[Input], name: str, runs_dir: Path, smoke: bool) -> list[Input]:
    """The newest evaluation of the run that is exported: its figures go into the model card."""
    exported = next(item for item in found if item.role == "of")
    for entry in reversed(layout.versions(runs_dir, name, "eval")):
        manifest = entry.manifest
        if manifest is not None and manifest["smoke"] == smoke:
            judged = next((item for item in manifest["inputs"] if item["role"] == "candidate"), None)
            if judged is not None and judged["path"] == exported.path:
                return [Input("evaluation", "eval", "run", str(entry.path), entry.version, sha256(entry.path / FILE))]
    return []


def check_base(stage: str, inputs: Sequence[Input]) -> None:
    """An adapter fits any base of its shape without a word; refuse one that was trained on another base.

    Raises:
        ModelError: with one issue for each run whose base is not this one.
    """
    base = next(item for item in inputs if item.role == "base")
    issues = []
    for item in inputs:
        manifest = read_manifest(Path(item.path)) if item.kind == "run" and item.role != "base" else None
        theirs = next((i for i in manifest["inputs"] if i["role"] == "base"), None) if manifest else None
        if manifest is not None and theirs is not None and theirs["sha256"] != base.sha256:
            message = f"{item.ref} ({item.version}) was trained on another base: {theirs['ref']}, not {base.ref}."
            hint = f"Run `rlhf {manifest['stage']}` again on this base, or name a run of this base."
            location = f"{stage}.{item.role}" if item.role in STAGES[stage].runs else item.role
            issues.append(Issue(message, location, hint))
    if issues:
        raise ModelError(issues)
