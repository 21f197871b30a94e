"""`rlhf schema`: the JSON Schema of the recipe, for completion and checks in editors."""

from __future__ import annotations

import json

import typer


def schema() -> None:
    """Print the JSON Schema of the recipe."""
    from rlhf_cli.recipe.json_schema import recipe_json_schema

    typer.echo(json.dumps(recipe_json_schema(), indent=2, ensure_ascii=False))
