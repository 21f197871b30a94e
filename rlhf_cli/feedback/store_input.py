"""Read the store as the input of a stage: its snapshot, with the digest that identifies it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from rlhf_cli.errors import DataError, RecipeError
from rlhf_cli.feedback.types import Snapshot
from rlhf_cli.recipe.schema import Recipe


class StoreContent(NamedTuple):
    """All feedback of a project at one moment.

    Attributes:
        location: Where the store is: a path, or a URL without a password.
        snapshot: The feedback.
        digest: SHA-256 of the snapshot.
    """

    location: str
    snapshot: Snapshot
    digest: str


def check_judgments(snapshot: Snapshot | None) -> None:
    """Raise DataError, with the next step, if a store has no judgments. None stands for a store that does not exist."""
    if snapshot is not None and snapshot.judgments:
        return
    hint = "Run `rlhf annotate serve`, and export when people have judged."
    if snapshot is None or not snapshot.items:
        hint = "Add items with `rlhf annotate import`, and let people judge them with `rlhf annotate serve`."
    message = "no judgments in the store; expected at least one."
    raise DataError("feedback.no-judgments", message, location="feedback.store", hint=hint)


def read_store(recipe: Recipe) -> StoreContent | None:
    """Return the content of the recipe's store, or None if its file does not exist. Nothing is written to it.

    Raises:
        RecipeError: The packages of the extra `annotate` are not installed, or the URL is invalid.
        DataError: The database cannot be used.
    """
    try:
        from rlhf_cli.feedback.store import open_store
        from rlhf_cli.feedback.store.engine import URL_VARIABLE
        from rlhf_cli.feedback.store.snapshot import digest
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed; the feedback store needs it."
        hint = "Run `pip install 'rlhf[annotate]'`."
        raise RecipeError("recipe.missing-package", message, location="feedback.store", hint=hint) from error
    url = os.environ.get(URL_VARIABLE) or recipe.feedback.store
    if "://" not in url and not Path(url).expanduser().exists():
        return None
    # The guideline is not set, which would start a new version of it.
    with open_store(recipe.replace(feedback=recipe.feedback.replace(guideline=None))) as store:
        snapshot = store.snapshot()
        return StoreContent(store.location, snapshot, digest(snapshot))
