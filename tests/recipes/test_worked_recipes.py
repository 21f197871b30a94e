"""Every worked recipe loads, passes its checks for all stages, fits what its folder says, and has a README."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlhf_cli.evaluation.gates import check_names
from rlhf_cli.evaluation.metrics import metric_names
from rlhf_cli.recipe.loader import load
from rlhf_cli.recipe.schema import Recipe, Source

FOLDER = Path(__file__).parents[2] / "recipes"
WORKED = ("hh-rlhf", "llama-3.1-8b-qlora", "qwen2.5-0.5b-qlora", "ultrafeedback")
STAGES = ("sft", "reward", "ppo", "eval", "export")


@pytest.fixture(params=WORKED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def recipe(name: str) -> Recipe:
    return load(FOLDER / name / "recipe.yaml", stages=STAGES)


def sources(recipe: Recipe) -> list[Source]:
    data = recipe.data
    return [source for kind in (data.sft, data.preferences, data.prompts) for source in kind or []]


def test_no_recipe_is_left_out_of_these_tests() -> None:
    found = {path.parent.name for path in FOLDER.glob("*/recipe.yaml")}
    assert found - {"demo"} == set(WORKED)


def test_a_recipe_is_named_as_its_folder_so_that_runs_do_not_mix(name: str, recipe: Recipe) -> None:
    assert recipe.name == name


def test_every_worked_recipe_is_a_qlora(recipe: Recipe) -> None:
    assert recipe.base.quantize == "nf4"
    assert recipe.adapter is not None


def test_data_come_from_the_hub_and_hold_rows_out(recipe: Recipe) -> None:
    assert len(sources(recipe)) == 3
    for source in sources(recipe):
        assert source.hub is not None
        assert source.eval_split is not None
        assert source.eval_split.partition("[")[0] != source.split.partition("[")[0]


def test_an_answer_and_its_prompt_fit_a_micro_batch_and_the_reward_model(recipe: Recipe) -> None:
    longest = recipe.ppo.max_prompt_length + recipe.ppo.max_new_tokens
    assert longest <= recipe.ppo.micro_batch_tokens
    assert longest <= recipe.reward.max_length


def test_gates_name_metrics_that_the_evaluation_gives(recipe: Recipe) -> None:
    assert recipe.eval.gates
    check_names(recipe.eval.gates, metric_names(recipe))


def test_the_readme_has_the_command_the_licences_and_calls_its_figures_an_estimate(name: str) -> None:
    text = (FOLDER / name / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"rlhf run +-r recipes/{re.escape(name)}/recipe\.yaml", text)
    assert "## Licenses" in text
    assert "an estimate" in text
    assert "unmeasured" in text.lower()


def test_commands_in_a_readme_load(name: str) -> None:
    """Every `rlhf … -r … --set …` that a README shows is one that the recipe takes."""
    text = (FOLDER / name / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^rlhf \w+ +-r (\S+)(.*)$", text, re.MULTILINE)
    assert commands
    for path, options in commands:
        load(FOLDER.parent / path, re.findall(r"--set (\S+)", options), stages=STAGES)


def test_options_named_in_a_readme_load(name: str) -> None:
    text = " ".join((FOLDER / name / "README.md").read_text(encoding="utf-8").split())
    for option in re.findall(r"--set (\S+?=[^`\s]+)", text):
        recipe = FOLDER / name / "recipe.yaml"
        epochs = [f"{option.partition('.')[0]}.epochs=null"] if ".max_steps=" in option else []
        load(recipe, [option, *epochs], stages=STAGES)


def test_your_own_data_replace_the_readmes_hub_data(tmp_path: Path) -> None:
    """The snippet of the first recipe's README is a recipe."""
    text = (FOLDER / "qwen2.5-0.5b-qlora" / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "data").mkdir()
    for file in ("sft", "preferences", "prompts"):
        (tmp_path / "data" / f"{file}.jsonl").touch()
    here = snippet.replace("../qwen2.5-0.5b-qlora", str(FOLDER / "qwen2.5-0.5b-qlora"))
    (tmp_path / "recipe.yaml").write_text(here, encoding="utf-8")
    recipe = load(tmp_path / "recipe.yaml", stages=STAGES)
    assert {source.path for source in sources(recipe)} == {
        str(tmp_path / "data" / f"{file}.jsonl") for file in ("sft", "preferences", "prompts")
    }
    assert all(source.hub is None for source in sources(recipe))
