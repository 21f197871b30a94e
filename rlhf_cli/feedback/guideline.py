"""Read the guideline: the instructions for annotators, as Markdown."""

from __future__ import annotations

from pathlib import Path

from rlhf_cli.errors import RecipeError
from rlhf_cli.formatting import format_path

KEY = "feedback.guideline"


def read_guideline(path: Path) -> str:
    """Return the text of a guideline. Raise RecipeError if it cannot be read, or if it is empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        message = f"file not found: {format_path(path)}."
        raise RecipeError("recipe.path-not-found", message, location=KEY, hint="Check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        message = f"the guideline cannot be read as UTF-8 text: {error}."
        raise RecipeError("recipe.unreadable", message, location=KEY, hint="Save it as UTF-8.") from None
    if not text.strip():
        message = f"the guideline is empty: {format_path(path)}."
        raise RecipeError("recipe.invalid-value", message, location=KEY, hint="Write it, or remove the key.")
    return text
