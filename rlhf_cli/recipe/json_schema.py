"""Describe the recipe as a JSON Schema, for completion and validation in editors.

Rules that span several fields are not part of it; `rlhf check` reports them.
"""

from __future__ import annotations

from typing import Any

from rlhf_cli.recipe.schema import SCHEMA, Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe file."""
    schema = Recipe.model_json_schema(mode="validation")
    definitions: dict[str, Any] = schema["$defs"]
    for definition in (schema, *definitions.values()):
        for field in definition.get("properties", {}).values():
            _simplify(field)
            _allow_null(field)
    base_with_model = {"type": "object", "required": definitions["Base"].pop("required")}
    required = {"required": schema.pop("required"), "properties": {"base": base_with_model}}
    file_keys = {
        "schema": {"const": SCHEMA, "default": SCHEMA, "description": "version of the recipe format"},
        "extends": {"type": "string", "description": "path of the recipe that this one extends"},
    }
    return {
        "$schema": DIALECT,
        **schema,
        "title": "rlhf recipe",
        "properties": {**file_keys, **schema["properties"]},
        # A recipe that extends another one need not repeat the required keys.
        "anyOf": [{"required": ["extends"]}, required],
    }


def _simplify(field: dict[str, Any]) -> None:
    """Remove the title, which repeats the name, and the default of a section, which its fields have."""
    field.pop("title", None)
    if field.get("default") and isinstance(field["default"], dict):
        del field["default"]


def _allow_null(field: dict[str, Any]) -> None:
    """Allow null for sections, lists and mappings: in YAML it is a section whose lines are all commented out."""
    if "$ref" in field:
        field["anyOf"] = [{"$ref": field.pop("$ref")}, {"type": "null"}]
    elif field.get("type") in ("array", "object"):
        field["type"] = [field["type"], "null"]
