"""Merge recipes: a file over the recipe that it extends, and `--set KEY=VALUE` over both."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_cli.errors import Issue, RecipeError
from rlhf_cli.recipe.schema import Key, Recipe, Section
from rlhf_cli.recipe.yaml_document import Document, Position, dotted, parse_scalar
from rlhf_cli.redaction import redact_urls

SOURCE_KEYS = ("path", "hub", "run")  # exactly one of them is the location of a source's rows


def merge_document(base: Document, extending: Document) -> None:
    """Merge a file over the recipe that it extends, in place of the latter."""
    _merge(base, extending.values, extending.positions, ())
    base.issues += extending.issues
    base.unreadable |= extending.unreadable
    base.path = extending.path


def apply_override(document: Document, text: str) -> None:
    """Apply one `--set KEY=VALUE`. Its issues are added to the document."""
    name, equals, value_text = text.partition("=")
    location = f"--set {redact_urls(text)}"
    if not equals or not all(name.split(".")):
        message, hint = "invalid override; expected KEY=VALUE.", "Use, for example, --set ppo.kl.coef=0.1."
        document.issues.append(Issue("recipe.invalid-override", message, location, hint))
        return
    if name == "extends":
        message, hint = "extends: cannot be set on the command line.", "Set it in the recipe file."
        document.issues.append(Issue("recipe.invalid-override", message, location, hint))
        return
    try:
        value = parse_scalar(value_text)
    except RecipeError as error:
        first = error.issues[0]
        document.issues.append(Issue(first.code, first.message, location, "Quote the value so that it is valid YAML."))
        return
    key: Key = tuple(int(part) if part.isdecimal() else part for part in name.split("."))
    _set_value(document, key, value, Position(location, Path.cwd()))


def fill_empty_sections(values: Mapping[str, Any], section: type[Section] = Recipe) -> dict[str, Any]:
    """Return a copy in which empty sections are mappings, and empty lists and mappings have their default.

    A section whose lines are all commented out is null in YAML and means its defaults. `adapter` and other fields
    that may be null stay unchanged.
    """
    filled: dict[str, Any] = {}
    for name, value in values.items():
        field = section.model_fields.get(name)
        inner: Any = field.annotation if field else None
        is_section = isinstance(inner, type) and issubclass(inner, Section)
        if is_section and (value is None or isinstance(value, dict)):
            filled[name] = fill_empty_sections(value or {}, inner)
        elif value is None and field is not None and isinstance(field.default, dict | list):
            filled[name] = copy.deepcopy(field.default)
        else:
            filled[name] = copy.deepcopy(value)
    return filled


def _merge(document: Document, values: Mapping[str, Any], positions: Mapping[Key, Position], key: Key) -> None:
    """Merge `values` over the document's values at `key`.

    Mappings are merged. Lists, and data sources that name other rows, are replaced.
    """
    target = _value_at(document, key)
    for name, value in values.items():
        inner = (*key, name)
        names_rows = inner[0] == "data" and isinstance(value, dict) and any(k in value for k in SOURCE_KEYS)
        if isinstance(target.get(name), dict) and isinstance(value, dict) and not names_rows:
            _merge(document, value, positions, inner)
            continue
        target[name] = value
        for replaced in [k for k in document.positions if k[: len(inner)] == inner]:
            del document.positions[replaced]
        document.positions.update({k: position for k, position in positions.items() if k[: len(inner)] == inner})


def _set_value(document: Document, key: Key, value: Any, position: Position) -> None:
    """Set the value of a `--set`: in place for items of lists and for the rows of a source, else by merging."""
    if any(isinstance(part, int) for part in key) or _is_set_source_key(document, key):
        _set_in_place(document, key, value, position)
        return
    nested: Any = value
    for part in reversed(key):
        nested = {part: nested}
    _merge(document, nested, {key[: index + 1]: position for index in range(len(key))}, ())
    document.positions[key] = position


def _is_set_source_key(document: Document, key: Key) -> bool:
    """Return whether `key` is already the location of a source's rows. Its columns and split then stay unchanged."""
    if len(key) != 3 or key[0] != "data" or key[2] not in SOURCE_KEYS:
        return False
    source = (document.values.get("data") or {}).get(key[1])
    return isinstance(source, dict) and key[2] in source


def _set_in_place(document: Document, key: Key, value: Any, position: Position) -> None:
    """Set one item of a list (`eval.gates.0.min`), or a key that exists."""
    try:
        target = _value_at(document, key[:-1])
        if isinstance(target, list) and not isinstance(key[-1], int):
            raise TypeError
        target[key[-1]] = value
    except (KeyError, IndexError, TypeError):
        first_index = next(index for index, part in enumerate(key) if isinstance(part, int))
        message = f"{dotted(key[:first_index])}: item not found: {dotted(key)}."
        hint = "Use an existing index, counting from 0."
        document.issues.append(Issue("recipe.invalid-override", message, position.location, hint))
        return
    document.positions[key] = position


def _value_at(document: Document, key: Key) -> Any:
    value: Any = document.values
    for part in key:
        value = value[part]
    return value
