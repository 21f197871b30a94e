"""Recipes as text in a temporary folder, and the issues of those that do not load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_cli.errors import Issue, RecipeError
from rlhf_cli.recipe.loader import load

Write = Callable[..., Path]
FaultsOf = Callable[..., list[Issue]]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a recipe into the working folder; `name` and `base` are put in front where the text has none."""
    monkeypatch.chdir(tmp_path)

    def make(text: str = "", file: str = "r.yaml", *, bare: bool = False) -> Path:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        head = "" if bare else "name: x\nbase: {model: org/model}\n"
        path.write_bytes((head + text).encode())
        return path

    return make


@pytest.fixture
def faults_of(write: Write) -> FaultsOf:
    """The issues of a recipe that does not load."""

    def issues(text: str, *overrides: str, bare: bool = False, stages: tuple[str, ...] | None = ()) -> list[Issue]:
        with pytest.raises(RecipeError) as raised:
            load(write(text, bare=bare), overrides, stages)
        return list(raised.value.issues)

    return issues
