"""Build the judge of a recipe: its constitution, and its local model or its endpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from rlhf_cli.ai_feedback.http import ChatEndpoint
from rlhf_cli.ai_feedback.judge import Answerer, Judge
from rlhf_cli.recipe.constitution import read_constitution
from rlhf_cli.recipe.schema import Recipe


class JudgeModel(NamedTuple):
    """The model of a judge in this process.

    Attributes:
        base_path: Folder or Hub id of the base model.
        path: Folder or Hub id of the model that judges; None for the base model.
        label: What tables call it.
        content: Hash or commit of the model that judges.
    """

    base_path: str
    path: str | None
    label: str
    content: str


def build_judge(recipe: Recipe, model: JudgeModel | None) -> Judge:
    """Return the judge in feedback.judge. Loads no weights.

    Args:
        recipe: The recipe.
        model: The model that judges; not needed for an endpoint.
    """
    settings = recipe.feedback.judge
    assert settings is not None, "the recipe was validated"
    answerer: Answerer
    if settings.http is not None:
        assert settings.http_model is not None, "the recipe was validated"
        answerer = ChatEndpoint(
            settings.http, settings.http_model, timeout=settings.timeout, concurrency=settings.batch_size
        )
        label, content = settings.http_model, f"{settings.http}\n{settings.http_model}"
    else:
        from rlhf_cli.ai_feedback.local import LocalModel, ModelSource  # imports torch

        assert model is not None, "a judge without an endpoint has a model"
        source = ModelSource(recipe.base, recipe.adapter, model.base_path, model.path, settings.revision or "main")
        answerer = LocalModel(source, batch_size=settings.batch_size)
        label = "/".join(Path(model.label).parts[-2:]) if Path(model.label).is_absolute() else model.label
        content = model.content
    constitution = read_constitution(Path(settings.constitution))
    identity = hashlib.sha256(content.encode()).hexdigest()
    return Judge(answerer, constitution, label=label, identity=identity)
