"""Complete runs written as files, without running a stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf_cli.runs import layout
from rlhf_cli.runs.manifest import MANIFEST_FILE


def make_run(runs: Path, stage: str, *, name: str = "bot", base: str | None = None, **facts: Any) -> Path:
    """Write a complete run with a manifest and no model. Return its folder.

    Args:
        runs: The runs directory.
        stage: The run's stage.
        name: The run's name.
        base: Hash of the base model that the run was trained on, or None for a run without inputs.
        facts: Further keys of the manifest.
    """
    path = layout.claim(runs, name, stage)
    inputs = [] if base is None else [{"role": "base", "ref": "its-base", "sha256": base}]
    manifest = {"schema": 1, "stage": stage, "name": name, "smoke": False, "inputs": inputs, "metrics": {}, **facts}
    (path / MANIFEST_FILE).write_text(json.dumps(manifest))
    return path


def run_input(role: str, ref: str, kind: str, path: Path, content: str) -> dict[str, Any]:
    """Return an input as the manifest of a run has it."""
    return {"role": role, "ref": ref, "kind": kind, "path": str(path), "version": None, "sha256": content}
