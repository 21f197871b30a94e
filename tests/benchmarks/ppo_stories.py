"""Make the learning case's world from a small story model: a base that ends its sentences, and a reward model.

A completion is the sentence that continues a story. The sentences are the model's own, so no data is needed. The base
learns to end them (`rlhf sft`, all weights), and the reward model to prefer the more cheerful of two (`rlhf reward`,
LoRA).
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_cli.pipeline.runner import run_stage
from rlhf_cli.recipe.loader import read_recipe
from tests.benchmarks.ppo_job import LORA_ALPHA, LORA_RANK
from tests.benchmarks.step_timer import StepTimer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STORIES = 2048
HELD_OUT = 256
STORY_TOKENS = 96
PROMPT_TOKENS = 48
COMPLETION_TOKENS = 48
COMPLETIONS = 4  # per prompt, of which the best and the worst become a pair
BATCH = 256
CHEERFUL = r"happ|lov|play|fun|friend|smil|laugh|nice|good|yummy|together|hug|excit|thank|kind|help|best|joy"
SAD = r"sad|cr(y|ied)|scare|angry|bad|lost|hurt|mad|fell|brok|sorry|afraid|mean|worr|not "


def make(model: Path, folder: Path) -> None:
    """Write base, reward, prompts.jsonl and held_out.jsonl."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    stories = _continue(model, tokenizer, [""] * STORIES, STORY_TOKENS)
    rows = [
        row for story in stories if (row := _split(story)) and len(tokenizer(row["prompt"]).input_ids) <= PROMPT_TOKENS
    ]
    prompts = [{"prompt": row["prompt"]} for row in rows]
    _write(folder / "sft.jsonl", rows)
    _write(folder / "prompts.jsonl", prompts[HELD_OUT:])
    _write(folder / "held_out.jsonl", prompts[:HELD_OUT])
    sft = {
        "base": {"model": str(model)},
        "adapter": None,
        "data": {"sft": {"path": "sft.jsonl", "eval_fraction": 0.0}},
        "sft": {"start": "base", "epochs": 4, "learning_rate": 1e-3, "batch_size": 32, "micro_batch_size": 32},
    }
    shutil.copytree(_run_stage("sft", folder, sft), folder / "base")

    texts = [row["prompt"] for row in prompts[HELD_OUT:]]
    samples = [_continue(folder / "base", tokenizer, texts, COMPLETION_TOKENS) for _ in range(COMPLETIONS)]
    pairs = []
    for prompt, *completions in zip(texts, *samples, strict=True):
        ordered = sorted(filter(str.strip, completions), key=cheerfulness)
        if ordered and cheerfulness(ordered[0]) < cheerfulness(ordered[-1]):
            pairs.append({"prompt": prompt, "chosen": ordered[-1], "rejected": ordered[0]})
    _write(folder / "preferences.jsonl", pairs)
    reward = {
        "base": {"model": str(folder / "base")},
        "adapter": {"rank": LORA_RANK, "alpha": LORA_ALPHA},
        "data": {"preferences": {"path": "preferences.jsonl", "eval_fraction": 0.1}},
        "reward": {"start": "base", "epochs": 2, "learning_rate": 2e-3, "batch_size": 32, "micro_batch_size": 32},
    }
    shutil.copytree(_run_stage("reward", folder, reward), folder / "reward")


def cheerfulness(completion: str) -> int:
    """Return the number of cheerful words minus the number of sad ones, by which pairs are ordered."""
    return len(re.findall(CHEERFUL, completion)) - len(re.findall(SAD, completion))


def _split(story: str) -> dict[str, str] | None:
    """Return the first two sentences of a story and the third, or None if it has fewer."""
    sentences = re.findall(r"\s*[^.!?\n]+[.!?]", story)
    if len(sentences) < 3:
        return None
    return {"prompt": "".join(sentences[:2]).strip(), "completion": sentences[2]}


def _continue(model: Path, tokenizer: PreTrainedTokenizerBase, prompts: list[str], tokens: int) -> list[str]:
    """Return what the model at `model` continues each prompt with, without special tokens."""
    policy = AutoModelForCausalLM.from_pretrained(model)
    completions: list[str] = []
    for start in range(0, len(prompts), BATCH):
        batch = tokenizer(prompts[start : start + BATCH], padding=True, return_tensors="pt")
        output = policy.generate(**batch, do_sample=True, top_k=0, max_new_tokens=tokens)
        # Decoded with the prompt, which is then cut off: without it, the tokenizer would remove the first space.
        texts, prefixes = (
            tokenizer.batch_decode(ids, skip_special_tokens=True)
            for ids in (output, output[:, : batch.input_ids.shape[1]])
        )
        completions += [text[len(prefix) :] for text, prefix in zip(texts, prefixes, strict=True)]
    return completions


def _run_stage(stage: str, folder: Path, settings: dict[str, Any]) -> Path:
    """Run `rlhf <stage>`, and return the folder of its model."""
    file = folder / f"{stage}.yaml"
    file.write_text(yaml.safe_dump({"name": "stories", **settings}))
    result = run_stage(stage, read_recipe(file).recipe, folder / "runs", smoke=False, reporter=StepTimer())
    print(json.dumps(result.manifest["metrics"]), flush=True)
    return result.path / "model"


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
