"""Convert pydantic's errors to issues: one per key, in the words of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from rlhf_cli.errors import Issue
from rlhf_cli.formatting import did_you_mean, format_alternatives
from rlhf_cli.recipe.foreign_keys import foreign_key_hint, foreign_value_hint
from rlhf_cli.recipe.schema import Key, Recipe
from rlhf_cli.recipe.schema.lookup import section_class, sections_with_field
from rlhf_cli.recipe.trainer_options import accepts_trainer_option
from rlhf_cli.recipe.yaml_document import Document, dotted, format_value

OVERRIDE = "--set "  # start of the location of a value that was set on the command line
EXPECTED: Mapping[str, str] = {  # type of a pydantic error: what was expected
    "string_type": "text",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "too_short": "at least one item",
}


def schema_issues(document: Document, values: dict[str, Any], error: ValidationError) -> dict[Key, Issue]:
    """Return one issue for each key with an error. pydantic reports one error for each member of a union.

    Args:
        document: The positions of the keys.
        values: The values that pydantic validated.
        error: Its errors.
    """
    errors_by_key: dict[Key, list[Any]] = {}
    for item in error.errors(include_url=False):
        errors_by_key.setdefault(_key_in_file(values, item["loc"], item["type"]), []).append(item)
    return {key: _issue(document, values, key, errors) for key, errors in errors_by_key.items()}


def _key_in_file(values: Any, loc: tuple[str | int, ...], error_type: str) -> Key:
    """Return `loc` without pydantic's additions: names of union members, and the index of a single data source."""
    key: list[str | int] = []
    for part in loc:
        is_index = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if is_index or (isinstance(values, dict) and part in values):
            values = values[part]
            key.append(part)
    if error_type == "missing":
        key.append(loc[-1])
    return tuple(key)


def _issue(document: Document, values: dict[str, Any], key: Key, errors: list[Any]) -> Issue:
    location, error_type = document.location(key), errors[0]["type"]
    if error_type == "missing":
        return Issue("recipe.missing-key", f"{dotted(key)}: missing key.", location, f"Add `{key[-1]}:`.")
    if error_type == "extra_forbidden":
        hint = unknown_key_hint(key, relative=not location.startswith(OVERRIDE))
        return Issue("recipe.unknown-key", f"{dotted(key)}: unknown key.", location, hint)
    found: Any = values
    for part in key:
        found = found[part]
    expected = " or ".join(dict.fromkeys(_expected(item) for item in errors))
    is_number = isinstance(found, int | float | bool)
    hint = "Put it in quotes." if EXPECTED["string_type"] in expected and is_number else foreign_value_hint(key, found)
    message = f"{dotted(key)}: invalid value; found {format_value(found)}, expected {expected}."
    return Issue("recipe.invalid-value", message, location, hint)


def _expected(error: Any) -> str:
    """Return what pydantic expected, in the words of a recipe."""
    if error["type"] in EXPECTED:
        return EXPECTED[error["type"]]
    text = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return f"a value {text}" if text.startswith(("greater than", "less than")) else text


def unknown_key_hint(key: Key, *, relative: bool) -> str:
    """Return what the user may have meant: another tool's key, a field of another section, or a similar field.

    Args:
        key: The unknown key.
        relative: Whether a replacement in the same section is written relative to it.
    """
    name, section_key = str(key[-1]), key[:-1]
    section = section_class(section_key)
    if section is None:
        return ""
    hint = foreign_key_hint(name, section_key, relative=relative)
    if hint:
        return hint
    sections = sections_with_field(name)
    if name in Recipe.model_fields and section is not Recipe:
        return "Move it to the top level of the recipe."
    if sections:
        return f"Move it to {format_alternatives(sections)}."
    if "trainer" in section.model_fields and accepts_trainer_option(str(section_key[0]), name):
        return "Move it to `trainer:` in this section."
    trainers = [key for key in sections_with_field("trainer") if accepts_trainer_option(key, name)]
    if trainers:
        return f"Move it to {format_alternatives([f'{key}.trainer' for key in trainers])}."
    names = [*section.model_fields]
    if section is Recipe:
        names = ["schema", "extends", *names]
    return did_you_mean(name, names, otherwise=f"Allowed keys: {', '.join(names)}.")
