"""A tiny base on disk and adapters on it, made by plain PEFT: the references for our loaders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from rlhf_cli.models.loading import silence_library_logging
from rlhf_cli.recipe.schema import Adapter, Base

PAD = 0

MakeAdapter = Callable[..., Path]

Padded = dict[str, dict[str, torch.Tensor]]  # side of the padding: input_ids, attention_mask, position_ids


@pytest.fixture(scope="session", autouse=True)
def silence_libraries() -> None:
    """Silence log messages among the libraries."""
    silence_library_logging()


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a Llama of 2 layers. Return its folder."""
    folder = tmp_path_factory.mktemp("base")
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,  # so that adapters and positions show in the outputs
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(7)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter() -> Adapter:
    """Return adapter settings that match `make_adapter`."""
    return Adapter(rank=4, alpha=8)


@pytest.fixture
def make_adapter(base_folder: Path, tmp_path: Path) -> MakeAdapter:
    """Return a function that writes an adapter with random weights, with plain PEFT."""

    def make(task: str = "CAUSAL_LM", seed: int = 1, name: str = "", **config: object) -> Path:
        torch.manual_seed(seed)
        if task == "SEQ_CLS":
            model = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1)
        else:
            model = AutoModelForCausalLM.from_pretrained(base_folder)
        settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **config}
        model = get_peft_model(model, LoraConfig(task_type=task, **settings))
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3 if "score" in key else 0.1)
        folder = tmp_path / (name or f"{task}-{seed}")
        model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def padded() -> Padded:
    """Return the same three sequences padded on either side: (3, 9) each, with positions that count real tokens."""
    torch.manual_seed(3)
    lengths = (9, 5, 7)
    rows = [torch.randint(3, 64, (n,)) for n in lengths]
    batches = {}
    for side in ("left", "right"):
        ids, mask = torch.full((3, 9), PAD), torch.zeros(3, 9, dtype=torch.long)
        for i, row in enumerate(rows):
            location = slice(9 - len(row), 9) if side == "left" else slice(0, len(row))
            ids[i, location], mask[i, location] = row, 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        batches[side] = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return batches


def base_of(folder: Path, **fields: Any) -> Base:
    """Return the recipe's base section for a model in `folder`."""
    return Base(model=str(folder), **fields)


def scores_by_peft(base: Path, adapter: Path, texts: list[str]) -> list[float]:
    """Return a reward model's scores by plain transformers and PEFT, one text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    scorer = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    scorer.config.pad_token_id = tokenizer.pad_token_id
    model: Any = PeftModel.from_pretrained(scorer, adapter).eval()
    found = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]])
        with torch.no_grad():
            found.append(float(model(input_ids=ids).logits[0, 0]))
    return found
