"""What a stage reads, by content: when it counts as the same again, and what it refuses to build on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.errors import ModelError, RecipeError
from rlhf_cli.pipeline.inputs import Input, collect_inputs, fingerprint, pin_versions
from rlhf_cli.pipeline.local_imports import find_local_imports
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.runs import layout
from rlhf_cli.runs.manifest import MANIFEST_FILE, sha256
from tests.support.recipe_files import load_recipe

TEXT = """
name: bot
base: {model: ./base, chat_template: t.jinja}
adapter: {rank: 4}
data: {sft: {path: a.jsonl}, preferences: {path: rows}, prompts: {path: a.jsonl}, pretrain: {path: a.jsonl}}
ppo: {reward: [{run: reward}, {python: "f.py:score", weight: 0.5}]}
eval: {python: ["f.py:score"]}
"""
FindKey = Callable[..., str]


def write_world(folder: Path) -> Path:
    (folder / "base").mkdir(parents=True)
    (folder / "rows").mkdir()
    (folder / "base" / "config.json").write_text("w")
    (folder / "a.jsonl").write_text("{}\n")
    (folder / "rows" / "b.jsonl").write_text("{}\n")
    (folder / "t.jinja").write_text("{{ messages }}")
    (folder / "f.py").write_text("def score(): ...\ndef other(): ...\n")
    (folder / "r.yaml").write_text(TEXT)
    return folder


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A recipe with everything that a stage can read."""
    return write_world(tmp_path / "world")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def make_run(runs: Path, stage: str, *, name: str = "bot", base: str | None = None, **facts: Any) -> Path:
    """A complete run; `base` is the hash of what it was trained on."""
    path = layout.claim(runs, name, stage)
    inputs = [] if base is None else [{"role": "base", "ref": "its-base", "sha256": base}]
    manifest = {"schema": 1, "stage": stage, "name": name, "smoke": False, "inputs": inputs, "metrics": {}, **facts}
    (path / MANIFEST_FILE).write_text(json.dumps(manifest))
    return path


@pytest.fixture
def key(world: Path, runs: Path) -> FindKey:
    """The fingerprint of a stage of the recipe as it stands now."""
    make_run(runs, "sft")
    make_run(runs, "reward")
    make_run(runs, "ppo")

    def find(stage: str, *overrides: str, folder: Path = world, smoke: bool = False) -> str:
        recipe = load_recipe(folder / "r.yaml", overrides, (stage,))
        return fingerprint(stage, recipe, collect_inputs(stage, recipe, runs, smoke=smoke), smoke=smoke)

    return find


def by_role(stage: str, recipe: Recipe, runs: Path, *, smoke: bool = False) -> dict[str, Input]:
    return {item.role: item for item in collect_inputs(stage, recipe, runs, smoke=smoke)}


@pytest.mark.usefixtures("key")
def test_every_input_of_ppo_and_eval_has_a_hash(world: Path, runs: Path) -> None:
    recipe = load_recipe(world / "r.yaml", (), ("ppo",))
    ppo = by_role("ppo", recipe, runs)
    assert set(ppo) == {"base", "base.chat_template", "start", "ppo.reward.0", "ppo.reward.1", "data.prompts"}
    assert (ppo["start"].kind, ppo["start"].ref, ppo["start"].version) == ("run", "sft", "v0001")
    assert Path(ppo["start"].path) == runs / "bot" / "sft" / "v0001"
    assert (ppo["base"].kind, ppo["ppo.reward.1"].kind, ppo["data.prompts"].kind) == ("folder", "file", "file")
    evaluated = by_role("eval", recipe, runs)
    assert {"candidate", "baseline", "reward", "eval.python.0", "data.sft", "data.preferences"} <= set(evaluated)
    assert all(item.sha256 for item in [*ppo.values(), *evaluated.values()])


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "ppo", "eval", "export"])
def test_the_same_recipe_has_the_same_fingerprint(key: FindKey, stage: str) -> None:
    assert key(stage) == key(stage)


@pytest.mark.parametrize(
    ("stage", "override"),
    [
        ("sft", "sft.learning_rate=0.5"),
        ("sft", "sft.trainer.optim=sgd"),
        ("sft", "adapter.rank=8"),
        ("sft", "adapter=null"),
        ("sft", "seed=1"),
        ("sft", "base.quantize=nf4"),
        ("sft", "base.chat_template=auto"),
        ("sft", "data.sft.eval_fraction=0.5"),
        ("pretrain", "pretrain.architecture.layers=2"),
        ("reward", "reward.start=base"),
        ("ppo", "ppo.kl.coef=0.5"),
        ("ppo", "ppo.reward.1.weight=0.6"),
        ("eval", "eval.baseline=null"),
        ("eval", "ppo.max_new_tokens=9"),  # how long its answers may be
        ("export", "export.dtype=float16"),
    ],
)
def test_a_setting_of_the_stage_changes_it(key: FindKey, stage: str, override: str) -> None:
    assert key(stage, override) != key(stage)


@pytest.mark.parametrize(
    ("stage", "override"),
    [
        ("sft", "ppo.kl.coef=0.5"),
        ("sft", "name=bot"),
        ("sft", "data.prompts.eval_fraction=0.5"),
        ("ppo", "sft.learning_rate=0.5"),
        ("ppo", "eval.samples=3"),
        ("pretrain", "adapter.rank=8"),
        ("pretrain", "base.quantize=nf4"),
        ("export", "ppo.clip=0.5"),
        ("sft", "sft.learning_rate=0.0002"),  # its default
    ],
)
def test_what_the_stage_does_not_read_does_not(key: FindKey, stage: str, override: str) -> None:
    assert key(stage, override) == key(stage)


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("sft", "a.jsonl"),
        ("sft", "base/config.json"),
        ("sft", "t.jinja"),
        ("reward", "rows/b.jsonl"),
        ("ppo", "f.py"),
        ("eval", "f.py"),
        ("eval", "rows/b.jsonl"),
        ("export", "base/config.json"),
    ],
)
def test_the_content_of_what_it_reads_changes_it(key: FindKey, world: Path, stage: str, file: str) -> None:
    before = key(stage)
    (world / file).write_text((world / file).read_text() + " ")
    assert key(stage) != before


def test_a_further_file_in_a_folder_changes_it(key: FindKey, world: Path) -> None:
    before = key("reward")
    (world / "rows" / "c.jsonl").touch()
    assert key("reward") != before


IMPORTING = """
import os, json, words.lists as lists
from tone import polite
def score(): from late import later
"""


@pytest.mark.parametrize("stage", ["ppo", "eval"])
@pytest.mark.parametrize(
    "imported", ["words/__init__.py", "words/lists.py", "words/more.py", "words/deep/there.py", "tone.py", "late.py"]
)
def test_what_a_reward_file_imports_from_its_folder_changes_it(
    key: FindKey, world: Path, stage: str, imported: str
) -> None:
    (world / "words" / "deep").mkdir(parents=True)
    (world / "f.py").write_text(IMPORTING)
    (world / "tone.py").write_text("import f  # a circle\n")
    for name in ("words/__init__.py", "words/more.py", "words/deep/there.py", "late.py", "unused.py"):
        (world / name).touch()
    outside = f"from ... import outside\nfrom {'.' * 99} import x\n"
    (world.parent / "outside.py").touch()
    (world / "words" / "lists.py").write_text(f"from . import more\nfrom .deep import there\n{outside}")
    before = key(stage)
    (world / "unused.py").write_text("1")
    assert key(stage) == before
    (world / imported).write_text((world / imported).read_text() + "\n")
    assert key(stage) != before


@pytest.mark.usefixtures("key")
def test_each_file_of_a_reward_function_is_an_input_with_its_hash(world: Path, runs: Path) -> None:
    (world / "f.py").write_text("import tone\ndef score(): ...\n")
    (world / "tone.py").write_text("1")
    found = by_role("ppo", load_recipe(world / "r.yaml", (), ("ppo",)), runs)
    assert found["ppo.reward.1"].ref == f"{world}/f.py:score"
    assert found["ppo.reward.1/tone.py"].sha256 == sha256(world / "tone.py")


def test_a_reward_file_that_is_no_python_is_told_when_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def (:")
    assert find_local_imports(tmp_path / "f.py") == []


@pytest.fixture
def scorer(world: Path) -> Path:
    """A recipe with a reward model, a server and a rule."""
    (world / "scorer").mkdir()
    (world / "scorer" / "config.json").write_text("s")
    other = [{"model": "./scorer"}, {"http": "http://host/score"}, {"rule": {"pattern": "x"}}]
    (world / "r.yaml").write_text(TEXT.replace("[{run: reward}", f"[{{run: reward}}, {json.dumps(other)[1:-1]}"))
    return world


@pytest.mark.parametrize(
    "override",
    ["ppo.reward.2.http=http://other/score", "ppo.reward.3.rule.pattern=y", "ppo.reward.1.weight=2", "weights"],
)
def test_what_a_reward_source_says_changes_it(key: FindKey, scorer: Path, override: str) -> None:
    before = key("ppo")
    if override == "weights":
        (scorer / "scorer" / "config.json").write_text("others")
    assert key("ppo", *([] if override == "weights" else [override])) != before


@pytest.mark.usefixtures("scorer")
@pytest.mark.parametrize("field", ["timeout=3", "batch_size=3", "retries=0"])
def test_how_a_reward_server_is_reached_does_not(key: FindKey, field: str) -> None:
    """So a run that a server's failure ended may go on with more patience."""
    assert key("ppo", f"ppo.reward.2.{field}") == key("ppo")


@pytest.mark.usefixtures("key")
def test_a_hub_reward_model_is_pinned_to_its_commit(
    scorer: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, key: FindKey
) -> None:
    asked = []

    def commit_of(kind: str, repo: str, revision: str, **_: str) -> str:
        asked.append((kind, repo, revision))
        return f"{revision}-commit"

    monkeypatch.setattr("rlhf_cli.models.hub.resolve_commit", commit_of)
    overrides = ["ppo.reward.1.model=org/scorer", "ppo.reward.1.revision=v1"]
    recipe = load_recipe(scorer / "r.yaml", overrides, ("ppo",))
    inputs = collect_inputs("ppo", recipe, runs, smoke=False)
    found = next(item for item in inputs if item.role == "ppo.reward.1")
    assert (found.kind, found.version, found.sha256) == ("hub", "v1-commit", "v1-commit")
    terms = pin_versions("ppo", recipe, inputs).ppo.reward
    assert [(term.model, term.revision) for term in terms[:2]] == [(None, None), ("org/scorer", "v1-commit")]
    assert terms[0].run == "bot/reward@v0001"
    key("ppo", overrides[0])
    assert asked == [("model", "org/scorer", "v1"), ("model", "org/scorer", "main")]
    assert key("ppo", *overrides) != key("ppo", overrides[0])


@pytest.mark.parametrize(("stage", "field"), [("ppo", "ppo.reward.1.python"), ("eval", "eval.python.0")])
def test_another_function_of_the_same_file_changes_it(key: FindKey, world: Path, stage: str, field: str) -> None:
    assert key(stage, f"{field}={world}/f.py:other") != key(stage)


@pytest.mark.parametrize(("stage", "made"), [("ppo", "sft"), ("ppo", "reward"), ("reward", "sft"), ("export", "ppo")])
def test_a_newer_input_run_changes_it(key: FindKey, runs: Path, stage: str, made: str) -> None:
    before = key(stage)
    make_run(runs, made, started="later")
    assert key(stage) != before


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "ppo", "eval", "export"])
def test_the_place_of_the_files_and_the_name_do_not_change_it(key: FindKey, tmp_path: Path, stage: str) -> None:
    moved = write_world(tmp_path / "elsewhere")
    assert key(stage, folder=moved) == key(stage)


def test_a_smoke_run_is_another_thing(key: FindKey) -> None:
    assert key("pretrain", smoke=True) != key("pretrain")


def test_what_is_absent_is_told_in_one_go_by_its_key(world: Path, runs: Path) -> None:
    recipe = load_recipe(world / "r.yaml", (), ("ppo",))
    with pytest.raises(RecipeError) as raised:
        collect_inputs("ppo", recipe, runs, smoke=False)
    assert [issue.location for issue in raised.value.issues] == ["ppo.start", "ppo.reward.0"]


@pytest.mark.parametrize(
    ("override", "location"),
    [("ppo.start=reward", "ppo.start"), ("ppo.reward.0.run=sft", "ppo.reward.0"), ("base.model=sft", "base.model")],
)
@pytest.mark.usefixtures("key")
def test_a_run_of_the_wrong_stage_is_refused(world: Path, runs: Path, override: str, location: str) -> None:
    recipe = load_recipe(world / "r.yaml", [override], ("ppo",))
    with pytest.raises(RecipeError, match=r"is a \w+ run, expected") as raised:
        collect_inputs("ppo", recipe, runs, smoke=False)
    assert raised.value.issues[0].location == location


@pytest.mark.usefixtures("key")
def test_a_folder_of_a_run_is_that_run(world: Path, runs: Path) -> None:
    (runs / "bot" / "sft" / "latest").symlink_to("v0001")
    recipe = load_recipe(world / "r.yaml", [f"ppo.start={runs}/bot/sft/latest"], ("ppo",))
    start = by_role("ppo", recipe, runs)["start"]
    assert (start.kind, start.version, start.path) == ("run", "v0001", str(runs / "bot/sft/v0001"))


@pytest.mark.usefixtures("key")
def test_a_folder_of_a_run_is_held_to_the_same_rules(world: Path, runs: Path) -> None:
    smoke = make_run(runs, "sft", smoke=True)
    for folder, says in ((smoke, "is a smoke run"), (runs / "bot/reward/v0001", "is a reward run, expected")):
        recipe = load_recipe(world / "r.yaml", [f"ppo.start={folder}"], ("ppo",))
        with pytest.raises(RecipeError, match=says):
            collect_inputs("ppo", recipe, runs, smoke=False)


def test_a_run_on_another_base_is_refused(world: Path, runs: Path) -> None:
    recipe = load_recipe(world / "r.yaml", (), ("reward",))
    base = by_role("sft", recipe, runs)["base"].sha256
    make_run(runs, "sft", base=base)
    collect_inputs("reward", recipe, runs, smoke=False)
    make_run(runs, "sft", base="0" * 64)
    with pytest.raises(ModelError, match=r"sft \(v0002\) was trained on another base: its-base") as raised:
        collect_inputs("reward", recipe, runs, smoke=False)
    assert raised.value.exit_code == 4
    assert "rlhf sft" in raised.value.issues[0].hint
