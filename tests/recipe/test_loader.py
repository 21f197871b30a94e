"""From a file to a recipe: paths, `extends`, all issues at once, and the resolved recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from rlhf_cli.errors import Issue, RecipeError
from rlhf_cli.recipe.loader import dump, read_recipe
from rlhf_cli.stages import STAGES
from tests.support.issues import raises_issue
from tests.support.recipe_files import FindIssues, WriteRecipe, load_recipe


def codes_and_locations(issues: list[Issue]) -> list[tuple[str, str]]:
    return [(issue.code, issue.location) for issue in issues]


def test_read_recipe_reports_different_issues_at_once_in_order_of_lines(find_issues: FindIssues) -> None:
    text = """name: x
base: {model: org/model, quantise: nf4}
sft:
  learning_rate: fast
  learning_rate: 1e-4
reward:
  batch_size: 12
data:
  sft: {path: absent.jsonl}
"""
    issues = find_issues(text, bare=True)
    assert codes_and_locations(issues) == [
        ("recipe.unknown-key", "r.yaml:2:26"),
        ("recipe.invalid-value", "r.yaml:4:3"),
        ("recipe.duplicate-key", "r.yaml:5:3"),
        ("recipe.not-divisible", "r.yaml:7:3"),
        ("recipe.path-not-found", "r.yaml:9:9"),
    ]
    assert [issue.message.partition(": ")[0] for issue in issues] == [
        "base.quantise",
        "sft.learning_rate",
        "sft.learning_rate",
        "reward.batch_size",
        "data.sft.path",
    ]


def test_read_recipe_of_unknown_key_gives_the_message_of_the_contract(find_issues: FindIssues) -> None:
    (issue,) = find_issues("ppo:\n  learnig_rate: 1")
    assert str(issue) == "r.yaml:4:3  ppo.learnig_rate: unknown key. Did you mean learning_rate?"


def test_read_recipe_omits_issues_that_are_consequences_of_others(find_issues: FindIssues) -> None:
    """A removed value leaves a default, and issues of that default would mislead."""
    text = 'sft: {batch_size: "9", micro_batch_size: 5}\ndata: {sft: {pth: a}, prompts: no}\nseed: !!int x\n'
    issues = find_issues(text, stages=("sft", "ppo"))
    assert [issue.location for issue in issues] == ["r.yaml:3:7", "r.yaml:4:14", "r.yaml:4:23", "r.yaml:5:7"]


def test_read_recipe_empty_section_has_defaults_and_null_adapter_is_none(write_recipe: WriteRecipe) -> None:
    text = "adapter:\nppo:\nsft: {trainer: }\neval: {gates: }\npretrain: {architecture: }\n"
    recipe = load_recipe(write_recipe(text), stages=())
    plain = load_recipe(write_recipe(), stages=())
    for section in ("ppo", "sft", "eval", "pretrain"):
        assert getattr(recipe, section) == getattr(plain, section)
    assert recipe.model_fields_set >= {"ppo", "sft", "eval", "pretrain"}  # set, so these stages run
    assert recipe.adapter is None
    assert plain.adapter is not None


def test_recipe_is_frozen(write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe(), stages=())
    with pytest.raises(ValidationError):
        recipe.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("text", ["schema: 2", "schema: one", "schema: true", "schema: 1.5"])
def test_read_recipe_of_other_schema_version_raises(find_issues: FindIssues, text: str) -> None:
    (issue,) = find_issues(text)
    assert codes_and_locations([issue]) == [("recipe.unsupported-schema", "r.yaml:3:1")]
    assert issue.message == f"schema: unsupported version; found {text[8:]}, expected 1."
    expected = "Install a newer version of rlhf." if text.endswith("2") else "Write `schema: 1`, or remove it."
    assert issue.hint == expected


def test_read_recipe_of_this_schema_version_loads(write_recipe: WriteRecipe) -> None:
    assert load_recipe(write_recipe("schema: 1\nseed: 4\n"), stages=()).seed == 4


# --- paths ----------------------------------------------------------------------------------------------------------


def test_paths_are_resolved_against_the_folder_of_the_recipe(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    (tmp_path / "sub" / "m").mkdir(parents=True)
    (tmp_path / "sub" / "f.py").write_text("def g(): ...\n")
    (tmp_path / "sub" / "t.jinja").touch()
    (tmp_path / "a.jsonl").touch()
    text = "name: x\nbase: {model: m, chat_template: t.jinja}\ndata: {sft: {path: ../a.jsonl}}\nsft: {start: ./m}\n"
    text += "eval: {python: [f.py:g]}\nppo: {reward: [{python: f.py:g}]}\n"
    recipe = load_recipe(write_recipe(text, "sub/r.yaml", bare=True), stages=())
    sub = tmp_path / "sub"
    assert recipe.base.model == str(sub / "m")
    assert recipe.base.chat_template == str(sub / "t.jinja")
    assert recipe.data.sft is not None
    assert recipe.data.sft[0].path == str(tmp_path / "a.jsonl")
    assert recipe.sft.start == str(sub / "m")
    assert recipe.eval.python == [f"{sub}/f.py:g"]
    assert recipe.ppo.reward[0].python == f"{sub}/f.py:g"


@pytest.mark.parametrize("start", ["base", "sft", "sft@latest", "sft@v0012", "other/sft@v0003"])
def test_paths_run_references_and_hub_ids_stay_unchanged(write_recipe: WriteRecipe, start: str) -> None:
    recipe = load_recipe(write_recipe(f"ppo: {{start: {start}}}"), stages=())
    assert recipe.ppo.start == start
    assert recipe.base.model == "org/model"


@pytest.mark.parametrize(("field", "word"), [("sft.start", "base"), ("pretrain.start", "scratch")])
def test_paths_special_words_are_not_folders(write_recipe: WriteRecipe, tmp_path: Path, field: str, word: str) -> None:
    (tmp_path / word).mkdir()
    section, _, name = field.partition(".")
    recipe = load_recipe(write_recipe(f"{section}: {{{name}: {word}}}"), stages=())
    assert getattr(getattr(recipe, section), name) == word


def test_paths_home_directory_is_expanded(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    recipe = load_recipe(write_recipe("name: x\nbase: {model: ~/m}", bare=True), stages=())
    assert recipe.base.model == str(tmp_path / "m")


# --- extends --------------------------------------------------------------------------------------------------------


def test_extends_merges_sections_and_replaces_lists(write_recipe: WriteRecipe) -> None:
    parent = "seed: 3\nppo: {clip: 0.1, gae_lambda: 0.5, kl: {coef: 0.3, horizon: 7}}\n"
    write_recipe(f"{parent}eval: {{gates: [{{metric: a, min: 1}}]}}\n", "p.yaml")
    child = "extends: p.yaml\nname: child\nppo: {gae_lambda: 0.6, kl: {coef: 0.4}}\n"
    recipe = load_recipe(write_recipe(f"{child}eval: {{gates: [{{metric: b, max: 2}}]}}\n", bare=True), stages=())
    assert (recipe.name, recipe.seed, recipe.base.model) == ("child", 3, "org/model")
    assert (recipe.ppo.clip, recipe.ppo.gae_lambda, recipe.ppo.kl.coef, recipe.ppo.kl.horizon) == (0.1, 0.6, 0.4, 7)
    assert [gate.metric for gate in recipe.eval.gates] == ["b"]


def test_extends_data_source_with_other_rows_replaces_the_source(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    write_recipe("data: {sft: {hub: org/rows, config: c, columns: {prompt: q}}, prompts: {hub: org/p}}\n", "p.yaml")
    child = write_recipe("extends: p.yaml\ndata: {sft: {path: a.jsonl}}\n", bare=True)
    recipe = load_recipe(child, stages=())
    assert recipe.data.sft is not None
    assert recipe.data.prompts is not None
    source = recipe.data.sft[0]
    assert (source.hub, source.config, source.columns) == (None, None, {})
    assert recipe.data.prompts[0].hub == "org/p"


def test_extends_data_source_with_other_settings_merges_the_source(write_recipe: WriteRecipe) -> None:
    write_recipe("data: {sft: {hub: org/rows, config: c}}\n", "p.yaml")
    child = write_recipe("extends: p.yaml\ndata: {sft: {eval_fraction: 0.2}}\n", bare=True)
    recipe = load_recipe(child, stages=())
    assert recipe.data.sft is not None
    assert (recipe.data.sft[0].config, recipe.data.sft[0].eval_fraction) == ("c", 0.2)


def test_extends_empty_section_keeps_the_extended_one_and_null_adapter_replaces_it(write_recipe: WriteRecipe) -> None:
    write_recipe("ppo: {clip: 0.1}\nadapter: {rank: 4}\n", "p.yaml")
    recipe = load_recipe(write_recipe("extends: p.yaml\nppo:\nadapter:\n", bare=True), stages=())
    assert recipe.ppo.clip == 0.1
    assert recipe.adapter is None


def test_extends_path_and_issue_belong_to_the_file_that_has_them(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.jsonl").touch()
    write_recipe("data: {sft: {path: a.jsonl}}\nppo: {clip: -1}\n", "deep/p.yaml")
    child = "extends: deep/p.yaml\nsft: {batch_size: 9}\ndata: {prompts: {path: a.jsonl}}\n"
    with pytest.raises(RecipeError) as raised:
        read_recipe(write_recipe(child, bare=True), stages=())
    assert codes_and_locations(list(raised.value.issues)) == [
        ("recipe.invalid-value", "deep/p.yaml:4:7"),
        ("recipe.not-divisible", "r.yaml:2:7"),
        ("recipe.path-not-found", "r.yaml:3:18"),
    ]


def test_extends_chain_of_files_is_merged(write_recipe: WriteRecipe) -> None:
    write_recipe("seed: 1\nppo: {clip: 0.1}\n", "a/one.yaml")
    write_recipe("extends: ../a/one.yaml\nppo: {gae_lambda: 0.5}\n", "b/two.yaml", bare=True)
    recipe = load_recipe(write_recipe("extends: b/two.yaml\nseed: 2\n", bare=True), stages=())
    assert (recipe.seed, recipe.ppo.clip, recipe.ppo.gae_lambda) == (2, 0.1, 0.5)


def test_extends_circle_raises_with_the_chain(write_recipe: WriteRecipe) -> None:
    write_recipe("extends: r.yaml\n", "p.yaml")
    with raises_issue("recipe.circular-extends", error=RecipeError, location="p.yaml:3:1") as issues:
        read_recipe(write_recipe("extends: p.yaml\n"), stages=())
    assert issues[0].message == "extends: circular reference: r.yaml → p.yaml → r.yaml."


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("no.yaml", "recipe.path-not-found", "extends: file not found: no.yaml."),
        ("[a]", "recipe.invalid-value", "extends: invalid value; found a list, expected the path of a recipe."),
    ],
)
def test_extends_of_something_that_is_not_a_file_raises(
    find_issues: FindIssues, text: str, code: str, message: str
) -> None:
    (issue,) = find_issues(f"extends: {text}")
    assert (issue.code, issue.location, issue.message) == (code, "r.yaml:3:1", message)


# --- the resolved recipe --------------------------------------------------------------------------------------------


def test_dump_loads_again_to_an_equal_recipe(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "f.py").write_text("def g(): ...\n")
    text = """
data: {sft: [{path: a.jsonl, weight: 2}, {hub: org/rows, split: "train[:10%]"}], prompts: {run: feedback@latest}}
adapter: null
launch: {processes: 2}
sft: {learning_rate: 1e-7, trainer: {optim: adamw_torch, run_name: "1e4", label_names: [no, 010, .5]}}
ppo: {reward: [{python: "f.py:g", weight: -0.5}], kl: {abort: 30}}
eval: {python: ["f.py:g"], baseline: null, gates: [{metric: a, min: 1.5}]}
feedback: {overlap: 3}
"""
    recipe = load_recipe(write_recipe(text), ["base.revision='12345e6'"], ())
    (tmp_path / "elsewhere").mkdir()
    again = tmp_path / "elsewhere" / "recipe.yaml"
    again.write_text(dump(recipe))
    loaded = load_recipe(again, stages=())
    assert loaded == recipe
    assert loaded.model_fields_set & {spec.section for spec in STAGES.values()} == {"sft", "ppo", "eval", "feedback"}


def test_dump_has_defaults_and_the_section_of_the_stage(write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe(), stages=())
    assert "export:" not in dump(recipe)
    text = dump(recipe, "export")
    assert "dtype: bfloat16" in text
    assert "ppo:" not in text


# --- later issues ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("ppo.start", "r.yaml:4:3"),
        ("ppo.reward.1", "r.yaml:5:27"),
        ("ppo.reward.1.run", "r.yaml:5:28"),
        ("ppo.kl.abort", "r.yaml:3:1"),  # not in the file: the section that it belongs to
        ("export.of", "r.yaml"),
        ("eval.candidate", "--set eval.candidate=sft"),
    ],
)
def test_with_location_of_a_key_gives_its_line(write_recipe: WriteRecipe, location: str, expected: str) -> None:
    path = write_recipe("ppo:\n  start: sft\n  reward: [{run: reward}, {run: ./folder}]\n")
    path.with_name("folder").mkdir()
    loaded = read_recipe(Path("r.yaml"), ["eval.candidate=sft"], ())
    issue = Issue("recipe.invalid-value", "invalid.", location, "Change it.")
    located = loaded.with_location(issue)
    assert located == Issue("recipe.invalid-value", f"{location}: invalid.", expected, "Change it.")


@pytest.mark.parametrize("location", ["ppo", "data.jsonl:3", "/a/ppo.start", "gate win_rate.low", "numpy.ndarray", ""])
def test_with_location_of_other_locations_changes_nothing(write_recipe: WriteRecipe, location: str) -> None:
    issue = Issue("recipe.invalid-value", "invalid.", location)
    assert read_recipe(write_recipe("ppo:\n"), stages=()).with_location(issue) == issue


def test_with_location_of_absolute_path_gives_relative_path(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    issue = Issue("data.empty-completion", "invalid.", f"{tmp_path}/rows.jsonl:3")
    located = read_recipe(write_recipe("ppo:\n"), stages=()).with_location(issue)
    assert located == Issue("data.empty-completion", "invalid.", "rows.jsonl:3")
