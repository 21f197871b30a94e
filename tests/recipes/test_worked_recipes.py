"""Every worked recipe loads for all stages, matches its folder, and has a README whose commands load."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlhf_cli.evaluation.gates import check_gate_metrics
from rlhf_cli.evaluation.metrics import metric_names
from rlhf_cli.recipe.schema import Recipe, Source
from tests.support.recipe_files import load_recipe

FOLDER = Path(__file__).parents[2] / "recipes"
WORKED = ("ai-feedback", "hh-rlhf", "llama-3.1-8b-qlora", "qwen2.5-0.5b-qlora", "ultrafeedback")
STAGES = ("sft", "reward", "ppo", "eval", "export")


@pytest.fixture(params=WORKED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def recipe(name: str) -> Recipe:
    return load_recipe(FOLDER / name / "recipe.yaml", stages=STAGES)


def sources(recipe: Recipe) -> list[Source]:
    data = recipe.data
    return [source for kind in (data.sft, data.preferences, data.prompts) for source in kind or []]


def test_worked_recipes_are_all_tested_here() -> None:
    found = {path.parent.name for path in FOLDER.glob("*/recipe.yaml")}
    assert found - {"demo"} == set(WORKED)


def test_recipe_name_is_that_of_its_folder(name: str, recipe: Recipe) -> None:
    assert recipe.name == name


def test_recipe_trains_an_adapter_on_a_4_bit_base(recipe: Recipe) -> None:
    assert recipe.base.quantize == "nf4"
    assert recipe.adapter is not None


def test_recipe_data_is_from_the_hub_with_separate_evaluation_splits(recipe: Recipe) -> None:
    assert len(sources(recipe)) == 3
    for source in sources(recipe):
        assert source.hub is not None
        assert source.eval_split is not None
        assert source.eval_split.partition("[")[0] != source.split.partition("[")[0]


def test_recipe_prompt_with_completion_fits_micro_batch_and_reward_model(recipe: Recipe) -> None:
    longest = recipe.ppo.max_prompt_length + recipe.ppo.max_new_tokens
    assert longest <= recipe.ppo.micro_batch_tokens
    assert longest <= recipe.reward.max_length


def test_recipe_gates_name_metrics_of_the_evaluation(recipe: Recipe) -> None:
    assert recipe.eval.gates
    check_gate_metrics(recipe.eval.gates, metric_names(recipe))


def test_readme_has_command_licenses_and_marks_estimates(name: str) -> None:
    text = (FOLDER / name / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"rlhf run +-r recipes/{re.escape(name)}/recipe\.yaml", text)
    assert "## Licenses" in text
    assert "an estimate" in text
    assert "unmeasured" in text.lower()


def test_readme_commands_load(name: str) -> None:
    text = (FOLDER / name / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^rlhf \w+ +-r (\S+)(.*)$", text, re.MULTILINE)
    assert commands
    for path, options in commands:
        load_recipe(FOLDER.parent / path, re.findall(r"--set (\S+)", options), stages=STAGES)


def test_readme_options_load(name: str) -> None:
    text = " ".join((FOLDER / name / "README.md").read_text(encoding="utf-8").split())
    for option in re.findall(r"--set (\S+?=[^`\s]+)", text):
        recipe = FOLDER / name / "recipe.yaml"
        epochs = [f"{option.partition('.')[0]}.epochs=null"] if ".max_steps=" in option else []
        load_recipe(recipe, [option, *epochs], stages=STAGES)


def test_readme_snippet_for_own_data_replaces_hub_data(tmp_path: Path) -> None:
    text = (FOLDER / "qwen2.5-0.5b-qlora" / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "data").mkdir()
    for file in ("sft", "preferences", "prompts"):
        (tmp_path / "data" / f"{file}.jsonl").touch()
    adapted = snippet.replace("../qwen2.5-0.5b-qlora", str(FOLDER / "qwen2.5-0.5b-qlora"))
    (tmp_path / "recipe.yaml").write_text(adapted, encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml", stages=STAGES)
    assert {source.path for source in sources(recipe)} == {
        str(tmp_path / "data" / f"{file}.jsonl") for file in ("sft", "preferences", "prompts")
    }
    assert all(source.hub is None for source in sources(recipe))
