"""The JSON Schema accepts every recipe of the project and refuses common mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.recipe.json_schema import DIALECT, recipe_json_schema
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.recipe.schema.lookup import iter_section_classes
from rlhf_cli.recipe.yaml_document import parse_scalar, read_document

ROOT = Path(__file__).parents[2]
RECIPES = [*sorted(ROOT.glob("recipes/*/recipe.yaml")), ROOT / "rlhf_cli" / "starter" / "recipe.yaml"]


def recipe_name(path: Path) -> str:
    return path.parent.name


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(recipe_json_schema())
    return jsonschema.Draft202012Validator(recipe_json_schema())


def test_json_schema_describes_every_section_and_the_keys_of_files() -> None:
    schema = recipe_json_schema()
    assert schema["$schema"] == DIALECT
    assert schema["title"] == "rlhf recipe"
    assert set(schema["properties"]) == {"schema", "extends", *Recipe.model_fields}
    for definition in (schema, *schema["$defs"].values()):
        assert definition["additionalProperties"] is False
        assert all(field["description"] for field in definition["properties"].values())
    for _, section in iter_section_classes():
        assert set(schema["$defs"][section.__name__]["properties"]) == set(section.model_fields)


@pytest.mark.parametrize("path", RECIPES, ids=recipe_name)
def test_json_schema_accepts_recipe(validator: Any, path: Path) -> None:
    assert [error.message for error in validator.iter_errors(read_document(path).values)] == []


@pytest.mark.parametrize(
    "text",
    [
        "{name: x, base: {model: a/b}, ppo: , adapter: , eval: {gates: }, sft: {trainer: }}",  # empty sections
        "{extends: a.yaml}",
        "{extends: a.yaml, base: {quantize: nf4}}",
        "{name: x, base: {model: a/b}, schema: 1}",
        "{name: x, base: {model: a/b}, data: {sft: {hub: a/b}, prompts: [{hub: a/b, weight: 2}, {path: c.csv}]}}",
    ],
)
def test_json_schema_accepts_what_the_loader_accepts(validator: Any, text: str) -> None:
    assert validator.is_valid(parse_scalar(text))


@pytest.mark.parametrize(
    "text",
    [
        "{name: x}",
        "{name: x, base: }",
        "{base: {model: a/b}}",
        "{name: x, base: {quantize: nf4}}",
        "{name: x, base: {model: a/b, quantize: nf5}}",
        "{name: x, base: {model: a/b}, ppo: {klip: 1}}",
        "{name: x, base: {model: a/b}, pppo: {}}",
        "{name: x, base: {model: a/b}, sft: {batch_size: 0}}",
        "{name: x, base: {model: a/b}, data: {sft: []}}",
        "{name: x, base: {model: a/b}, data: {sft: rows.jsonl}}",
        "{name: x, base: {model: a/b}, schema: 2}",
        "{extends: 3}",
    ],
)
def test_json_schema_refuses_what_the_loader_refuses(validator: Any, text: str) -> None:
    assert not validator.is_valid(parse_scalar(text))
