"""Build the judge of a recipe: its constitution, and its local model or its endpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rlhf_cli.ai_feedback.http import ChatEndpoint
from rlhf_cli.ai_feedback.judge import Answerer, Judge
from rlhf_cli.recipe.constitution import read_constitution
from rlhf_cli.recipe.schema import Recipe


def build_judge(recipe: Recipe, *, base_path: str, path: str | None, content: str) -> Judge:
    """Return the judge in feedback.judge. Loads no weights.

    Args:
        recipe: The recipe.
        base_path: Folder or Hub id of the base model.
        path: Folder or Hub id of the model that judges; None for the base model and for an endpoint.
        content: Hash or commit of the model that judges; "" for an endpoint.
    """
    settings = recipe.feedback.judge
    assert settings is not None, "the recipe was validated"
    answerer: Answerer
    if settings.http is not None:
        assert settings.http_model is not None, "the recipe was validated"
        answerer = ChatEndpoint(
            settings.http, settings.http_model, timeout=settings.timeout, concurrency=settings.batch_size
        )
        label, identity = settings.http_model, f"{settings.http}\n{settings.http_model}"
    else:
        from rlhf_cli.ai_feedback.local import LocalModel, ModelSource  # imports torch

        assert settings.model is not None, "the recipe was validated"
        source = ModelSource(recipe.base, recipe.adapter, base_path, path, settings.revision or "main")
        answerer = LocalModel(source, batch_size=settings.batch_size)
        label, identity = "/".join(Path(settings.model).parts[-2:]), content
    constitution = read_constitution(Path(settings.constitution))
    identity = hashlib.sha256(identity.encode()).hexdigest()
    return Judge(answerer, constitution, label=label, identity=identity)
