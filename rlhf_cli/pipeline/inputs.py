"""Hash what a stage reads: runs, models, data files and user code. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from rlhf_cli.errors import DataError, Issue, ModelError
from rlhf_cli.evaluation.measurements import Ceiling
from rlhf_cli.models import hub
from rlhf_cli.pipeline.references import (
    Key,
    ResolvedReference,
    constitution_of,
    datasets_of,
    is_checkpoint,
    user_functions,
    uses_judge,
)
from rlhf_cli.recipe.local_imports import find_local_imports
from rlhf_cli.recipe.schema import Recipe, Source
from rlhf_cli.runs import lineage
from rlhf_cli.runs.layout import RunEntry
from rlhf_cli.runs.manifest import MANIFEST_FILE, digest, read_manifest, result_folder, sha256, verify_files
from rlhf_cli.stages import STAGES, command_of

JUDGE_CONSTITUTION = "judge.constitution"  # role of the constitution of a stage that asks the judge


class Input(NamedTuple):
    """One thing that a stage reads, as the manifest records it."""

    role: str  # base, start, candidate, baseline, reward, data.sft, ppo.reward.0, …
    ref: str  # as written in the recipe
    kind: Literal["run", "file", "folder", "hub", "store"]
    path: str
    version: str | None  # of a run; the commit of a Hub repository
    sha256: str | None  # of the content, or the commit; None if the Hub cannot be reached

    @property
    def model_path(self) -> str:
        """Folder or Hub id of the model that it holds."""
        folder = Path(self.path) / "model"
        return str(folder) if self.kind == "run" and folder.is_dir() else self.path

    @property
    def versioned_ref(self) -> str:
        """Reference that names this run with its version: `name/stage@v0003`."""
        return "{}/{}@{}".format(*Path(self.path).parts[-3:])


def hash_inputs(
    stage: str, recipe: Recipe, found: Sequence[ResolvedReference], runs_dir: Path, *, smoke: bool
) -> list[tuple[Key, Input]]:
    """Return every input of `stage` with its content hash and its key in the recipe: models, then data, then code.

    Raises:
        ModelError: A run was trained on another base model, or the Hub cannot be reached.
    """
    inputs = [(one.reference.key, hash_model(one)) for one in found if not one.reference.is_dataset]
    dataset_runs = {one.reference.key: one.entry for one in found if one.reference.is_dataset}
    for kind in datasets_of(stage, recipe):
        for index, source in enumerate(getattr(recipe.data, kind) or []):
            key: Key = ("data", kind, index)
            inputs.append((key, _hash_source(f"data.{kind}", source, dataset_runs.get((*key, "run")))))
    spec = STAGES[stage]
    for key, function in user_functions(getattr(recipe, spec.section), (spec.section,)):
        inputs += [(key, item) for item in _hash_code(".".join(map(str, key)), function)]
    constitution = constitution_of(getattr(recipe, spec.section), recipe)
    if constitution is not None:
        role = JUDGE_CONSTITUTION if uses_judge(getattr(recipe, spec.section)) else "constitution"
        inputs.append(((), _hash_file(role, constitution)))
    if spec.exports:
        exported = next(item for _, item in inputs if item.role == "of")
        entry = lineage.newest_evaluation(runs_dir, recipe.name, Path(exported.path), smoke=smoke)
        inputs += [] if entry is None else [((), _run_input("evaluation", entry.stage, entry))]
    if spec.adapts_base:
        if recipe.base.chat_template != "auto":
            inputs.append((("base", "chat_template"), _hash_file("base.chat_template", recipe.base.chat_template)))
        check_base(stage, [item for _, item in inputs])
    return inputs


def hash_model(found: ResolvedReference) -> Input:
    """Return a model or run as an input. A Hub model is identified by its commit.

    Raises:
        ModelError: The Hub has no such model, or cannot be reached.
    """
    reference = found.reference
    if found.entry is not None:
        return _run_input(reference.role, reference.ref, found.entry)
    if found.kind == "folder":
        return Input(reference.role, reference.ref, "folder", found.path, None, _hash_folder(Path(found.path)))
    commit = hub.resolve_commit("model", reference.ref, reference.revision, location=reference.location)
    return Input(reference.role, reference.ref, "hub", reference.ref, commit, commit)


def verify_inputs(inputs: Sequence[Input]) -> None:
    """Compare every file of the runs and checkpoints among `inputs` with their manifests.

    Raises:
        ModelError: With one issue for each file that is missing, truncated or changed.
    """
    issues = []
    for path in dict.fromkeys(Path(item.path) for item in inputs if item.kind == "run"):
        manifest = read_manifest(path)
        if manifest is not None:
            hint = f"Run `{command_of(manifest['stage'])}` again, or restore the file."
            folder = result_folder(path, manifest)
            issues += [
                Issue(f.code, f.message, f.location, f.hint or hint) for f in verify_files(folder, manifest, hash_file)
            ]
    for path in dict.fromkeys(Path(item.path).parent for item in inputs if item.kind == "folder"):
        manifest = read_manifest(path) if is_checkpoint(path) else None
        if manifest is not None:
            hint = "Use another checkpoint, or restore the file."
            issues += [
                Issue(f.code, f.message, f.location, f.hint or hint) for f in verify_files(path, manifest, hash_file)
            ]
    if issues:
        raise ModelError(issues)


def find_ceiling(inputs: Sequence[Input]) -> Ceiling | None:
    """Return how often people agree with the labels of the runs with preferences among `inputs`, over all their votes.

    None if no run has labels that several people voted on.
    """
    name = "feedback.label_agreement"
    runs = dict.fromkeys(Path(item.path) for item in inputs if item.kind == "run" and item.role == "data.preferences")
    manifests = [read_manifest(run) for run in runs]
    found = [manifest["metrics"] for manifest in manifests if manifest is not None and name in manifest["metrics"]]
    votes = sum(metrics[f"{name}.n"] for metrics in found)
    if not votes:
        return None
    return Ceiling(sum(metrics[name] * metrics[f"{name}.n"] for metrics in found) / votes, int(votes))


def check_unchanged(inputs: Sequence[Input]) -> None:
    """Check that the files and folders that a stage has read are those that were hashed when it was resolved.

    Raises:
        DataError: With one issue for each that changed in between.
    """
    issues = []
    for item in inputs:
        if item.kind in ("file", "folder"):
            path = Path(item.path)
            try:
                current = _hash_folder(path) if item.kind == "folder" else hash_file(path)
            except OSError:
                current = ""
            if current != item.sha256:
                message = f"{item.ref} changed while it was being read."
                hint = "Run the stage again, and do not edit its inputs until it trains."
                issues.append(Issue("data.changed", message, item.role, hint))
    if issues:
        raise DataError(issues)


def check_base(stage: str, inputs: Sequence[Input]) -> None:
    """Refuse runs that were trained on another base model. PEFT loads any adapter of matching shape without an error.

    Raises:
        ModelError: With one issue for each such run.
    """
    base = next(item for item in inputs if item.role == "base")
    issues = []
    for item in inputs:
        manifest = read_manifest(Path(item.path)) if item.kind == "run" and item.role != "base" else None
        theirs = next((i for i in manifest["inputs"] if i["role"] == "base"), None) if manifest else None
        if manifest is not None and theirs is not None and theirs["sha256"] != base.sha256:
            message = (
                f"{item.ref} ({item.version}): trained on another base model; "
                f"found {theirs['ref']}, expected {base.ref}."
            )
            hint = f"Run `{command_of(manifest['stage'])}` again on this base model, or use a run on this base model."
            is_field = item.role.partition(".")[0] in STAGES[stage].accepts
            location = f"{stage}.{item.role}" if is_field else item.role
            issues.append(Issue("model.adapter-of-other-base", message, location, hint))
    if issues:
        raise ModelError(issues)


def hash_file(path: Path) -> str:
    """Return a file's SHA-256, cached while its size and times stay the same: every stage of a chain reads the base."""
    status = path.stat()
    key = (str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if key not in _hashes:
        _hashes[key] = sha256(path)
    return _hashes[key]


_hashes: dict[tuple[str, int, int, int], str] = {}


def _hash_folder(folder: Path) -> str:
    """Return one hash of the files below `folder`; links are followed, and Git's own files left out."""
    files = sorted(
        Path(root, name)
        for root, _, names in os.walk(folder, followlinks=True)
        if ".git" not in Path(root).relative_to(folder).parts
        for name in names
        if Path(root, name).is_file()
    )
    return digest({p.relative_to(folder).as_posix(): hash_file(p) for p in files})


def _hash_file(role: str, path: str) -> Input:
    return Input(role, path, "file", path, None, hash_file(Path(path)))


def _hash_code(role: str, spec: str) -> Iterator[Input]:
    """Yield the file of a `file.py:function` and the files that it imports from its folder."""
    path = Path(spec.rpartition(":")[0])
    yield _hash_file(role, str(path))._replace(ref=spec)
    for imported in find_local_imports(path):
        yield _hash_file(f"{role}/{imported.relative_to(path.parent).as_posix()}", str(imported))


def _hash_source(role: str, source: Source, entry: RunEntry | None) -> Input:
    """Return a data source as an input; `entry` is the run that it names, or None if it names none."""
    if entry is not None:
        return _run_input(role, str(source.run), entry)
    if source.hub is not None:
        commit = hub.resolve_commit("dataset", source.hub, source.revision or "main", location=role)
        return Input(role, source.hub, "hub", source.hub, commit, commit)
    assert source.path is not None
    path = Path(source.path)
    if path.is_dir():
        return Input(role, source.path, "folder", source.path, None, _hash_folder(path))
    return _hash_file(role, source.path)


def _run_input(role: str, ref: str, entry: RunEntry) -> Input:
    return Input(role, ref, "run", str(entry.path), entry.version, sha256(entry.path / MANIFEST_FILE))
