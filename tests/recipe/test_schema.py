"""The schema: every field is described, and references to runs are recognized."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_cli.recipe.schema import PathKind, Recipe, Section, is_run_reference
from rlhf_cli.recipe.schema.lookup import iter_section_classes, section_class, sections_with_field
from rlhf_cli.stages import STAGES
from tests.support.recipe_files import WriteRecipe, load_recipe


def test_every_section_and_field_has_a_description() -> None:
    sections: list[type[Section]] = [Recipe, *(section for _, section in iter_section_classes())]
    for section in sections:
        assert section.__doc__
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"


def test_every_stage_has_a_section_with_the_fields_of_its_spec() -> None:
    for spec in STAGES.values():
        section = section_class((spec.section,))
        assert section is not None
        fields = {*spec.accepts, *spec.dataset_switches.values()}
        assert fields <= set(section.model_fields)
        for field in spec.accepts:
            assert any(isinstance(item, PathKind) for item in section.model_fields[field].metadata)


@pytest.mark.parametrize("text", ["sft", "sft@latest", "ppo@v0012", "other/sft@v0003", "other/sft@latest"])
def test_is_run_reference_of_known_stage_is_true(text: str) -> None:
    assert is_run_reference(text)


@pytest.mark.parametrize("text", ["base", "owner/sft", "sft@2", "train@latest", "a/b/sft@latest", "../sft@latest", ""])
def test_is_run_reference_of_other_text_is_false(text: str) -> None:
    assert not is_run_reference(text)


def test_section_class_of_key_in_list_returns_class_of_items() -> None:
    found = section_class(("ppo", "reward", 0))
    assert found is not None
    assert "weight" in found.model_fields
    assert section_class(("ppo", "clip")) is None
    assert section_class(()) is Recipe


def test_sections_with_field_returns_dotted_keys() -> None:
    assert sections_with_field("coef") == ["ppo.kl"]
    assert sections_with_field("zzz") == []


def test_replace_keeps_which_fields_the_user_set(write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe("sft: {epochs: 2}"), stages=())
    replaced = recipe.replace(seed=9, ppo=recipe.ppo.replace(clip=0.1))
    assert (replaced.seed, replaced.ppo.clip) == (9, 0.1)
    assert replaced.model_fields_set == recipe.model_fields_set
    assert recipe.seed == 0


def test_iter_paths_yields_each_path_with_its_key(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def g(): ...\n")
    text = "ppo: {reward: [{run: reward}, {python: 'f.py:g'}]}\neval: {python: ['f.py:g']}\n"
    recipe = load_recipe(write_recipe(text), stages=())
    found = {key: (kind.kind, path) for key, kind, path in recipe.iter_paths()}
    assert found[("base", "model")] == ("model", "org/model")
    assert found[("ppo", "reward", 0, "run")] == ("run", "reward")
    assert found[("ppo", "reward", 1, "python")] == ("function", f"{tmp_path}/f.py:g")
    assert found[("eval", "python", 0)] == ("function", f"{tmp_path}/f.py:g")
    assert ("ppo", "reward", 0, "model") not in found
