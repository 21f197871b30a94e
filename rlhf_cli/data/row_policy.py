"""What a recipe says about the rows of all datasets."""

from __future__ import annotations

from typing import NamedTuple

from rlhf_cli.recipe.schema import Base, Recipe


class RowPolicy(NamedTuple):
    """Which rows are invalid apart from their content, and what to do about invalid rows.

    Attributes:
        skip_invalid: Whether invalid rows are skipped, logged and counted instead of being issues.
        base: The base model, whose chat template must render the rows. None: not checked.
    """

    skip_invalid: bool = False
    base: Base | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> RowPolicy:
        """Return the policy of a recipe."""
        return cls(recipe.data.on_invalid == "skip", recipe.base)
