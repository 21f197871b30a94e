"""The figures of the owner's overview, as the templates show them."""

from __future__ import annotations

from typing import Any

from rlhf_cli.feedback.store import Status


def annotator_rows(status: Status) -> list[dict[str, Any]]:
    """Return one row per person."""
    return [
        {
            "name": row.annotator.name,
            "role": row.annotator.role,
            "judged": row.judged,
            "skipped": row.skipped,
            "test": "" if row.qualification == "none" else row.qualification,
            "pace": "–",
            "gold": "–",
            "agreement": "–",
            "first": "–",
            "longer": "–",
            "latest": row.latest[:16].replace("T", " "),
        }
        for row in status.annotators
        if row.annotator.source == "human"
    ]
