"""`--set KEY=VALUE`: values are YAML, keys reach into sections and lists, and issues name the option."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.recipe_files import FindIssues, WriteRecipe, load_recipe


def test_set_splits_at_the_first_equals_sign_and_reads_yaml(write_recipe: WriteRecipe) -> None:
    overrides = [
        "sft.trainer.optim_args=a=b",
        "sft.learning_rate=1e-4",
        "adapter.target_modules=[a, b]",
        "seed=7",
        "seed=8",
        "base.revision='123'",
        "ppo.critic={kind: shared}",
        "sft.trainer.optim_target_modules=",
    ]
    recipe = load_recipe(write_recipe("ppo: {critic: {learning_rate: 0.5}}"), overrides, ())
    assert recipe.sft.trainer == {"optim_args": "a=b", "optim_target_modules": None}
    assert recipe.sft.learning_rate == 1e-4
    assert recipe.adapter is not None
    assert recipe.adapter.target_modules == ["a", "b"]
    assert recipe.seed == 8
    assert recipe.base.revision == "123"
    assert (recipe.ppo.critic.kind, recipe.ppo.critic.learning_rate) == ("shared", 0.5)


def test_set_of_index_changes_item_of_list(write_recipe: WriteRecipe) -> None:
    text = "eval: {gates: [{metric: a, min: 1}, {metric: b, min: 2}]}\nadapter: {target_modules: [a, b]}\n"
    recipe = load_recipe(write_recipe(text), ["eval.gates.1.min=5", "adapter.target_modules.0=c"], ())
    assert [gate.min for gate in recipe.eval.gates] == [1, 5]
    assert recipe.adapter is not None
    assert recipe.adapter.target_modules == ["c", "b"]


def test_set_null_removes_the_adapter(write_recipe: WriteRecipe) -> None:
    assert load_recipe(write_recipe("adapter: {rank: 4}"), ["adapter=null"], ()).adapter is None


@pytest.mark.parametrize(
    ("override", "code", "words"),
    [
        (
            "ppo.clip",
            "invalid-override",
            "invalid override; expected KEY=VALUE. Use, for example, --set ppo.kl.coef=0.1.",
        ),
        ("=3", "invalid-override", "expected KEY=VALUE"),
        ("ppo..clip=3", "invalid-override", "expected KEY=VALUE"),
        ("ppo.=3", "invalid-override", "expected KEY=VALUE"),
        ("ppo.clip=[1", "invalid-yaml", "invalid YAML"),
        ("ppo.critic={kind: shared, kind: adapter}", "duplicate-key", "duplicate key"),
        ("ppo.clip=-1", "invalid-value", "ppo.clip: invalid value; found -1, expected a value greater than 0."),
        ("ppo.klip=1", "unknown-key", "ppo.klip: unknown key. Did you mean clip?"),
        (
            "eval.gates.0.min=1",
            "invalid-override",
            "eval.gates: item not found: eval.gates.0.min. Use an existing index, counting from 0.",
        ),
        ("seed.x=1", "invalid-value", "seed: invalid value; found a mapping, expected an integer."),
        (
            "extends=a.yaml",
            "invalid-override",
            "extends: cannot be set on the command line. Set it in the recipe file.",
        ),
        ("seed=!!int x", "invalid-value", "invalid number; found x."),
    ],
)
def test_set_with_issue_is_located_by_the_option(find_issues: FindIssues, override: str, code: str, words: str) -> None:
    (issue,) = find_issues("seed: 1\neval: {gates: []}", override)
    assert (issue.code, issue.location) == (f"recipe.{code}", f"--set {override}")
    assert words in str(issue)


def test_set_of_path_resolves_against_the_working_directory(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe("data: {sft: {path: ../here/a.jsonl, eval_fraction: 0.2}}", "sub/r.yaml")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.jsonl").touch()
    (tmp_path / "here" / "b.jsonl").touch()
    monkeypatch.chdir(tmp_path / "here")
    for override in ("data.sft.path=b.jsonl", "data.sft={path: b.jsonl}"):
        recipe = load_recipe(path, [override], ())
        assert recipe.data.sft is not None
        assert recipe.data.sft[0].path == str(tmp_path / "here" / "b.jsonl")


def test_set_of_data_path_keeps_columns_and_set_of_hub_replaces_the_source(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").touch()
    path = write_recipe("data: {sft: {path: a.jsonl, columns: {prompt: q}}}")
    same = load_recipe(path, ["data.sft.path=a.jsonl"], ()).data.sft
    other = load_recipe(path, ["data.sft.hub=org/rows"], ()).data.sft
    assert same is not None
    assert other is not None
    assert same[0].columns == {"prompt": "q"}
    assert (other[0].hub, other[0].path, other[0].columns) == ("org/rows", None, {})


def test_set_replaces_an_invalid_value_of_the_file(write_recipe: WriteRecipe) -> None:
    assert load_recipe(write_recipe("ppo: {clip: wide}"), ["ppo.clip=0.3"], ()).ppo.clip == 0.3
