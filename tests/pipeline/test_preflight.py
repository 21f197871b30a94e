"""What is checked before the first stage trains: references of a whole chain, rows, functions and gates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from rlhf_cli.errors import Issue, ModelError, RecipeError, RlhfError
from rlhf_cli.pipeline import preflight as preflight_module
from rlhf_cli.pipeline.preflight import check_references, check_trackers
from tests.support.chain_project import CHAIN
from tests.support.issues import raises_issue
from tests.support.made_runs import make_run
from tests.support.recipe_files import load_recipe
from tests.support.training_project import TrainingProject

WITH_REWARD_RUN = "ppo.reward=[{run: reward}]"


class Preflight:
    """Checks the references of a recipe."""

    def __init__(self, recipe_file: Path) -> None:
        self.recipe_file, self.runs = recipe_file, recipe_file.parent / "runs"

    def check(self, *overrides: str, stages: Sequence[str] = CHAIN, smoke: bool = False, thorough: bool = True) -> None:
        """Check the references of `stages`."""
        recipe = load_recipe(self.recipe_file, overrides, stages)
        check_references(recipe, stages, self.runs, smoke=smoke, thorough=thorough)

    def issues(self, *overrides: str, stages: Sequence[str] = CHAIN, thorough: bool = True) -> list[Issue]:
        """Return the issues of a check that fails."""
        with pytest.raises(RlhfError) as raised:
            self.check(*overrides, stages=stages, thorough=thorough)
        return list(raised.value.issues)


@pytest.fixture
def preflight(recipe_file: Path) -> Preflight:
    """Return the checks of the recipe."""
    return Preflight(recipe_file)


def test_references_to_runs_of_earlier_stages_pass(preflight: Preflight) -> None:
    preflight.check()
    rows = f"data.pretrain={{path: {preflight.recipe_file}}}"
    preflight.check("base.model=pretrain", rows, stages=["pretrain", *CHAIN])
    assert not preflight.runs.exists()


@pytest.mark.parametrize(
    ("override", "location", "code"),
    [
        ("ppo.reward.0={run: reward@v0009}", "ppo.reward.0", "recipe.run-not-found"),
        ("ppo.start=other/sft@latest", "ppo.start", "recipe.run-not-found"),
        ("eval.candidate=reward", "eval.candidate", "recipe.wrong-stage"),
        ("eval.reward=sft", "eval.reward", "recipe.wrong-stage"),
        ("reward.start=ppo", "reward.start", "recipe.run-not-found"),  # ppo runs later
        ("base.model=sft", "base.model", "recipe.run-not-found"),
        ("data.prompts={run: feedback@latest}", "data.prompts", "recipe.run-not-found"),
    ],
)
def test_bad_reference_is_reported_for_the_whole_chain(
    preflight: Preflight, override: str, location: str, code: str
) -> None:
    issues = preflight.issues(WITH_REWARD_RUN, override)
    assert next(issue.code for issue in issues if issue.location == location) == code
    quick = preflight.issues(WITH_REWARD_RUN, override, thorough=False)
    assert {issue.location for issue in quick} == {issue.location for issue in issues}


def test_missing_run_hint_names_the_stage_to_add(preflight: Preflight) -> None:
    (issue,) = preflight.issues(stages=["sft", "ppo"])
    assert (issue.location, issue.hint) == ("ppo.reward.0", "Run `rlhf reward` first, or add reward to the command.")


def test_missing_run_hint_names_the_section_to_add(preflight: Preflight) -> None:
    recipe = preflight.recipe_file
    recipe.write_text(recipe.read_text().replace("\nreward:", ""))
    stages = ["sft", "ppo", "eval"]
    assert [(issue.location, issue.hint) for issue in preflight.issues(stages=stages)] == [
        ("ppo.reward.0", "Run `rlhf reward` first, or add the section `reward:` to the recipe."),
        (
            "eval.reward",
            "Run `rlhf reward` first, or add the section `reward:` to the recipe, or set eval.reward to null.",
        ),
    ]
    make_run(preflight.runs, "reward")
    preflight.check(stages=stages)


def test_single_stage_needs_its_runs(preflight: Preflight) -> None:
    assert [issue.location for issue in preflight.issues(stages=["ppo"])] == ["ppo.start", "ppo.reward.0"]


def test_run_on_other_base_is_reported_if_thorough(preflight: Preflight) -> None:
    make_run(preflight.runs, "reward", base="0" * 64)
    stages = ["sft", "ppo"]
    preflight.check(stages=stages, thorough=False)
    with raises_issue("model.adapter-of-other-base", error=ModelError, location="ppo.reward.0"):
        preflight.check(stages=stages)


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"r": 4}, "model.adapter-mismatch"),
        ({"init_lora_weights": "pissa"}, "model.unsupported-adapter"),
        ({"bias": "all"}, "model.unsupported-adapter"),
        ({"use_rslora": True}, "model.unsupported-adapter"),
    ],
)
def test_adapter_that_cannot_be_loaded_is_reported(
    preflight: Preflight, tmp_path: Path, config: dict[str, object], code: str
) -> None:
    plain = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "use_dora": False, "bias": "none"}
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(plain))
    preflight.check(f"export.of={folder}", "adapter={rank: 16, alpha: 32}", stages=["export"], thorough=False)
    (folder / "adapter_config.json").write_text(json.dumps({**plain, **config}))
    issues = preflight.issues(f"export.of={folder}", "adapter={rank: 16, alpha: 32}", stages=["export"], thorough=False)
    assert [issue.code for issue in issues] == [code]


def test_base_without_a_layer_to_quantize_is_reported_once_if_thorough(preflight: Preflight) -> None:
    config = {"model_type": "falcon", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    (preflight.recipe_file.parent / "base" / "config.json").write_text(json.dumps(config))
    preflight.check("base.quantize=none")
    preflight.check("base.quantize=nf4", thorough=False)
    (issue,) = preflight.issues("base.quantize=nf4")
    assert (issue.code, issue.location) == ("model.not-quantized", "base.quantize")


def test_hub_model_is_looked_up_only_if_thorough(preflight: Preflight, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve_commit(repo_type: str, repo: str, revision: str, *, location: str) -> str:
        raise ModelError("model.not-found", f"{repo} at {revision}: {repo_type} not found.", location=location)

    monkeypatch.setattr("rlhf_cli.models.hub.resolve_commit", resolve_commit)
    override = "ppo.reward=[{model: org/scorer}]"
    preflight.check(override, thorough=False)
    (issue,) = preflight.issues(override)
    assert (issue.code, issue.location) == ("model.not-found", "ppo.reward.0")


def test_smoke_run_needs_no_runs(preflight: Preflight) -> None:
    preflight.check("ppo.start=other/sft@v0003", stages=["ppo"], smoke=True)


def test_smoke_reference_to_wrong_stage_is_refused(preflight: Preflight) -> None:
    with raises_issue("recipe.wrong-stage", error=RecipeError, location="eval.reward"):
        preflight.check("eval.reward=sft", stages=["eval"], smoke=True)


@pytest.mark.parametrize("stage", CHAIN[:3])
def test_tracker_that_is_not_installed_is_reported(preflight: Preflight, stage: str) -> None:
    assert find_spec("comet_ml") is None
    recipe = load_recipe(preflight.recipe_file, [f"{stage}.trainer={{report_to: [comet_ml, none]}}"], CHAIN)
    with raises_issue("recipe.missing-package", error=RecipeError, location=f"{stage}.trainer.report_to"):
        check_trackers(recipe, CHAIN)
    check_trackers(recipe, ["eval", "export"])


def test_check_completion_beyond_the_context_is_reported_before_sft_trains(training_project: TrainingProject) -> None:
    """The base has 512 positions: no prompt leaves room for 512 more tokens, and the shortest ones for 500."""
    overrides = ["ppo.start=sft", "ppo.max_new_tokens=512"]
    recipe = load_recipe(training_project.folder / "recipe.yaml", overrides, ["sft", "ppo"])
    with raises_issue("recipe.context-exceeded", location="ppo.max_new_tokens"):
        preflight_module.check(recipe, ["sft", "ppo"], training_project.runs_dir)
    overrides[1] = "ppo.max_new_tokens=500"
    recipe = load_recipe(training_project.folder / "recipe.yaml", overrides, ["sft", "ppo"])
    preflight_module.check(recipe, ["sft", "ppo"], training_project.runs_dir)


@pytest.mark.parametrize(
    ("signature", "is_known"),
    [
        ("prompts, completions, **columns", True),
        ("completions, solution", True),  # a column, first found in the last row
        ("completions, *, completion_ids, other=1", True),
        ("completions, other, **columns", False),
        ("completions, *, other", False),
    ],
)
def test_check_argument_that_is_no_column_is_reported_before_sft_trains(
    training_project: TrainingProject, signature: str, is_known: bool
) -> None:
    (training_project.folder / "f.py").write_text(f"def score({signature}): return [0.0] * len(completions)\n")
    rows = [{"prompt": f"the cat {i}"} for i in range(1200)]
    training_project.write_rows("prompts.jsonl", [*rows, {"prompt": "the dog", "solution": "x"}])
    folder = training_project.folder
    overrides = ["ppo.start=sft", f"ppo.reward=[{{python: '{folder}/f.py:score'}}]"]
    overrides.append(f"data.prompts={{path: {folder}/prompts.jsonl}}")
    recipe = load_recipe(training_project.folder / "recipe.yaml", overrides, ["sft", "ppo"])
    if is_known:
        preflight_module.check(recipe, ["sft", "ppo"], training_project.runs_dir)
        return
    with raises_issue("recipe.function-signature", location="ppo.reward.0") as issues:
        preflight_module.check(recipe, ["sft", "ppo"], training_project.runs_dir)
    assert issues[0].message == "unknown argument other of f.py:score."
