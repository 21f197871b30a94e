"""The sample stage on tiny models: whose completions it writes, which it drops, and what it refuses."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rlhf_cli.errors import DataError, ModelError
from rlhf_cli.models.loading import silence_library_logging
from rlhf_cli.models.multi_adapter import MultiAdapterModel
from rlhf_cli.pipeline.dry_run import preview
from rlhf_cli.pipeline.runner import run_stage
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.runs import lineage
from rlhf_cli.runs.layout import read_entry
from tests.support.issues import raises_issue
from tests.support.ppo_project import PPOProject
from tests.support.reporters import RecordingReporter

GREEDY = 1e-4  # a temperature at which the most probable token has all of the probability
NEW_TOKENS = 4


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> PPOProject:
    """Write models, among them the whole model `whole-other`, and prompts: 24 of two words, and 8 that are too long."""
    silence_library_logging()
    project = PPOProject(tmp_path_factory.mktemp("sample"))
    other = AutoModelForCausalLM.from_pretrained(project.base)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    other.save_pretrained(project.folder / "whole-other")
    return project


def sample(recipe: Recipe, runs_dir: Path, *, smoke: bool = False) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run the stage. Return its rows and its manifest."""
    result = run_stage("sample", recipe, runs_dir, smoke=smoke, reporter=RecordingReporter())
    return read_lines(result.path / "data" / "train.jsonl"), result.manifest


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def greedy_texts(model: PreTrainedModel | PeftModel, base: Path, prompts: list[str]) -> list[str]:
    """Return the most probable completion of each prompt, by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        output = model.generate(input_ids=ids, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
        texts.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


@pytest.mark.parametrize("whole", [False, True], ids=["adapters", "whole models"])
def test_each_model_gives_its_own_completions(project: PPOProject, tmp_path: Path, whole: bool) -> None:
    folder = project.folder / ("whole-other" if whole else "sft")
    settings: dict[str, Any] = {"of": [str(folder), "base"], "samples_per_prompt": 2, "temperature": GREEDY}
    recipe = project.sample_recipe(**settings, **({"adapter": None} if whole else {}))
    sample(recipe, tmp_path)
    lines = read_lines(tmp_path / "tiny/sample/v0001/samples.jsonl")
    base = AutoModelForCausalLM.from_pretrained(project.base)
    for source, model in (
        (f"{folder.parent.name}/{folder.name}", None),
        (f"base:{project.folder.name}/base", base),
    ):
        if model is None:
            plain = AutoModelForCausalLM.from_pretrained(folder if whole else project.base)
            model = plain if whole else PeftModel.from_pretrained(plain, folder)
        own = [line for line in lines if line["source"] == source]
        assert [line["completions"] for line in own] == [
            [text] for text in greedy_texts(model, project.base, [line["prompt"] for line in own])
        ]
        assert len(own) == 24
    assert len(lines) == 48


def test_whole_models_are_loaded_one_after_the_other(
    project: PPOProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loaded = MultiAdapterModel.load, []

    def record(*args: Any, **options: Any) -> MultiAdapterModel:
        loaded.append([*args[3]])
        return load(*args, **options)

    monkeypatch.setattr(MultiAdapterModel, "load", record)
    of = [str(project.folder / "whole-other"), "base"]
    sample(project.sample_recipe(adapter=None, of=of), tmp_path / "whole")
    sample(project.sample_recipe(of=[str(project.folder / "sft"), "base"]), tmp_path / "adapters")
    assert loaded == [["model_0"], ["model_1"], ["model_0", "model_1"]]


def test_rows_have_distinct_completions_and_the_columns_of_the_prompt(project: PPOProject, tmp_path: Path) -> None:
    rows, manifest = sample(project.sample_recipe(of=["base", str(project.folder / "sft")]), tmp_path)
    given = {row["prompt"]: row for row in read_lines(project.folder / "prompts.jsonl")}
    assert len({row["prompt"] for row in rows}) == len(rows) > 20
    for row in rows:
        assert {name: value for name, value in row.items() if name != "completions"} == given[row["prompt"]]
        texts = [completion["text"] for completion in row["completions"]]
        assert len({*texts}) == len(texts) >= 2
        assert all(text.strip() for text in texts)
    metrics = manifest["metrics"]
    raw = read_lines(tmp_path / "tiny/sample/v0001/samples.jsonl")
    texts_of = Counter(line["prompt"] for line in raw for _ in line["completions"])
    assert {*texts_of.values()} == {4}  # two of each model
    kept = sum(len(row["completions"]) for row in rows)
    assert metrics["sample.prompts"] == len(rows)
    assert metrics["sample.completions"] == kept
    assert metrics["sample.prompts"] + metrics["sample.prompts_dropped"] == 24
    dropped = metrics["sample.duplicates"] + metrics["sample.empty"]
    assert kept + dropped <= 96 <= kept + dropped + metrics["sample.prompts_dropped"]  # at most one each is distinct
    tokens = [number for line in raw for number in line["tokens"]]
    assert metrics["sample.response_length"] == pytest.approx(sum(tokens) / 96)
    assert max(tokens) == NEW_TOKENS
    truncated = sum(flag for line in raw for flag in line["truncated"])
    assert metrics["sample.truncation_rate"] == pytest.approx(truncated / 96)


def test_manifest_lists_the_rows_with_their_hash(project: PPOProject, tmp_path: Path) -> None:
    _, manifest = sample(project.sample_recipe(), tmp_path)
    run = tmp_path / "tiny/sample/v0001"
    assert {path.name for path in run.iterdir()} == {
        *("data", "log.txt", "manifest.json", "metrics.jsonl", "recipe.yaml", "samples.jsonl", "started.json"),
    } - ({"started.json"} if not (run / "started.json").exists() else set())
    assert [*manifest["files"]] == ["train.jsonl"]
    assert lineage.verify(read_entry(run)).files == 1
    (run / "data" / "train.jsonl").write_text("{}\n")
    assert [issue.code for issue in lineage.verify(read_entry(run)).issues] == ["model.damaged-file"]


def test_conversations_get_messages(project: PPOProject, tmp_path: Path) -> None:
    prompts = tmp_path / "chat.jsonl"
    rows = [{"prompt": [{"role": "user", "content": f"w{i}"}], "language": "de"} for i in range(4)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = project.sample_recipe(max_prompt_length=40)
    data = recipe.data.replace(prompts=[recipe.data.prompts[0].replace(path=str(prompts))])  # type: ignore[index]
    found, _ = sample(recipe.replace(data=data), tmp_path / "runs")
    assert found
    for row in found:
        assert (row["prompt"][0]["role"], row["language"]) == ("user", "de")
        for completion in row["completions"]:
            ((message,),) = (completion["text"],)
            assert message["role"] == "assistant"
            assert message["content"] == message["content"].strip() != ""


def test_prompts_held_out_by_hash_are_sampled(project: PPOProject, tmp_path: Path) -> None:
    rows, _ = sample(project.sample_recipe(max_similarity=1.0), tmp_path)
    assert len(rows) == 24


def test_prompts_of_a_held_out_split_are_not_sampled(project: PPOProject, tmp_path: Path) -> None:
    data = tmp_path / "prompts"
    data.mkdir()
    for split, words in (("train", range(6)), ("test", range(6, 9))):
        (data / f"{split}.jsonl").write_text("".join(f'{{"prompt": "w{i}"}}\n' for i in words))
    recipe = project.sample_recipe()
    source = recipe.data.prompts[0].replace(path=str(data), eval_fraction=None, eval_split="test")  # type: ignore[index]
    rows, _ = sample(recipe.replace(data=recipe.data.replace(prompts=[source])), tmp_path / "runs")
    assert {row["prompt"] for row in rows} <= {f"w{i}" for i in range(6)}


def test_number_of_prompts_is_limited_and_larger_limits_add_prompts(project: PPOProject, tmp_path: Path) -> None:
    few, _ = sample(project.sample_recipe(prompts=3, max_prompt_length=40, max_similarity=1.0), tmp_path)
    more, _ = sample(project.sample_recipe(prompts=9, max_prompt_length=40, max_similarity=1.0), tmp_path)
    assert (len(few), len(more)) == (3, 9)
    assert {row["prompt"] for row in few} < {row["prompt"] for row in more}


def test_same_settings_give_the_same_rows_and_another_seed_others(project: PPOProject, tmp_path: Path) -> None:
    recipe = project.sample_recipe()
    first, again, other = (sample(r, tmp_path)[0] for r in (recipe, recipe, recipe.replace(seed=1)))
    assert first == again
    assert {row["prompt"]: row["completions"] for row in first} != {row["prompt"]: row["completions"] for row in other}


def test_equal_completions_only_are_an_error(project: PPOProject, tmp_path: Path) -> None:
    with raises_issue("model.no-distinct-completions", error=ModelError, location="sample"):
        sample(project.sample_recipe(temperature=GREEDY), tmp_path)


def test_prompts_that_are_all_too_long_are_refused_before_a_model_is_loaded(
    project: PPOProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MultiAdapterModel, "load", None)
    with raises_issue("data.no-usable-rows", error=DataError, location="sample.max_prompt_length"):
        sample(project.sample_recipe(max_prompt_length=1), tmp_path)
    assert not list(tmp_path.glob("tiny/sample/v*"))


def test_dry_run_counts_prompts_without_loading_a_model(
    project: PPOProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MultiAdapterModel, "load", None)
    found = preview("sample", project.sample_recipe(of=["base", str(project.folder / "sft")]), tmp_path, smoke=False)
    assert found["facts"]["rows train"] == 24
    assert found["facts"]["of.1"] == str(project.folder / "sft")
    assert found["example"].startswith("w")


def test_smoke_run_samples_few_prompts_from_tiny_models(project: PPOProject, tmp_path: Path) -> None:
    of = ["other/sft@v0003", str(project.folder / "sft"), "base"]
    recipe = project.sample_recipe(of=of, samples_per_prompt=6)
    sft = {"path": str(project.folder / "sft.jsonl")}
    (project.folder / "sft.jsonl").write_text(
        '{"prompt": "w1", "completion": "w2"}\n{"prompt": "w3", "completion": "w4"}\n'
    )
    data = recipe.data.replace(sft=[recipe.data.prompts[0].replace(**sft)])  # type: ignore[index]
    _, manifest = sample(recipe.replace(data=data), tmp_path, smoke=True)
    assert manifest["smoke"]
    assert [item["ref"] for item in manifest["inputs"] if item["role"].startswith("of.")] == ["sft"]
    assert manifest["metrics"]["sample.prompts"] + manifest["metrics"]["sample.prompts_dropped"] == 8
