"""From a file to a recipe: types, `extends`, `--set`, paths, and all issues in one go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rlhf_cli.errors import Issue, RecipeError
from rlhf_cli.recipe.loader import dump, load, read_recipe
from rlhf_cli.recipe.schema import STAGES, Recipe, Section
from tests.support.recipe_files import FaultsOf, Write


def wheres(issues: list[Issue]) -> list[str]:
    return [issue.location for issue in issues]


def sections(section: type[Section] = Recipe) -> Iterator[type[Section]]:
    """Every section class, found through the annotations of the recipe's fields."""
    yield section
    for field in section.model_fields.values():
        waiting: list[Any] = [field.annotation]
        while waiting:
            annotation = waiting.pop()
            if isinstance(annotation, type) and issubclass(annotation, Section):
                yield from sections(annotation)
            waiting += getattr(annotation, "__args__", ())


def test_five_different_faults_are_told_in_one_go_from_top_to_bottom(faults_of: FaultsOf) -> None:
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
    issues = faults_of(text, bare=True)
    assert wheres(issues) == ["r.yaml:2:26", "r.yaml:4:3", "r.yaml:5:3", "r.yaml:7:3", "r.yaml:9:9"]
    says = [
        "base.quantise: unknown key. Did you mean quantize?",
        "sft.learning_rate: found fast, expected a valid number.",
        "sft.learning_rate: duplicate key, first at r.yaml:4:3. Keep one of them.",
        "reward.batch_size: 12 is not a multiple of micro_batch_size 8.",
        "data.sft.path: there is no absent.jsonl.",
    ]
    for issue, text in zip(issues, says, strict=True):
        assert text in str(issue)


def test_no_fault_is_the_echo_of_another(faults_of: FaultsOf) -> None:
    """A value that is taken out leaves a default, and complaints about that default would only confuse."""
    text = 'sft: {batch_size: "9", micro_batch_size: 5}\ndata: {sft: {pth: a}, prompts: no}\nseed: !!int x\n'
    issues = faults_of(text, stages=("sft", "ppo"))
    assert wheres(issues) == ["r.yaml:3:7", "r.yaml:4:14", "r.yaml:4:23", "r.yaml:5:7"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('sft: {batch_size: "8"}', "found '8', expected a valid integer"),
        ("sft: {batch_size: 8.0}", "found 8.0, expected a valid integer"),
        ("sft: {batch_size: true}", "found true, expected a valid integer"),
        ("sft: {batch_size: 0}", "found 0, expected greater than 0"),
        ("sft: {learning_rate: yes}", "found 'yes', expected a valid number"),
        ("adapter: {dora: no}", "found 'no', expected a valid boolean"),
        ("adapter: {rank: }", "found null, expected a valid integer"),
        ("ppo: {gamma: .nan}", "found .nan, expected a finite number"),
        ("ppo: {learning_rate: .inf}", "found .inf, expected a finite number"),
        ("ppo: {learning_rate: 1e999}", "expected a finite number"),
        ("ppo: {gae_lambda: 1.5}", "found 1.5, expected less than or equal to 1"),
        ("seed: 99999999999999999999", "expected less than 4294967296"),
        ("ppo: 7", "found 7, expected a mapping"),
        ("sft: [1]", "found a list, expected a mapping"),
        ("ppo: {reward: {run: reward}}", "found a mapping, expected a valid list"),
        ("ppo: {reward: []}", "found a list, expected at least one item"),
        ("ppo: {reward: [reward]}", "ppo.reward.0: found reward, expected a mapping"),  # and no more than that
        ("data: {sft: []}", "expected at least one item"),
        ("data: {sft: a.jsonl}", "expected a mapping such as {path: rows.jsonl}, or a list of them"),
        ("adapter: {target_modules: 3}", "found 3, expected a valid string or a valid list"),
        ("eval: {gates: [{min: 3}]}", "eval.gates.0.metric: is missing. Add `metric:`."),
        ("sft: {trainer: 5}", "found 5, expected a mapping"),
    ],
)
def test_types_are_strict_and_told_in_the_words_of_a_recipe(faults_of: FaultsOf, text: str, says: str) -> None:
    (issue,) = faults_of(text)
    assert says in str(issue)
    assert issue.location.startswith("r.yaml:3:")


def test_a_number_where_text_is_due_is_told_to_be_quoted(faults_of: FaultsOf) -> None:
    (issue,) = faults_of("name: x\nbase: {model: a/b, revision: 123}", bare=True)
    assert str(issue) == "r.yaml:2:20  base.revision: found 123, expected a valid string. Put it in quotes."


def test_a_value_of_any_length_makes_a_short_message(faults_of: FaultsOf) -> None:
    (issue,) = faults_of(f"sft: {{batch_size: {'x' * 10_000}}}")
    assert len(str(issue)) < 200


@pytest.mark.parametrize("name", ["a/b", "..", "", "x\\n", "a b", "ö", "-x", "x" * 101])
def test_a_name_is_one_plain_folder(faults_of: FaultsOf, name: str) -> None:
    (issue,) = faults_of(f'name: "{name}"\nbase: {{model: a/b}}', bare=True)
    assert issue.location == "r.yaml:1:1"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("ppo: {learnig_rate: 1}", "Did you mean learning_rate?"),
        ("pp: {}", "Did you mean ppo?"),
        ("extend: a.yaml", "Did you mean extends?"),
        ("sft: {clip: 0.2}", "That key belongs under ppo."),
        ("minibatches: 4", "That key belongs under ppo."),
        ("ppo: {rank: 4}", "That key belongs under adapter."),
        ("ppo: {warmup_iterations: 4}", "That key belongs under ppo.critic."),
        ("data: {eval_fraction: 0.1}", "That key belongs under data.pretrain or data.sft"),
        ("eval: {gates: [{metric: a, min: 1, mx: 2}]}", "Did you mean max?"),
        ("data: {sft: [{path: r.yaml}, {path: r.yaml, wieght: 2}]}", "Did you mean weight?"),
        ("export: {zzz: 4}", "Allowed here: of, format, dtype."),
    ],
)
def test_an_unknown_key_is_told_where_it_might_belong(faults_of: FaultsOf, text: str, hint: str) -> None:
    (issue,) = faults_of(text)
    assert "unknown key" in issue.message
    assert issue.hint.startswith(hint)


@pytest.mark.parametrize(
    ("text", "says"),
    [("base: {model: a/b}", "name: is missing"), ("name: x", "base: is missing"), ("name: x\nbase:", "base.model: is")],
)
def test_what_every_recipe_needs(faults_of: FaultsOf, text: str, says: str) -> None:
    (issue,) = faults_of(text, bare=True)
    assert issue.message.startswith(says)


def test_an_empty_section_means_its_defaults_and_null_adapter_none(write: Write) -> None:
    text = "adapter:\nppo:\nsft: {trainer: }\neval: {gates: }\npretrain: {architecture: }\n"
    recipe = load(write(text), stages=())
    plain = load(write(), stages=())
    for section in ("ppo", "sft", "eval", "pretrain"):
        assert getattr(recipe, section) == getattr(plain, section)
    assert recipe.model_fields_set >= {"ppo", "sft", "eval", "pretrain"}  # named, so they run
    assert recipe.adapter is None
    assert plain.adapter is not None


def test_a_recipe_is_frozen(write: Write) -> None:
    recipe = load(write(), stages=())
    with pytest.raises(ValidationError):
        recipe.seed = 3  # type: ignore[misc]


def test_every_field_says_what_it_is() -> None:
    for section in set(sections()):
        assert section.__doc__
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"


# --- paths ---------------------------------------------------------------------------------------------------------


def test_paths_stand_against_the_folder_of_the_recipe(write: Write, tmp_path: Path) -> None:
    (tmp_path / "sub" / "m").mkdir(parents=True)
    (tmp_path / "sub" / "f.py").write_text("def g(): ...\n")
    (tmp_path / "sub" / "t.jinja").touch()
    (tmp_path / "a.jsonl").touch()
    text = "name: x\nbase: {model: m, chat_template: t.jinja}\ndata: {sft: {path: ../a.jsonl}}\nsft: {start: ./m}\n"
    text += "eval: {python: [f.py:g]}\nppo: {reward: [{python: f.py:g}]}\n"
    recipe = load(write(text, "sub/r.yaml", bare=True), stages=())
    sub = tmp_path / "sub"
    assert recipe.base.model == str(sub / "m")
    assert recipe.base.chat_template == str(sub / "t.jinja")
    assert recipe.data.sft is not None
    assert recipe.data.sft[0].path == str(tmp_path / "a.jsonl")
    assert recipe.sft.start == str(sub / "m")
    assert recipe.eval.python == [f"{sub}/f.py:g"]
    assert recipe.ppo.reward[0].python == f"{sub}/f.py:g"


@pytest.mark.parametrize("start", ["base", "sft", "sft@latest", "sft@v0012", "other/sft@v0003"])
def test_runs_and_hub_ids_are_no_paths(write: Write, start: str) -> None:
    recipe = load(write(f"ppo: {{start: {start}}}"), stages=())
    assert recipe.ppo.start == start
    assert recipe.base.model == "org/model"


def test_the_home_folder_is_expanded(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    assert load(write("name: x\nbase: {model: ~/m}", bare=True), stages=()).base.model == str(tmp_path / "m")


# --- extends -------------------------------------------------------------------------------------------------------


def test_extends_merges_sections_and_replaces_lists(write: Write) -> None:
    write(
        "seed: 3\nppo: {clip: 0.1, gae_lambda: 0.5, kl: {coef: 0.3, horizon: 7}}\neval: {gates: [{metric: a, min: 1}]}\n",
        "p.yaml",
    )
    child = (
        "extends: p.yaml\nname: child\nppo: {gae_lambda: 0.6, kl: {coef: 0.4}}\neval: {gates: [{metric: b, max: 2}]}\n"
    )
    recipe = load(write(child, bare=True), stages=())
    assert (recipe.name, recipe.seed, recipe.base.model) == ("child", 3, "org/model")
    assert (recipe.ppo.clip, recipe.ppo.gae_lambda, recipe.ppo.kl.coef, recipe.ppo.kl.horizon) == (0.1, 0.6, 0.4, 7)
    assert [gate.metric for gate in recipe.eval.gates] == ["b"]


def test_extends_replaces_a_data_source_and_does_not_merge_it(write: Write, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    write("data: {sft: {hub: org/rows, config: c, columns: {prompt: q}}, prompts: {hub: org/p}}\n", "p.yaml")
    recipe = load(write("extends: p.yaml\ndata: {sft: {path: a.jsonl}}\n", bare=True), stages=())
    assert recipe.data.sft is not None
    assert recipe.data.prompts is not None
    source = recipe.data.sft[0]
    assert (source.hub, source.config, source.columns) == (None, None, {})
    assert recipe.data.prompts[0].hub == "org/p"


def test_extends_adds_a_setting_to_a_source_that_stays(write: Write) -> None:
    write("data: {sft: {hub: org/rows, config: c}}\n", "p.yaml")
    recipe = load(write("extends: p.yaml\ndata: {sft: {eval_fraction: 0.2}}\n", bare=True), stages=())
    assert recipe.data.sft is not None
    assert (recipe.data.sft[0].config, recipe.data.sft[0].eval_fraction) == ("c", 0.2)


def test_an_empty_section_leaves_the_parents_and_null_adapter_replaces_it(write: Write) -> None:
    write("ppo: {clip: 0.1}\nadapter: {rank: 4}\n", "p.yaml")
    recipe = load(write("extends: p.yaml\nppo:\nadapter:\n", bare=True), stages=())
    assert recipe.ppo.clip == 0.1
    assert recipe.adapter is None


def test_a_path_and_a_fault_belong_to_the_file_that_wrote_them(write: Write, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.jsonl").touch()
    write("data: {sft: {path: a.jsonl}}\nppo: {clip: -1}\n", "deep/p.yaml")
    with pytest.raises(RecipeError) as raised:
        load(
            write("extends: deep/p.yaml\nsft: {batch_size: 9}\ndata: {prompts: {path: a.jsonl}}\n", bare=True),
            stages=(),
        )
    assert wheres(list(raised.value.issues)) == ["deep/p.yaml:4:7", "r.yaml:2:7", "r.yaml:3:18"]


def test_extends_goes_over_several_files(write: Write) -> None:
    write("seed: 1\nppo: {clip: 0.1}\n", "a/one.yaml")
    write("extends: ../a/one.yaml\nppo: {gae_lambda: 0.5}\n", "b/two.yaml", bare=True)
    recipe = load(write("extends: b/two.yaml\nseed: 2\n", bare=True), stages=())
    assert (recipe.seed, recipe.ppo.clip, recipe.ppo.gae_lambda) == (2, 0.1, 0.5)


def test_extends_in_a_circle_is_told(write: Write) -> None:
    write("extends: r.yaml\n", "p.yaml")
    with pytest.raises(RecipeError, match=r"p\.yaml:3:1  extends: goes in a circle: r\.yaml → p\.yaml → r\.yaml"):
        load(write("extends: p.yaml\n"), stages=())


@pytest.mark.parametrize(("text", "says"), [("no.yaml", "there is no file no.yaml"), ("[a]", "expected the path")])
def test_extends_of_nothing_is_told(faults_of: FaultsOf, text: str, says: str) -> None:
    (issue,) = faults_of(f"extends: {text}")
    assert issue.location == "r.yaml:3:1"
    assert says in issue.message


# --- --set ---------------------------------------------------------------------------------------------------------


def test_set_splits_at_the_first_equals_and_reads_yaml(write: Write) -> None:
    overrides = [
        "sft.trainer.optim_args=a=b",
        "sft.learning_rate=1e-4",
        "adapter.target_modules=[a, b]",
        "seed=7",
        "seed=8",
    ]
    overrides += ["base.revision='123'", "ppo.critic={kind: shared}", "sft.trainer.optim_target_modules="]
    recipe = load(write("ppo: {critic: {learning_rate: 0.5}}"), overrides, ())
    assert recipe.sft.trainer == {"optim_args": "a=b", "optim_target_modules": None}
    assert recipe.sft.learning_rate == 1e-4
    assert recipe.adapter is not None
    assert recipe.adapter.target_modules == ["a", "b"]
    assert recipe.seed == 8
    assert recipe.base.revision == "123"
    assert (recipe.ppo.critic.kind, recipe.ppo.critic.learning_rate) == ("shared", 0.5)


def test_set_reaches_into_lists(write: Write) -> None:
    text = "eval: {gates: [{metric: a, min: 1}, {metric: b, min: 2}]}\nadapter: {target_modules: [a, b]}\n"
    recipe = load(write(text), ["eval.gates.1.min=5", "adapter.target_modules.0=c"], ())
    assert [gate.min for gate in recipe.eval.gates] == [1, 5]
    assert recipe.adapter is not None
    assert recipe.adapter.target_modules == ["c", "b"]


def test_set_null_takes_the_adapter_away(write: Write) -> None:
    assert load(write("adapter: {rank: 4}"), ["adapter=null"], ()).adapter is None


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("ppo.clip", "is not KEY=VALUE"),
        ("=3", "is not KEY=VALUE"),
        ("ppo..clip=3", "is not KEY=VALUE"),
        ("ppo.=3", "is not KEY=VALUE"),
        ("ppo.clip=[1", "not YAML"),
        ("ppo.critic={kind: shared, kind: adapter}", "duplicate key"),
        ("ppo.clip=-1", "ppo.clip: found -1, expected greater than 0"),
        ("ppo.klip=1", "ppo.klip: unknown key. Did you mean clip?"),
        ("eval.gates.0.min=1", "eval.gates has no such item"),
        ("seed.x=1", "seed: found a mapping, expected a valid integer"),
        ("extends=a.yaml", "extends is read from the file alone"),
        ("seed=!!int x", "cannot be read as a number"),
    ],
)
def test_a_wrong_set_is_told_with_the_option_itself(faults_of: FaultsOf, override: str, says: str) -> None:
    (issue,) = faults_of("seed: 1\neval: {gates: []}", override)
    assert issue.location == f"--set {override}"
    assert says in str(issue)


def test_a_path_in_set_stands_against_the_working_folder(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("data: {sft: {path: ../here/a.jsonl, eval_fraction: 0.2}}", "sub/r.yaml")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.jsonl").touch()
    (tmp_path / "here" / "b.jsonl").touch()
    monkeypatch.chdir(tmp_path / "here")
    for override in ("data.sft.path=b.jsonl", "data.sft={path: b.jsonl}"):
        recipe = load(path, [override], ())
        assert recipe.data.sft is not None
        assert recipe.data.sft[0].path == str(tmp_path / "here" / "b.jsonl")


def test_set_of_a_path_keeps_the_columns_and_set_of_another_origin_does_not(write: Write, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    path = write("data: {sft: {path: a.jsonl, columns: {prompt: q}}}")
    kept = load(path, ["data.sft.path=a.jsonl"], ()).data.sft
    other = load(path, ["data.sft.hub=org/rows"], ()).data.sft
    assert kept is not None
    assert other is not None
    assert kept[0].columns == {"prompt": "q"}
    assert (other[0].hub, other[0].path, other[0].columns) == ("org/rows", None, {})


def test_set_mends_what_the_file_has_wrong(write: Write) -> None:
    assert load(write("ppo: {clip: wide}"), ["ppo.clip=0.3"], ()).ppo.clip == 0.3


# --- the resolved recipe -------------------------------------------------------------------------------------------


def test_the_resolved_recipe_loads_again_to_an_equal_one(write: Write, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "f.py").write_text("def g(): ...\n")
    text = """
data: {sft: [{path: a.jsonl, weight: 2}, {hub: org/rows, split: "train[:10%]"}], prompts: {run: feedback@latest}}
adapter: null
sft: {learning_rate: 1e-7, trainer: {optim: adamw_torch, run_name: "1e4", label_names: [no, 010, .5]}}
ppo: {reward: [{python: "f.py:g", weight: -0.5}], kl: {abort: 30}}
eval: {python: ["f.py:g"], baseline: null, gates: [{metric: a, min: 1.5}]}
"""
    recipe = load(write(text), ["base.revision='12345e6'"], ())
    (tmp_path / "elsewhere").mkdir()
    again = tmp_path / "elsewhere" / "recipe.yaml"
    again.write_text(dump(recipe))
    loaded = load(again, stages=())
    assert loaded == recipe
    assert loaded.model_fields_set & set(STAGES) == {"sft", "ppo", "eval"}


def test_the_resolved_recipe_has_every_default_and_the_stage_that_ran(write: Write) -> None:
    recipe = load(write(), stages=())
    assert "export:" not in dump(recipe)
    text = dump(recipe, "export")
    assert "dtype: bfloat16" in text
    assert "ppo:" not in text


# --- issues found later --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "place"),
    [
        ("ppo.start", "r.yaml:4:3"),
        ("ppo.reward.1", "r.yaml:5:27"),
        ("ppo.reward.1.run", "r.yaml:5:28"),
        ("ppo.kl.abort", "r.yaml:3:1"),  # not written: the section that it belongs to
        ("export.of", "r.yaml"),
        ("eval.candidate", "--set eval.candidate=sft"),
    ],
)
def test_a_fault_found_later_is_told_at_the_line_of_its_key(write: Write, location: str, place: str) -> None:
    path = write("ppo:\n  start: sft\n  reward: [{run: reward}, {run: ./folder}]\n")
    path.with_name("folder").mkdir()
    loaded = read_recipe(Path("r.yaml"), ["eval.candidate=sft"], ())
    assert loaded.located(Issue("is wrong.", location, "Mend it.")) == Issue(
        f"{location}: is wrong.", place, "Mend it."
    )


@pytest.mark.parametrize("location", ["ppo", "data.jsonl:3", "/a/ppo.start", "gate win_rate.low", "numpy.ndarray", ""])
def test_a_place_that_is_no_key_stays(write: Write, location: str) -> None:
    issue = Issue("is wrong.", location)
    assert read_recipe(write("ppo:\n"), stages=()).located(issue) == issue
