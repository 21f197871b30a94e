"""Pretraining: packed sequences, and an existing base model whose pretraining continues."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from rlhf_cli.models import loading
from rlhf_cli.pipeline import dry_run
from rlhf_cli.stages.pretrain import END, pack, train_tokenizer
from rlhf_cli.training import trl
from tests.support.training_project import TrainingProject


def test_pack_joins_documents_and_drops_a_single_last_token() -> None:
    tokenizer, texts = train_tokenizer(["ab"], 260), ["aa", "bbb", "a"]
    a, b = (tokenizer(letter)["input_ids"] for letter in "ab")
    end = [tokenizer.convert_tokens_to_ids(END)]
    ids = a + a + end + b + b + b + end + a + end
    (part,) = pack(tokenizer, texts, 4).parts
    assert part["input_ids"] == part["labels"] == [ids[:4], ids[4:8]]
    (part,) = pack(tokenizer, texts, 6).parts
    assert part["input_ids"] == [ids[:6], ids[6:]]


def test_pack_of_no_documents_is_empty() -> None:
    assert pack(train_tokenizer(["ab"], 260), [], 4).kept == 0


def test_tokenizer_has_one_token_per_digit() -> None:
    tokenizer = train_tokenizer(["1234 1234 1234"] * 9, 300)
    assert len(tokenizer("1234")["input_ids"]) == 4
    assert tokenizer.decode(tokenizer("é 12")["input_ids"]) == "é 12"


@pytest.fixture
def base_without_pad(training_project: TrainingProject, tiny_base: Path) -> Path:
    """Copy the tiny base model without its pad token, as many base models come."""
    folder = training_project.folder / "base"
    shutil.copytree(tiny_base, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).pad_token is None
    return folder


def test_pretraining_from_scratch_computes_in_dtype_of_the_recipe(
    training_project: TrainingProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new model has float32 weights, on a GPU too; `auto` is bfloat16 there."""
    used: list[torch.dtype] = []
    library_arguments = trl.arguments

    def record(*args: Any, dtype: torch.dtype) -> dict[str, Any]:
        used.append(dtype)
        return library_arguments(*args, dtype=dtype)

    monkeypatch.setattr(trl, "arguments", record)
    monkeypatch.setattr(loading, "compute_dtype", lambda _base, _device: torch.bfloat16)
    result = training_project.train("pretrain", "pretrain.max_steps=1")
    assert used == [torch.bfloat16]
    assert {tensor.dtype for tensor in load_file(result.path / "model/model.safetensors").values()} == {torch.float32}


def test_pretraining_continues_an_existing_base(training_project: TrainingProject, base_without_pad: Path) -> None:
    overrides = (f"pretrain.start={base_without_pad}", "pretrain.max_steps=2")
    recipe = training_project.load("pretrain", *overrides)
    facts = dry_run.preview("pretrain", recipe, training_project.runs_dir, smoke=False)["facts"]
    assert facts["end tokens"] == "</s> (2)"
    assert "pad token" not in facts
    result = training_project.train("pretrain", *overrides)
    config = json.loads((result.path / "model/config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"]) == (64, 2)
    assert [item["role"] for item in result.manifest["inputs"]] == ["start", "data.pretrain"]
