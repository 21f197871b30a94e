"""Trace runs through their inputs: ancestors, dependents, evaluations. Verify, compare and remove runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_cli.errors import DiskError, Issue, ModelError, RecipeError
from rlhf_cli.formatting import format_count
from rlhf_cli.runs import layout
from rlhf_cli.runs.checkpoint import checkpoints, read_checkpoint_manifest
from rlhf_cli.runs.layout import RunEntry
from rlhf_cli.runs.lock import lock_holder, read_started
from rlhf_cli.runs.manifest import result_folder, verify_files

CANDIDATE = "candidate"  # role of the input that an evaluation evaluates
REWARD_SOURCE = re.compile(r"\w+\.reward\.\d+")  # role of an input that a policy is trained to maximize


class Verification(NamedTuple):
    """The result of reading every byte of a run.

    Attributes:
        files: How many files the manifests list.
        bytes: Their total size.
        issues: One for each file that is missing or differs.
    """

    files: int
    bytes: int
    issues: list[Issue]


class Ancestor(NamedTuple):
    """An input of a run, or of one of its inputs.

    Attributes:
        depth: Number of runs between: 0 for the run's own inputs.
        role: The input's role, such as `base`, `start` or `data.sft`.
        name: `name/stage@version` of a run; else as written in the recipe.
        content: SHA-256 or commit; empty if it was not known.
        missing: Whether it was a run that does not exist any more.
        detail: Who judged the rows of a feedback run, and by which guideline; else empty.
    """

    depth: int
    role: str
    name: str
    content: str
    missing: bool
    detail: str = ""


def name_of(entry: RunEntry) -> str:
    """Return the full name of a run: `name/stage@version`."""
    return f"{entry.name}/{entry.stage}@{entry.version}"


def verify(entry: RunEntry) -> Verification:
    """Compare the model or the rows of a complete run, and every checkpoint, with their manifests.

    The checkpoints of a run that a process is writing are not read.
    """
    issues = [Issue("model.damaged-manifest", entry.manifest_error)] if entry.manifest_error else []
    folders = [] if entry.manifest is None else [(result_folder(entry.path, entry.manifest), entry.manifest)]
    for folder in [] if lock_holder(entry.path) else checkpoints(entry.path / "checkpoints"):
        try:
            folders.append((folder, read_checkpoint_manifest(folder)))
        except ModelError as error:
            issues += error.issues
    files = size = 0
    for folder, manifest in folders:
        files += len(manifest["files"])
        size += sum(file["size"] for file in manifest["files"].values())
        issues += verify_files(folder, manifest)
    return Verification(files, size, issues)


def inputs(entry: RunEntry) -> list[Mapping[str, Any]]:
    """Return the inputs of a run; of an incomplete one, as recorded when it was started."""
    if entry.manifest is not None:
        return list(entry.manifest["inputs"])
    record = read_started(entry.path)
    return [] if record is None else list(record.provenance.get("inputs", []))


def ancestors(entry: RunEntry, depth: int = 0) -> Iterator[Ancestor]:
    """Yield every input of a run, each followed by its own inputs if it is a run, back to the base model and the data.

    A run that is an input twice is yielded twice.
    """
    for item in inputs(entry):
        content = str(item["sha256"] or "")
        if item["kind"] != "run":
            yield Ancestor(depth, item["role"], str(item["ref"]), content, missing=False)
            continue
        parent = layout.read_entry(Path(item["path"]))
        detail = describe_feedback(parent)
        yield Ancestor(depth, item["role"], name_of(parent), content, missing=parent.manifest is None, detail=detail)
        yield from ancestors(parent, depth + 1)


def describe_feedback(entry: RunEntry) -> str:
    """Return how many annotators judged the rows of a feedback run, and by which guideline; "" for other runs."""
    facts = (entry.manifest or {}).get("feedback")
    if facts is None:
        return ""
    guidelines = [
        f"guideline {sha[:12]} ({format_count(count, 'judgment')})" for sha, count in facts["guidelines"].items()
    ]
    return ", ".join([format_count(facts["annotators"], "annotator"), *(guidelines or ["no guideline"])])


def ancestor_runs(entry: RunEntry) -> list[RunEntry]:
    """Return the complete runs that `entry` was made from and then itself, each once and after its own inputs."""
    found: dict[Path, RunEntry] = {}

    def visit(run: RunEntry) -> None:
        if run.manifest is None or run.path in found:
            return
        for item in inputs(run):
            if item["kind"] == "run":
                visit(layout.read_entry(Path(item["path"])))
        found[run.path] = run

    visit(entry)
    return list(found.values())


def optimized_rewards(entry: RunEntry) -> list[Mapping[str, Any]]:
    """Return the reward sources that `entry` and the runs that it was made from were trained to maximize, as inputs."""
    return [
        item for run in (*ancestor_runs(entry), entry) for item in inputs(run) if REWARD_SOURCE.fullmatch(item["role"])
    ]


def newest_evaluation(runs_dir: Path, name: str, run: Path, *, smoke: bool) -> RunEntry | None:
    """Return the newest complete evaluation in which `run` was the candidate, or None if there is none.

    Args:
        runs_dir: The runs directory.
        name: The name of the recipe whose evaluations are searched.
        run: The folder of a run, of a checkpoint or of a model. Links are resolved; the `model/` in a run or a
            checkpoint stands for that run or checkpoint.
        smoke: Whether smoke evaluations or real ones are searched.
    """
    wanted = _resolve_model(run)
    found = [
        entry
        for entry in layout.all_runs(runs_dir, name)
        if entry.manifest is not None and entry.manifest["smoke"] == smoke
        for item in inputs(entry)
        if item["role"] == CANDIDATE and _resolve_model(Path(item["path"])) == wanted
    ]
    return found[-1] if found else None


def _resolve_model(path: Path) -> Path:
    resolved = path.resolve()
    return resolved.parent if resolved.name == "model" else resolved


def dependents(runs_dir: Path, entry: RunEntry) -> list[RunEntry]:
    """Return the runs that have `entry` as an input."""
    own = entry.path.parts[-3:]
    return [
        other
        for other in layout.all_runs(runs_dir)
        if any(item["kind"] == "run" and Path(item["path"]).parts[-3:] == own for item in inputs(other))
    ]


def remove(runs_dir: Path, entry: RunEntry, *, force: bool) -> None:
    """Remove a run, and update the link `latest`.

    Args:
        runs_dir: The runs directory.
        entry: The run.
        force: Whether to remove it even if other runs have it as an input.

    Raises:
        DiskError: A running process uses the run, or it is not in `runs_dir`.
        RecipeError: Other runs have it as an input, and `force` is False.
    """
    location = str(entry.path)
    if entry.path.resolve().parents[2] != runs_dir.resolve():
        message = f"the run is not in the runs directory {runs_dir}."
        hint = f"Add --runs-dir {entry.path.resolve().parents[2]} if that is the runs directory."
        raise DiskError("disk.outside-runs-dir", message, location=location, hint=hint)
    holder = lock_holder(entry.path)
    if holder:
        message = f"{name_of(entry)} is in use by {holder}."
        raise DiskError("disk.locked", message, location=location, hint="Stop that process first.")
    users = dependents(runs_dir, entry)
    if users and not force:
        message = f"{name_of(entry)} is an input of {', '.join(map(name_of, users))}."
        hint = "Remove those runs first, or add --force; their lineage then ends at this run."
        raise RecipeError("recipe.run-in-use", message, location=location, hint=hint)
    layout.remove_version(entry.path)


def comparable_values(entry: RunEntry, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that can differ between two runs: recipe keys, inputs, packages, device and metrics."""
    manifest = entry.manifest or {}
    found = dict(_flatten("", {name: value for name, value in recipe.items() if name != "data"}))
    for item in inputs(entry):
        found[f"input {item['role']}"] = f"{item['ref']} {item['version'] or ''} {str(item['sha256'] or '')[:12]}"
    found |= {f"package {name}": version for name, version in manifest.get("packages", {}).items()}
    found["device"] = manifest.get("device")
    return found | dict(manifest.get("metrics", {}))


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return both values of each name whose values differ; None stands for a missing one."""
    return {name: [a.get(name), b.get(name)] for name in dict.fromkeys((*a, *b)) if a.get(name) != b.get(name)}


def _flatten(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _flatten(f"{key}.{name}".strip("."), item)
    else:
        yield key, value
