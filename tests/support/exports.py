"""A base model and an adapter to export, and a function that runs the export stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.runs.run import Run
from tests.support.reporters import RecordingReporter
from tests.support.stages import run_stage_function

WORDS = ["<unk>", "<s>", "</s>", "<pad>", "user", "assistant", "User", "Assistant", ":", "what", "is", "red", "blue"]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a Llama with 32 words whose files disagree about the end token and whose generation config is invalid."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=7,  # wrong: the tokenizer has 2
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=7, pad_token_id=5)
    model.save_pretrained(folder)
    # Some Hub models have such a file, which save_pretrained refuses to write.
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "temperature": 0.6, "top_p": 0.9}))
    vocabulary = {word: i for i, word in enumerate([*WORDS, *(f"w{i}" for i in range(32 - len(WORDS)))])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    return folder


def save_adapter(folder: Path, base_folder: Path, *, scale: float = 0.1) -> Path:
    """Save an adapter with random weights, with peft only. Return `folder`."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    model = get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=scale)
    model.save_pretrained(folder)
    return folder


class Exporter:
    """Runs the export stage in a temporary runs directory.

    Attributes:
        runs_dir: The runs directory.
        reporter: Records what the runs logged.
    """

    def __init__(self, base_folder: Path, runs_dir: Path) -> None:
        self.base_folder, self.runs_dir = base_folder, runs_dir
        self.reporter = RecordingReporter()

    def __call__(self, of: Path, **sections: Any) -> tuple[dict[str, float], Run]:
        """Export the model in `of` with further sections of the recipe. Return the metrics and the run."""
        settings: dict[str, Any] = {
            "name": "bot",
            "base": {"model": str(self.base_folder)},
            "adapter": {"rank": 4, "alpha": 8},
            **sections,
        }
        settings["export"] = {"of": str(of), **settings.get("export", {})}
        run = Run.create(self.runs_dir, "bot", "export", smoke=False, reporter=self.reporter)
        return run_stage_function(Recipe(**settings), run).metrics, run


@pytest.fixture
def run_export(base_folder: Path, tmp_path: Path) -> Exporter:
    """Return a function that exports a model."""
    return Exporter(base_folder, tmp_path / "runs")
