"""Each issue of a model, an adapter or a tokenizer, through the stage that loads it: named, with its hint, and no run
left that looks like one; and what is handled instead."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.made_runs import make_run
from tests.support.command import Rlhf

TURNS = [{"role": "user", "content": "Hi there"}]
ROWS = [
    {"prompt": "Once upon", "completion": " a time.", "chosen": " a time.", "rejected": " the sea."},
    {"prompt": "The cat", "completion": " said good night.", "chosen": " said please.", "rejected": " who."},
]
SMALL = (
    "adapter: {rank: 4, alpha: 8}\nsft: {max_steps: 1, batch_size: 1, micro_batch_size: 1, max_length: 64}\n"
    "reward: {start: base, max_steps: 1, batch_size: 1, micro_batch_size: 1, max_length: 64}\n"
    "ppo: {start: base, iterations: 1, rollout_batch_size: 1, minibatches: 1, max_new_tokens: 4, "
    "max_prompt_length: 64, reward: [{rule: {length: {max: 9}}}]}\nexport: {of: sft}\n"
)


@pytest.fixture
def base(recipe_file: Path, tiny_base: Path) -> Path:
    """A copy of the tiny base that may be spoiled, under a small recipe for every stage."""
    folder = recipe_file.parent / "model"
    shutil.copytree(tiny_base, folder)
    kinds = "".join(f"  {kind}: {{path: rows.jsonl, eval_fraction: 0}}\n" for kind in ("sft", "preferences", "prompts"))
    recipe_file.write_text(f"name: bot\nbase: {{model: ./model}}\ndata:\n{kinds}{SMALL}")
    (recipe_file.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def edit(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None takes one out."""
    content = {**json.loads(path.read_text()), **values} if path.exists() else values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def cut(path: Path, size: int = 1000) -> None:
    path.write_bytes(path.read_bytes()[:-size])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def as_pickle(base: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()


def without_a_tensor(base: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})


def fewer_embeddings(base: Path) -> None:
    """The model is cut to the tokens below 300; its tokenizer is not."""
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    weights = {
        k: v[:300].clone() if k in ("model.embed_tokens.weight", "lm_head.weight") else v for k, v in weights.items()
    }
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    edit(base / "config.json", vocab_size=300)


SPOILT: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "weights cut short": (
        lambda base: cut(base / "model.safetensors"),
        "cannot be loaded",
        "complete transformers folder",
    ),
    "weights that are none": (
        lambda base: (base / "model.safetensors").write_bytes(b"version https://git-lfs"),
        "cannot be loaded",
        "complete",
    ),
    "no weights": (lambda base: (base / "model.safetensors").unlink(), "cannot be loaded", "*.safetensors weights"),
    "pickled weights alone": (as_pickle, "pickles alone (pytorch_model.bin)", "*.safetensors"),
    "a tensor is missing": (without_a_tensor, "the weights lack 1 tensors", "download is complete"),
    "another shape": (
        lambda base: edit(base / "config.json", hidden_size=128),
        "such as lm_head.weight: (320, 64), and not (320, 128)",
        "not of one model",
    ),
    "more layers than weights": (
        lambda base: edit(base / "config.json", num_hidden_layers=3),
        "the weights lack",
        "download",
    ),
    "no config": (lambda base: (base / "config.json").unlink(), "config.json", "Name a transformers model"),
    "a config that is no JSON": (lambda base: (base / "config.json").write_text("{"), "cannot be loaded", "complete"),
    "an architecture that is not known": (
        lambda base: edit(base / "config.json", model_type="new"),
        "cannot be loaded",
        "complete transformers folder",
    ),
    "no tokenizer": (
        lambda base: [p.unlink() for p in base.glob("token*")],
        "holds no tokenizer",
        "Copy the model's tokenizer.json",
    ),
    "no end token": (
        lambda base: edit(base / "tokenizer_config.json", eos_token=None),
        "has no end token",
        "Set eos_token",
    ),
    "token ids beyond the embeddings": (fewer_embeddings, "and the model has 300 embeddings", "belongs to the model"),
    "a template that is broken": (
        lambda base: (base / "chat_template.jinja").write_text("{% for %}"),
        "the chat template does not take",
        ".jinja file",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_base_is_named_and_leaves_no_run(rlhf: Rlhf, base: Path, name: str) -> None:
    spoil, says, hint = SPOILT[name]
    spoil(base)
    ended = rlhf("sft", "-r", "r.yaml", "--json")
    assert (ended.code, ended.json["exit_code"]) == (4, 4), ended.err
    (issue,) = ended.json["issues"]
    assert says in issue["message"]
    assert "model" in issue["location"] or str(base) in issue["message"]
    assert hint in issue["hint"]
    assert "Traceback" not in ended.err
    assert not list((base.parent / "runs").rglob("v0001"))


def test_a_base_that_is_neither_here_nor_cached_is_told_before_a_run_is_made(rlhf: Rlhf, base: Path) -> None:
    for words in (("sft",), ("sft", "--dry-run"), ("run", "sft")):
        ended = rlhf(words[0], *words[1:], "-r", "r.yaml", "--set", "base.model=org/model", "--json")
        (issue,) = ended.json["issues"]
        assert (ended.code, issue["location"]) == (4, "--set base.model=org/model")
        assert "org/model is not in the local cache, and HF_HUB_OFFLINE is set." in issue["message"]
        assert "Go online once" in issue["hint"]
    assert not (base.parent / "runs").exists()


def trained(base: Path, folder: Path, **config: Any) -> Path:
    """An adapter on the base, made by peft alone."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = AutoConfig.from_pretrained(base, **config)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    get_peft_model(AutoModelForCausalLM.from_config(shape), lora).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"num_hidden_layers": 1}, "it lacks 14 tensors that the recipe's adapter has on this base"),
        ({"num_hidden_layers": 3}, "it has 14 tensors that have no place there"),
        ({"intermediate_size": 64}, "is (4, 64), and there it is (4, 128)"),
    ],
    ids=["fewer layers", "more layers", "another width"],
)
def test_an_adapter_that_does_not_fit_is_named(rlhf: Rlhf, base: Path, config: dict[str, Any], says: str) -> None:
    trained(base, base.parent / "adapter", **config)
    ended = rlhf("sft", "-r", "r.yaml", "--set", "sft.start=./adapter", "--json")
    (issue,) = ended.json["issues"]
    assert ended.code == 4
    assert issue["location"].endswith("adapter")
    assert says in issue["message"]
    assert "name those, or start from base" in issue["hint"]
    assert not list((base.parent / "runs").rglob("v0001"))


def test_a_run_on_another_base_is_named_before_a_run_is_made(rlhf: Rlhf, base: Path) -> None:
    make_run(base.parent / "runs", "sft", base="0" * 64)
    for words in (("sft",), ("sft", "--dry-run"), ("run", "sft")):
        ended = rlhf(words[0], *words[1:], "-r", "r.yaml", "--set", "sft.start=sft", "--json")
        (issue,) = ended.json["issues"]
        assert (ended.code, issue["location"]) == (4, "--set sft.start=sft")
        assert "sft (v0001) was trained on another base: its-base, not " in issue["message"]
        assert "Run `rlhf sft` again on this base" in issue["hint"]
    assert [path.name for path in (base.parent / "runs/bot/sft").glob("v*")] == ["v0001"]


@pytest.mark.parametrize(
    ("harm", "says"),
    [(flip, "has another content"), (cut, "bytes, and had"), (Path.unlink, "cannot be read: No such file")],
)
def test_a_run_that_is_damaged_is_not_built_on(
    rlhf: Rlhf, base: Path, harm: Callable[[Path], object], says: str
) -> None:
    from rlhf_cli.runs.manifest import hash_files

    run = base.parent / "runs/bot/sft/v0001"
    trained(base, run / "model")
    made = make_run(base.parent / "elsewhere", "sft")
    shutil.copy(made / "manifest.json", run / "manifest.json")
    edit(run / "manifest.json", files=hash_files(run / "model"))
    harm(run / "model" / "adapter_model.safetensors")
    ended = rlhf("export", "-r", "r.yaml", "--json")
    (issue,) = ended.json["issues"]
    assert ended.code == 4
    assert issue["location"].endswith("v0001/model/adapter_model.safetensors")
    assert says in issue["message"]
    assert "Run `rlhf sft` again, or restore the file." in issue["hint"]
    assert not (base.parent / "runs/bot/export").exists()


def scorer(base: Path, folder: Path, labels: int) -> Path:
    """A whole reward model with the base's tokenizer, and no chat template."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    shape = AutoConfig.from_pretrained(base, num_labels=labels)
    AutoModelForSequenceClassification.from_config(shape).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("labels", "says", "hint"),
    [(2, "with 2 labels; a reward model gives one score", "trained as a reward model"), (1, "chat template", "")],
    ids=["two labels", "no chat template for conversations"],
)
def test_a_reward_model_that_cannot_score_is_named(rlhf: Rlhf, base: Path, labels: int, says: str, hint: str) -> None:
    scorer(base, base.parent / "scorer", labels)
    (base.parent / "rows.jsonl").write_text(json.dumps({"prompt": TURNS}) + "\n")
    ended = rlhf("ppo", "-r", "r.yaml", "--set", "ppo.reward=[{model: ./scorer}]", "--json")
    (issue,) = ended.json["issues"]
    assert (ended.code, issue["location"].endswith("scorer")) == (4, True)
    assert says in issue["message"]
    assert hint in issue["hint"]
    assert not list((base.parent / "runs").rglob("v0001"))


# --- handled ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [None, "</s>"], ids=["no pad token", "the end token pads"])
def test_conversations_without_a_template_or_a_pad_token_are_rendered_and_padded(
    rlhf: Rlhf, base: Path, pad: str | None
) -> None:
    edit(base / "tokenizer_config.json", pad_token=pad)
    row = {"messages": [*TURNS, {"role": "assistant", "content": "Good night."}]}
    (base.parent / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (shown,) = rlhf("sft", "-r", "r.yaml", "--dry-run", "--json").json["dry_run"]
    assert shown["example"] == "User: Hi there\nAssistant:⟦ Good night.</s>⟧"
    assert shown["facts"]["pad token"].startswith("<pad> ")


def test_a_whole_model_with_an_invalid_generation_config_is_trained_and_saved(rlhf: Rlhf, base: Path) -> None:
    edit(base / "generation_config.json", temperature=0.3, do_sample=False, eos_token_id=2)
    ended = rlhf("sft", "-r", "r.yaml", "--set", "adapter=null", "--json")
    assert ended.code == 0, ended.err
    saved = json.loads((Path(ended.json["path"]) / "model/generation_config.json").read_text())
    assert (saved["eos_token_id"], "temperature" in saved) == (2, False)
