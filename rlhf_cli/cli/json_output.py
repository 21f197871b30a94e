"""The JSON objects that `--json` prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlhf_cli.runs.resume import describe_incomplete

if TYPE_CHECKING:
    from rlhf_cli.errors import Issue
    from rlhf_cli.pipeline.runner import StageResult
    from rlhf_cli.runs.layout import RunEntry


def stage_object(result: StageResult) -> dict[str, Any]:
    """Return the object of one stage."""
    manifest = result.manifest
    return {
        "status": "gate failed" if result.failed_gates else "ok",
        "stage": result.stage,
        "run": f"{manifest['name']}/{result.stage}@{manifest['version']}",
        "path": str(result.path),
        "seconds": manifest["seconds"],
        "skipped": result.skipped,
        "smoke": manifest["smoke"],
        "metrics": manifest["metrics"],
        "gates": manifest.get("gates", []),
        "verdict": manifest.get("verdict"),
    }


def chain_object(results: Sequence[StageResult]) -> dict[str, Any]:
    """Return the object of `rlhf run`: its stages, and their metrics in one map."""
    metrics: dict[str, float | None] = {}
    for result in results:
        metrics.update(result.manifest["metrics"])
    return {
        "status": "ok",
        "stage": "run",
        "seconds": sum(result.manifest["seconds"] for result in results if not result.skipped),
        "stages": [stage_object(result) for result in results],
        "metrics": metrics,
        "verdict": next((found for result in results if (found := result.manifest.get("verdict"))), None),
    }


def run_object(entry: RunEntry) -> dict[str, Any]:
    """Return the object of a run in a listing."""
    manifest = entry.manifest or {}
    state = run_state(entry)
    return {
        "name": entry.name,
        "stage": entry.stage,
        "version": entry.version,
        "path": str(entry.path),
        "state": state,
        "detail": describe_incomplete(entry.path) if state == "incomplete" else entry.manifest_error,
        "started": manifest.get("started"),
        "seconds": manifest.get("seconds"),
        "metrics": manifest.get("metrics", {}),
        "gates": manifest.get("gates", []),
        "verdict": manifest.get("verdict"),
    }


def run_state(entry: RunEntry) -> str:
    """Return `complete`, `smoke`, `incomplete`, or `damaged` if the manifest cannot be read."""
    if entry.manifest_error:
        return "damaged"
    if entry.manifest is None:
        return "incomplete"
    return "smoke" if entry.manifest["smoke"] else "complete"


def error_object(exit_code: int, issues: Sequence[Issue]) -> dict[str, Any]:
    """Return the object of a failed command."""
    return {"status": "error", "exit_code": exit_code, "issues": [dataclasses.asdict(issue) for issue in issues]}
