"""What a finished folder says of itself: files, sizes, sha256. Written last: its presence is completion."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlhf_cli.errors import Issue, ModelError

FILE = "manifest.json"
SCHEMA = 1

Manifest = dict[str, Any]


def sha256(path: Path) -> str:
    """Hex digest of one file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: object) -> str:
    """Hex sha256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Each file below `folder`, by relative path: size in bytes and sha256."""
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != FILE
    }


def damage(folder: Path, manifest: Manifest, hash_of: Callable[[Path], str] = sha256) -> list[Issue]:
    """What of the files below `folder` is not as their manifest has it; every byte is read."""
    issues = []
    for name, file in manifest["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != file["size"]:
                issues.append(Issue(f"has {size:,} bytes, and had {file['size']:,} when it was written.", str(path)))
            elif hash_of(path) != file["sha256"]:
                issues.append(Issue("has another content than when it was written.", str(path)))
        except OSError as error:
            issues.append(Issue(f"cannot be read: {error.strerror}.", str(path)))
    return issues


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `manifest.json` by rename, after everything else in `folder` is on the disk."""
    for path in folder.rglob("*"):
        if path.is_file() or path.is_dir():
            sync(path)
    temporary = folder / f".{FILE}.tmp"
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    sync(temporary)
    temporary.replace(folder / FILE)
    sync(folder)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of `folder`, or None where it is not complete.

    Raises:
        ModelError: where there is one that cannot be read.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the manifest is damaged: {error}.", location=str(path), hint="Remove this version."
        ) from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        hint = "It was written by another version of rlhf." if isinstance(content, dict) else "Remove this version."
        raise ModelError(f"manifest schema is {found}, expected {SCHEMA}.", location=str(path), hint=hint)
    return content


def sync(path: Path) -> None:
    """Have a file, or a folder's names, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
