"""Load a recipe: read YAML, apply `extends` and `--set`, make paths absolute, and report all issues in one error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from rlhf_cli.errors import Issue, RecipeError
from rlhf_cli.formatting import format_path
from rlhf_cli.recipe import validation
from rlhf_cli.recipe.overrides import apply_override, fill_empty_sections, merge_document
from rlhf_cli.recipe.schema import SCHEMA, Key, PathKind, Recipe, Section
from rlhf_cli.recipe.schema_issues import schema_issues
from rlhf_cli.recipe.yaml_document import Document, Dumper, format_value, read_document
from rlhf_cli.stages import STAGES

MAX_VALIDATIONS = 10  # each removes the invalid keys that it finds; nested errors need a few
_DOTTED_KEY = re.compile(r"[a-z_]+(\.\w+)+")  # a key inside a section; a section's bare name may also be its stage
_LOCATION = re.compile(r"(?P<file>.*):(?P<line>\d+):(?P<column>\d+)")
_PLACEHOLDERS: dict[Key, object] = {("name",): "unnamed", ("base",): {"model": "unnamed"}, ("base", "model"): "unnamed"}


class LoadedRecipe(NamedTuple):
    """A recipe, and the positions of its keys."""

    recipe: Recipe
    document: Document

    def with_location(self, issue: Issue) -> Issue:
        """Return a later issue with the position of the recipe key, or the relative path, that is its location."""
        if issue.location.startswith("/"):
            return replace(issue, location=format_path(Path(issue.location)))
        section = issue.location.partition(".")[0]
        if not _DOTTED_KEY.fullmatch(issue.location) or section not in Recipe.model_fields:
            return issue
        key: Key = tuple(int(part) if part.isdecimal() else part for part in issue.location.split("."))
        return replace(issue, message=f"{issue.location}: {issue.message}", location=self.document.location(key))


def read_recipe(path: Path, overrides: Sequence[str] = (), stages: Sequence[str] | None = None) -> LoadedRecipe:
    """Read and validate a recipe.

    Args:
        path: The recipe file.
        overrides: `KEY=VALUE` settings, which replace those of the file.
        stages: The stages that will run and whose data must be there; None: all that the recipe has a section for.

    Raises:
        RecipeError: With all issues of the files, the overrides and the values, each with its location.
    """
    document = _read_with_extends(path, ())
    for text in overrides:
        apply_override(document, text)
    recipe, issues_by_key = _validate(document, fill_empty_sections(document.values))
    issues = document.issues + [issue for key, issue in issues_by_key.items() if key not in document.unreadable]
    if recipe is not None:
        wanted = validation.named_stages(recipe) if stages is None else stages
        for key, issue in validation.find_issues(recipe, wanted):
            if not _is_consequence(key, issues_by_key):
                # An issue of a file that the recipe refers to has the location in that file.
                issues.append(replace(issue, location=issue.location or document.location(key)))
    if issues or recipe is None:
        raise RecipeError(sorted(dict.fromkeys(issues), key=_position_in_files))
    return LoadedRecipe(recipe, document)


def dump(recipe: Recipe, stage: str | None = None) -> str:
    """Return the recipe as YAML with all defaults, without the sections of stages that it does not set.

    Args:
        recipe: The recipe.
        stage: A stage whose section is written even if the recipe does not set it, or None.
    """
    wanted = set(recipe.model_fields_set)
    if stage is not None:
        wanted.add(STAGES[stage].section)
    omitted = {spec.section for spec in STAGES.values()} - wanted
    values = recipe.model_dump(mode="json", exclude=omitted)
    return yaml.dump({"schema": SCHEMA, **values}, Dumper=Dumper, sort_keys=False)


def _is_consequence(key: Key, invalid: Iterable[Key]) -> bool:
    """Return whether an issue at `key` may only be due to an invalid key there or below, which was removed."""
    return any(other == key or (len(key) > 1 and other[: len(key)] == key) for other in invalid)


def _position_in_files(issue: Issue) -> tuple[str, int, int]:
    """Return a sort key that orders issues from the top of a file to its bottom. Issues without a line come last."""
    match = _LOCATION.fullmatch(issue.location)
    return (match["file"], int(match["line"]), int(match["column"])) if match else ("\uffff", 0, 0)


# --- extends --------------------------------------------------------------------------------------------------------


def _read_with_extends(path: Path, extending: tuple[Path, ...]) -> Document:
    """Read a recipe merged over the one that it extends. `extending` is the chain of files that led to it."""
    document = read_document(path)
    document.values = fill_empty_sections(document.values)  # an empty section must not replace the extended one
    _check_schema_version(document)
    parent = document.values.pop("extends", None)
    if parent is None:
        return document
    chain = (*extending, path.resolve())
    base = _read_with_extends(_parent_path(document, parent, chain), chain)
    merge_document(base, document)
    return base


def _check_schema_version(document: Document) -> None:
    """Remove the key `schema`. Raise RecipeError if another version of rlhf wrote the recipe."""
    schema = document.values.pop("schema", SCHEMA)
    if type(schema) is int and schema == SCHEMA:
        return
    is_newer = isinstance(schema, int) and schema > SCHEMA
    hint = "Install a newer version of rlhf." if is_newer else f"Write `schema: {SCHEMA}`, or remove it."
    message = f"schema: unsupported version; found {format_value(schema)}, expected {SCHEMA}."
    raise RecipeError("recipe.unsupported-schema", message, location=document.location(("schema",)), hint=hint)


def _parent_path(document: Document, parent: object, chain: tuple[Path, ...]) -> Path:
    """Return the absolute path of the recipe that `chain[-1]` extends.

    Raises:
        RecipeError: It is not a path, not a file, or in the chain.
    """
    location = document.location(("extends",))
    if not isinstance(parent, str):
        message = f"extends: invalid value; found {format_value(parent)}, expected the path of a recipe."
        raise RecipeError("recipe.invalid-value", message, location=location)
    path = (document.path.parent / parent).resolve()
    if path in chain:
        cycle = " → ".join(format_path(file) for file in (*chain[chain.index(path) :], path))
        message = f"extends: circular reference: {cycle}."
        hint = "Remove one of these `extends` keys."
        raise RecipeError("recipe.circular-extends", message, location=location, hint=hint)
    if not path.is_file():
        message = f"extends: file not found: {format_path(path)}."
        raise RecipeError("recipe.path-not-found", message, location=location, hint="Check the path.")
    return path


# --- validation -----------------------------------------------------------------------------------------------------


def _validate(document: Document, values: dict[str, Any]) -> tuple[Recipe | None, dict[Key, Issue]]:
    """Validate repeatedly, removing invalid keys, to collect all errors. Return the recipe and the issues by key.

    The recipe has absolute paths. It is None if no valid recipe remains.
    """
    issues_by_key: dict[Key, Issue] = {}
    for _ in range(MAX_VALIDATIONS):
        try:
            recipe = Recipe.model_validate(values)
        except ValidationError as error:
            issues = schema_issues(document, values, error)
            issues_by_key |= issues
            for key in reversed(issues):  # from the end, so that indices of lists stay valid
                _remove_key(values, key)
        else:
            return _with_absolute_paths(recipe, document, ()), issues_by_key
    return None, issues_by_key


def _remove_key(values: dict[str, Any], key: Key) -> None:
    """Remove an invalid key, or what contains it if that would become invalid. Required keys get a placeholder."""
    if not key:
        return
    target: Any = values
    for part in key[:-1]:
        target = target[part]
    last: Any = key[-1]
    if key in _PLACEHOLDERS:
        target[last] = _PLACEHOLDERS[key]
    elif isinstance(target, list) and len(target) == 1:  # an empty list would be an issue of its own
        _remove_key(values, key[:-1])
    elif isinstance(target, list) or (isinstance(target, dict) and last in target):
        target.pop(last)
    else:  # a required key is missing: remove its section
        _remove_key(values, key[:-1])


def _with_absolute_paths(section: Any, document: Document, key: Key) -> Any:
    """Return a section whose paths are resolved against the folder of the file that they are written in."""
    resolved = {}
    for name, field in type(section).model_fields.items():
        kind = next((item for item in field.metadata if isinstance(item, PathKind)), None)
        value = getattr(section, name)
        if kind is not None and isinstance(value, str) and name not in section.model_fields_set:  # a default
            resolved[name] = kind.resolve(value, document.path.parent)
        else:
            resolved[name] = _resolve(value, kind, document, (*key, name))
    return section.replace(**resolved)


def _resolve(value: Any, kind: PathKind | None, document: Document, key: Key) -> Any:
    if isinstance(value, Section):
        return _with_absolute_paths(value, document, key)
    if isinstance(value, list):
        # A single data source is a list of one item, whose index is not in the file.
        keys = [(*key, index) if (*key, index) in document.positions else key for index in range(len(value))]
        return [_resolve(item, kind, document, inner) for item, inner in zip(value, keys, strict=True)]
    if kind is None or not isinstance(value, str):
        return value
    position = document.position(key)
    return kind.resolve(value, position.folder if position else Path.cwd())
