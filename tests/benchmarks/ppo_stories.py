"""Makes the learning case's world from a small story model: one that ends its sentences, and a judge of them.

An answer is the sentence that goes on a story. Sentences are the model's own, so no data is needed; the base learns to
end them (`rlhf sft`, all weights), the reward model to prefer the cheerful one of two (`rlhf reward`, LoRA).
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_cli.pipeline.runner import run_stage
from tests.benchmarks.ppo_job import LORA_ALPHA, LORA_RANK
from tests.benchmarks.ppo_rlhf import Stopwatch
from tests.support.recipe_files import load_recipe

STORIES, HELD_OUT = 2048, 256
STORY_TOKENS, PROMPT_TOKENS, ANSWER_TOKENS = 96, 48, 48
ANSWERS = 4  # of which the best and the worst become a pair
CHEERFUL = r"happ|lov|play|fun|friend|smil|laugh|nice|good|yummy|together|hug|excit|thank|kind|help|best|joy"
SAD = r"sad|cr(y|ied)|scare|angry|bad|lost|hurt|mad|fell|brok|sorry|afraid|mean|worr|not "


def make(model: Path, folder: Path) -> None:
    """Write base, reward, prompts.jsonl and held_out.jsonl."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    stories = _continued(model, tokenizer, [""] * STORIES, STORY_TOKENS)
    rows = [
        row for story in stories if (row := _split(story)) and len(tokenizer(row["prompt"]).input_ids) <= PROMPT_TOKENS
    ]
    prompts = [{"prompt": row["prompt"]} for row in rows]
    _write(folder / "sft.jsonl", rows)
    _write(folder / "prompts.jsonl", prompts[HELD_OUT:])
    _write(folder / "held_out.jsonl", prompts[:HELD_OUT])
    base = {"model": str(model)}
    data = {"sft": {"path": "sft.jsonl", "eval_fraction": 0.0}}
    sft = {"start": "base", "epochs": 4, "learning_rate": 1e-3, "batch_size": 32, "micro_batch_size": 32}
    shutil.copytree(_stage("sft", folder, {"base": base, "adapter": None, "data": data, "sft": sft}), folder / "base")

    asked = [row["prompt"] for row in prompts[HELD_OUT:]]
    drawn = [_continued(folder / "base", tokenizer, asked, ANSWER_TOKENS) for _ in range(ANSWERS)]
    pairs = []
    for prompt, *answers in zip(asked, *drawn, strict=True):
        ordered = sorted(filter(str.strip, answers), key=cheer)
        if ordered and cheer(ordered[0]) < cheer(ordered[-1]):
            pairs.append({"prompt": prompt, "chosen": ordered[-1], "rejected": ordered[0]})
    _write(folder / "preferences.jsonl", pairs)
    reward = {"start": "base", "epochs": 2, "learning_rate": 2e-3, "batch_size": 32, "micro_batch_size": 32}
    settings = {
        "base": {"model": str(folder / "base")},
        "adapter": {"rank": LORA_RANK, "alpha": LORA_ALPHA},
        "data": {"preferences": {"path": "preferences.jsonl", "eval_fraction": 0.1}},
        "reward": reward,
    }
    shutil.copytree(_stage("reward", folder, settings), folder / "reward")


def cheer(answer: str) -> int:
    """What the pairs are ordered by: cheerful words less sad ones."""
    return len(re.findall(CHEERFUL, answer)) - len(re.findall(SAD, answer))


def _split(story: str) -> dict[str, str] | None:
    """The first sentences of a story and the one behind them, where there are as many."""
    sentences = re.findall(r"\s*[^.!?\n]+[.!?]", story)
    if len(sentences) < 3:
        return None
    return {"prompt": "".join(sentences[:2]).strip(), "completion": sentences[2]}


def _continued(model: Path, tokenizer, prompts: list[str], tokens: int) -> list[str]:
    """What the model at `model` goes on with, special tokens removed."""
    policy = AutoModelForCausalLM.from_pretrained(model)
    found: list[str] = []
    for start in range(0, len(prompts), 256):
        asked = tokenizer(prompts[start : start + 256], padding=True, return_tensors="pt")
        out = policy.generate(**asked, do_sample=True, top_k=0, max_new_tokens=tokens)
        # With its prompt, and that cut off: alone, the tokenizer would take the first space away.
        whole, before = (
            tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (out, out[:, : asked.input_ids.shape[1]])
        )
        found += [text[len(prompt) :] for text, prompt in zip(whole, before, strict=True)]
    return found


def _stage(stage: str, folder: Path, settings: dict) -> Path:
    """The model that `rlhf <stage>` makes."""
    file = folder / f"{stage}.yaml"
    file.write_text(yaml.safe_dump({"name": "stories", **settings}))
    outcome = run_stage(stage, load_recipe(file), folder / "runs", smoke=False, reporter=Stopwatch())
    print(json.dumps(outcome.manifest["metrics"]), flush=True)
    return outcome.path / "model"


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
