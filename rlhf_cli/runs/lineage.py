"""What runs are made of, and what is made of them; whether their files still are as they were written."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_cli.errors import DiskError, Issue, ModelError, RecipeError
from rlhf_cli.runs import layout
from rlhf_cli.runs.checkpoint import checkpoints
from rlhf_cli.runs.layout import Entry
from rlhf_cli.runs.lock import lock_holder, read_started
from rlhf_cli.runs.manifest import damage, read_manifest


class Verdict(NamedTuple):
    """What reading every byte of a run found."""

    files: int
    bytes: int
    issues: list[Issue]


class Ancestor(NamedTuple):
    """An input of a run, or of one of its inputs, `depth` steps away."""

    depth: int
    role: str
    what: str
    content: str  # sha256 or commit; empty where it was not known
    missing: bool  # it was a run, and is not there any more


def name_of(entry: Entry) -> str:
    """A run's full name."""
    return f"{entry.name}/{entry.stage}@{entry.version}"


def verify(entry: Entry) -> Verdict:
    """Hold the model of a complete run, and every checkpoint, against their manifests."""
    files, size, issues = 0, 0, [Issue(entry.damage)] if entry.damage else []
    folders = [] if entry.manifest is None else [(entry.path / "model", entry.manifest)]
    for folder in [] if lock_holder(entry.path) else checkpoints(entry.path / "checkpoints"):
        try:
            manifest = read_manifest(folder)
        except ModelError as error:
            issues += error.issues
            continue
        if manifest is None:
            issues.append(Issue("it has no manifest.", str(folder)))
        else:
            folders.append((folder, manifest))
    for folder, manifest in folders:
        files += len(manifest["files"])
        size += sum(file["size"] for file in manifest["files"].values())
        issues += damage(folder, manifest)
    return Verdict(files, size, issues)


def inputs(entry: Entry) -> list[Mapping[str, Any]]:
    """What a run is made of; of an incomplete one as it was written down when it began."""
    if entry.manifest is not None:
        return entry.manifest["inputs"]
    return (read_started(entry.path) or {}).get("made_of", {}).get("inputs", [])


def ancestors(entry: Entry, depth: int = 0) -> Iterator[Ancestor]:
    """Every input, and under each run that is one its own, to the base and the data."""
    for item in inputs(entry):
        content = str(item["sha256"] or "")
        if item["kind"] != "run":
            yield Ancestor(depth, item["role"], str(item["ref"]), content, missing=False)
            continue
        name, stage, version = Path(item["path"]).parts[-3:]
        manifest = None
        with contextlib.suppress(ModelError):
            manifest = read_manifest(Path(item["path"]))
        parent = Entry(name, stage, version, Path(item["path"]), manifest)
        yield Ancestor(depth, item["role"], name_of(parent), content, missing=manifest is None)
        yield from ancestors(parent, depth + 1)


def provenance(runs_dir: Path, entry: Entry) -> list[Entry]:
    """The runs that have `entry` as an input."""
    own = entry.path.parts[-3:]
    return [
        other
        for other in layout.all_runs(runs_dir)
        if any(item["kind"] == "run" and Path(item["path"]).parts[-3:] == own for item in inputs(other))
    ]


def remove(runs_dir: Path, entry: Entry, *, force: bool) -> None:
    """Take a run away, and move `latest`.

    Raises:
        DiskError: a living process works on it, or it lies outside of `runs_dir`.
        RecipeError: other runs are made of it, and not `force`.
    """
    if entry.path.resolve().parents[2] != runs_dir.resolve():
        hint = f"Say --runs-dir {entry.path.resolve().parents[2]}, if that is where runs lie."
        raise DiskError(f"{entry.path} is not in the runs folder {runs_dir}.", location=str(entry.path), hint=hint)
    who = lock_holder(entry.path)
    if who:
        raise DiskError(f"{name_of(entry)} is under way, by {who}.", location=str(entry.path), hint="Stop it first.")
    needed = provenance(runs_dir, entry)
    if needed and not force:
        names = ", ".join(map(name_of, needed))
        hint = "Remove those first, or add --force: their lineage then ends here."
        raise RecipeError(f"{names} is made of {name_of(entry)}.", location=str(entry.path), hint=hint)
    stage_dir = entry.path.parent
    gone = stage_dir / f".removed-{secrets.token_hex(4)}"
    entry.path.rename(gone)  # at once, so that no half of it is left with the name
    shutil.rmtree(gone)
    link = stage_dir / "latest"
    if link.is_symlink() and not link.exists():
        link.unlink()
        if layout.newest(runs_dir, entry.name, entry.stage, smoke=False) is not None:
            layout.point_latest(stage_dir)


def facts(entry: Entry, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What can differ between two runs, flat: the recipe's keys, inputs, packages, device, figures."""
    manifest = entry.manifest or {}
    found = dict(_flat("", {name: value for name, value in recipe.items() if name != "data"}))
    for item in inputs(entry):
        found[f"input {item['role']}"] = f"{item['ref']} {item['version'] or ''} {str(item['sha256'] or '')[:12]}"
    found |= {f"package {name}": version for name, version in manifest.get("packages", {}).items()}
    found["device"] = manifest.get("device")
    return found | dict(manifest.get("metrics", {}))


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Name: both values, where they are not the same; null for what one has not."""
    return {name: [a.get(name), b.get(name)] for name in dict.fromkeys((*a, *b)) if a.get(name) != b.get(name)}


def _flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _flat(f"{key}.{name}".strip("."), item)
    else:
        yield key, value
