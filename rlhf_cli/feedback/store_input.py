"""Read the store as the input of a stage: its snapshot, with the digest that identifies it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from rlhf_cli.errors import DataError
from rlhf_cli.feedback.types import Snapshot
from rlhf_cli.recipe.schema import Recipe

URL_VARIABLE = "RLHF_FEEDBACK_STORE"  # has precedence over the recipe's feedback.store


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


def store_url(recipe: Recipe) -> str:
    """Return the path or URL of a recipe's store."""
    return os.environ.get(URL_VARIABLE) or recipe.feedback.store


def store_may_exist(recipe: Recipe) -> bool:
    """Return whether the file of a recipe's store exists; whether a database has one, only a connection can tell."""
    url = store_url(recipe)
    return "://" in url or Path(url).expanduser().exists()


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
    """Return the content of the recipe's store, or None if its file does not exist.

    Neither the guideline nor the gold items of the recipe are put into it.

    Raises:
        RecipeError: The packages of the extra `annotate` are not installed, or the URL is invalid.
        DataError: The database cannot be used.
    """
    from rlhf_cli.feedback.store import open_store
    from rlhf_cli.feedback.store.snapshot import digest

    if not store_may_exist(recipe):
        return None
    unread = recipe.feedback.replace(guideline=None, gold=None, qualification=None)
    with open_store(recipe.replace(feedback=unread)) as store:
        snapshot = store.snapshot()
        return StoreContent(store.location, snapshot, digest(snapshot))
