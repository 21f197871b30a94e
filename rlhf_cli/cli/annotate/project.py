"""Open the recipe and the store of a command."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rlhf_cli.cli import options
from rlhf_cli.errors import RlhfError

if TYPE_CHECKING:
    from rlhf_cli.feedback.store import Store
    from rlhf_cli.recipe.schema import Recipe


class OpenProject(NamedTuple):
    """A recipe, and its store."""

    recipe: Recipe
    store: Store


@contextlib.contextmanager
def open_project(recipe: Path | None, overrides: Sequence[str] | None) -> Iterator[OpenProject]:
    """Yield the recipe and its open store. An issue raised inside that names a recipe key gets its file and line.

    Raises:
        RecipeError: The recipe is invalid, or the packages of the extra `annotate` are not installed.
    """
    from rlhf_cli.feedback.store import open_store
    from rlhf_cli.recipe.loader import read_recipe

    loaded = read_recipe(options.recipe_path(recipe), overrides or (), [])
    try:
        with open_store(loaded.recipe) as store:
            yield OpenProject(loaded.recipe, store)
    except RlhfError as error:
        error.issues = tuple(loaded.with_location(issue) for issue in error.issues)
        raise
