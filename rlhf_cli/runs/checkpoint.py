"""Checkpoints: a temporary folder, its manifest last, then one rename. What has the name is whole."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_cli.runs.manifest import SCHEMA, files_of, write_manifest


@contextmanager
def committed(target: Path, step: int) -> Iterator[Path]:
    """Yield an empty folder; on a clean exit it becomes `target`, with a manifest of its files."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".tmp-{secrets.token_hex(4)}"
    temporary.mkdir()
    try:
        yield temporary
        write_manifest(temporary, {"schema": SCHEMA, "step": step, "files": files_of(temporary)})
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
