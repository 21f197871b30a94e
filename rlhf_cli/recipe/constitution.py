"""Read a constitution: a YAML file with the principles by which a language model judges, critiques and revises."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError

from rlhf_cli.errors import Issue, RecipeError
from rlhf_cli.formatting import did_you_mean
from rlhf_cli.recipe.schema import Key, Section
from rlhf_cli.recipe.schema.section import PositiveFloat
from rlhf_cli.recipe.schema_issues import schema_issues
from rlhf_cli.recipe.yaml_document import Document, read_document

NonEmptyText = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
PrincipleId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$")]


class Principle(Section):
    """One principle of a constitution."""

    id: PrincipleId = Field(description="name of the principle, which each judgment records")
    text: NonEmptyText = Field(description="what a good completion does, as one or more sentences")
    weight: PositiveFloat = Field(1.0, description="relative weight among the principles")
    critique: NonEmptyText | None = Field(None, description="request for a critique; null: made from text")
    revise: NonEmptyText | None = Field(None, description="request for a revision; null: made from text")

    @property
    def critique_request(self) -> str:
        """The request for a critique of a completion."""
        return self.critique or f"Point out where the response above does not follow this principle: {self.text}"

    @property
    def revision_request(self) -> str:
        """The request for a revision of a completion after its critique."""
        return self.revise or f"Rewrite the response so that it follows this principle: {self.text}"


class Constitution(Section):
    """The principles of a file, in its order."""

    principles: list[Principle] = Field(min_length=1, description="the principles")

    @property
    def sha256(self) -> str:
        """Hash of everything that the principles say, independent of the layout of the file."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def read_constitution(path: Path) -> Constitution:
    """Read and validate the principles of a file.

    Raises:
        RecipeError: With all issues of the file, each with its location.
    """
    document = read_document(path, noun="constitution", hint="Start with `principles:`.")
    issues = list(document.issues)
    constitution: Constitution | None = None
    try:
        constitution = Constitution.model_validate(document.values)
    except ValidationError as error:
        found = schema_issues(document, document.values, error)
        issues += [_with_hint(key, issue) for key, issue in found.items() if key not in document.unreadable]
    else:
        issues += _duplicate_issues(constitution, document)
    if issues or constitution is None:
        raise RecipeError(issues)
    return constitution


def _with_hint(key: Key, issue: Issue) -> Issue:
    """Return an issue of an unknown key with the keys that are allowed."""
    if issue.code != "recipe.unknown-key":
        return issue
    allowed = Constitution.model_fields if len(key) == 1 else Principle.model_fields
    return replace(issue, hint=did_you_mean(str(key[-1]), allowed, otherwise=f"Allowed keys: {', '.join(allowed)}."))


def _duplicate_issues(constitution: Constitution, document: Document) -> list[Issue]:
    counts = Counter(principle.id for principle in constitution.principles)
    issues = []
    for index, principle in enumerate(constitution.principles):
        if counts[principle.id] > 1:
            key: Key = ("principles", index, "id")
            message = f"principles.{index}.id: not unique; found {principle.id} in {counts[principle.id]} principles."
            hint = "Give each principle an id of its own."
            issues.append(Issue("recipe.invalid-value", message, document.location(key), hint))
    return issues
