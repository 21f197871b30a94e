"""Recipes as text in a temporary folder, and the issues of those that do not load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rlhf_cli.errors import Issue, RecipeError
from rlhf_cli.recipe.loader import read_recipe
from rlhf_cli.recipe.schema import Recipe

WriteRecipe = Callable[..., Path]
FindIssues = Callable[..., list[Issue]]


def load_recipe(path: Path, overrides: Sequence[str] = (), stages: Sequence[str] | None = None) -> Recipe:
    """Return the recipe of `read_recipe` without the positions of its keys."""
    return read_recipe(path, overrides, stages).recipe


@pytest.fixture
def write_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteRecipe:
    """Return a function that writes a recipe into the working directory; unless `bare`, below a name and a base."""
    monkeypatch.chdir(tmp_path)

    def write(text: str = "", file: str = "r.yaml", *, bare: bool = False) -> Path:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        head = "" if bare else "name: x\nbase: {model: org/model}\n"
        path.write_bytes((head + text).encode())
        return path

    return write


@pytest.fixture
def find_issues(write_recipe: WriteRecipe) -> FindIssues:
    """Return a function that writes a recipe that does not load, and returns its issues."""

    def find(text: str, *overrides: str, bare: bool = False, stages: tuple[str, ...] | None = ()) -> list[Issue]:
        with pytest.raises(RecipeError) as raised:
            read_recipe(write_recipe(text, bare=bare), overrides, stages)
        return list(raised.value.issues)

    return find
