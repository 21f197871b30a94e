"""The real pretrained model and human data in `../shared`, which not every machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[3] / "shared"


def require_shared(*parts: str) -> Path:
    """Return a path in `../shared`. If it is missing, skip the test, or fail it if RLHF_STRICT is 1."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        missing = f"../shared/{'/'.join(parts)} is missing"
        if os.environ.get("RLHF_STRICT") == "1":
            pytest.fail(f"{missing}, and RLHF_STRICT is set")
        pytest.skip(missing)
    return path
