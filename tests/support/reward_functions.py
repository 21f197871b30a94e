"""Python reward functions in files."""

from __future__ import annotations

from pathlib import Path


def write_function(folder: Path, body: str, name: str = "scores.py") -> str:
    """Write a Python file with a function `score`. Return its spec, `file.py:score`."""
    (folder / name).write_text(body)
    return f"{folder / name}:score"
