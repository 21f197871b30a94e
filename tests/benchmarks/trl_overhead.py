"""Measure the overhead of `rlhf sft` and `rlhf reward` over the TRL trainers that they wrap."""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.timing import compare

STEPS = 60
BATCH = 16
LENGTH = 128  # tokens
ROUNDS = 5
VOCAB_SIZE = 512
WORDS = ["the", "dog", "cat", "bird", "saw", "ran", "sat", "on", "under", "by", "big", "tree", "house", "and"]


def run() -> None:
    """Compare training time only: the same small Llama with LoRA, rows and settings, 60 steps, in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_project(folder)
        print("| | rlhf | trl | ratio, median (range) |\n|---|---|---|---|")
        for stage in ("sft", "reward"):
            cells = compare(_our_training(folder, stage), _trl_training(folder, stage), ROUNDS)
            print(f"| {stage} | {cells} |", flush=True)


def _write_project(folder: Path) -> None:
    """Write a base model, the rows and the recipe."""
    from rlhf_cli.recipe.schema import Architecture
    from rlhf_cli.stages.pretrain import make_model, train_tokenizer

    rng = random.Random(0)

    def sentence(words: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(words))

    rows = [
        {"prompt": sentence(12), "chosen": f" {sentence(rng.randint(8, 40))}", "rejected": f" {sentence(30)}"}
        for _ in range(STEPS * BATCH)
    ]
    demonstrations = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    for file, content in (("preferences.jsonl", rows), ("sft.jsonl", demonstrations)):
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in content))
    tokenizer = train_tokenizer([row["prompt"] for row in rows], VOCAB_SIZE)
    make_model(Architecture(), tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    training = (
        f"{{start: base, max_steps: {STEPS}, batch_size: {BATCH}, micro_batch_size: {BATCH}, max_length: {LENGTH}}}"
    )
    (folder / "recipe.yaml").write_text(
        "name: overhead\nbase: {model: ./base}\n"
        "data: {sft: {path: sft.jsonl, eval_fraction: 0}, preferences: {path: preferences.jsonl, eval_fraction: 0}}\n"
        f"sft: {training}\nreward: {training}\n"
    )


def _our_training(folder: Path, stage: str) -> Callable[[], float]:
    """Return a function that runs the stage and returns its training seconds."""
    from rlhf_cli.cli.progress import SilentReporter
    from rlhf_cli.pipeline.runner import run_stage
    from rlhf_cli.recipe.loader import read_recipe

    recipe = read_recipe(folder / "recipe.yaml").recipe

    def train() -> float:
        result = run_stage(stage, recipe, folder / "runs", smoke=False, reporter=SilentReporter())
        seconds: float = result.manifest["metrics"][f"{stage}.train_seconds"]
        return seconds

    return train


def _trl_training(folder: Path, stage: str) -> Callable[[], float]:
    """Return a function that trains with the stage's TRL trainer and returns the seconds."""
    import transformers
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    file, config, trainer_class, model_class, task, model_options = {
        "sft": ("sft.jsonl", SFTConfig, SFTTrainer, AutoModelForCausalLM, "CAUSAL_LM", {}),
        "reward": (
            "preferences.jsonl",
            RewardConfig,
            RewardTrainer,
            AutoModelForSequenceClassification,
            "SEQ_CLS",
            {"num_labels": 1},
        ),
    }[stage]
    rows = load_dataset("json", data_files=str(folder / file), split="train", cache_dir=str(folder / "cache"))

    def train() -> float:
        transformers.set_seed(0)
        settings: dict[str, Any] = {
            "output_dir": str(folder / "trl"),
            "max_steps": STEPS,
            "per_device_train_batch_size": BATCH,
            "learning_rate": 2e-4 if stage == "sft" else 1e-4,
            "max_length": LENGTH,
            "logging_steps": 1,
            "gradient_checkpointing": False,
            "dataloader_pin_memory": False,
            "bf16": False,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
        trainer = trainer_class(
            model=model_class.from_pretrained(folder / "base", **model_options),
            args=config(**settings),
            train_dataset=rows,
            processing_class=AutoTokenizer.from_pretrained(folder / "base"),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type=task),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        begin = time.perf_counter()
        trainer.train()
        return time.perf_counter() - begin

    return train
