"""Write, read and verify manifests: the sizes and SHA-256 of a folder's files. A folder with one is complete."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlhf_cli.errors import DiskError, Issue, ModelError

MANIFEST_FILE = "manifest.json"
SCHEMA = 1

Manifest = dict[str, Any]


def sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: object) -> str:
    """Return the hex SHA-256 of a JSON value. The order of keys does not change it."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def hash_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the size in bytes and the SHA-256 of each file below `folder`, by relative path."""
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_FILE
    }


def result_folder(run: Path, manifest: Manifest) -> Path:
    """Return the folder of a run whose files its manifest lists: `model`, or `data` for a run that wrote rows."""
    return run / str(manifest.get("folder", "model"))


def verify_files(folder: Path, manifest: Manifest, hash_of: Callable[[Path], str] = sha256) -> list[Issue]:
    """Return one issue for each file below `folder` that is missing, differs from `manifest` or is not listed in it.

    A file that was added, such as a chat template, would change what the folder's model does.

    Args:
        folder: The folder that the paths in the manifest are relative to.
        manifest: The manifest to compare with.
        hash_of: Returns a file's SHA-256. By default every byte is read.
    """
    issues = []
    for name, file in manifest["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != file["size"]:
                problem = f"its size differs from the manifest; found {size:,} bytes, expected {file['size']:,}."
            elif hash_of(path) != file["sha256"]:
                problem = "its SHA-256 differs from the manifest."
            else:
                continue
        except OSError as error:
            problem = f"it cannot be read: {error.strerror}."
        issues.append(Issue("model.damaged-file", problem, str(path)))
    hint = "Remove the file."
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name not in manifest["files"] and name != MANIFEST_FILE:
            issues.append(Issue("model.unlisted-file", "the manifest does not list this file.", str(path), hint))
    return issues


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `manifest.json` by rename, after everything else in `folder` has been flushed to the disk."""
    for path in folder.rglob("*"):
        if path.is_file() or path.is_dir():
            sync(path)
    temporary = folder / f".{MANIFEST_FILE}.tmp"
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    sync(temporary)
    temporary.replace(folder / MANIFEST_FILE)
    sync(folder)


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of `folder`, or None if it has none.

    Raises:
        ModelError: The manifest is damaged, or another version of rlhf wrote it.
        DiskError: The manifest cannot be read.
    """
    path = folder / MANIFEST_FILE
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        message = f"the manifest cannot be read: {error.strerror}."
        raise DiskError("disk.not-readable", message, location=str(path), hint="Check its permissions.") from None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(content, dict):
        raise _damaged(path, f"found {type(content).__name__}, expected an object")
    if content.get("schema") != SCHEMA:
        message = f"unsupported manifest schema; found {content.get('schema')}, expected {SCHEMA}."
        hint = "Use the version of rlhf that wrote it."
        raise ModelError("model.manifest-schema", message, location=str(path), hint=hint)
    return content


def _damaged(path: Path, problem: str) -> ModelError:
    message = f"the manifest cannot be read: {problem}."
    return ModelError("model.damaged-manifest", message, location=str(path), hint="Remove this run or checkpoint.")


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
