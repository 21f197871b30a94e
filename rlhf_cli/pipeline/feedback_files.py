"""Check the files that the section feedback names: the guideline, the gold items and the qualification test."""

from __future__ import annotations

from pathlib import Path

from rlhf_cli.errors import ErrorCollector
from rlhf_cli.feedback.formats.gold import read_known_items
from rlhf_cli.feedback.guideline import read_guideline
from rlhf_cli.recipe.schema import Recipe


def check_feedback_files(recipe: Recipe) -> None:
    """Read the files of the section feedback.

    Raises:
        RlhfError: With all issues of all files.
    """
    settings = recipe.feedback
    errors = ErrorCollector()
    if settings.guideline is not None:
        with errors.collect():
            read_guideline(Path(settings.guideline))
    with errors.collect():
        read_known_items(settings)
    errors.raise_all()
