"""A tiny base model with an sft adapter, a reward adapter, whole models, prompts and a reward function."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from rlhf_cli.recipe.schema import Recipe

VOCABULARY = 32
ADAPTER = {"rank": 4, "alpha": 8}
SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<unk>"]


class PPOProject:
    """Files for the ppo stage in one folder: base, sft, reward, whole-sft, whole-reward, prompts.jsonl, judge.py."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        save_models(folder)
        prompts = [{"prompt": f"w{i} w{i % 5}", "level": float(i)} for i in range(24)]
        prompts += [{"prompt": " ".join([f"w{i}"] * 30), "level": 0.0} for i in range(8)]  # too long
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
        (folder / "judge.py").write_text("def by_level(completions, level):\n    return [x / 10 for x in level]\n")

    @property
    def base(self) -> Path:
        """The base model."""
        return self.folder / "base"

    def reward_function(self, name: str, code: str) -> dict[str, Any]:
        """Write `<name>.py`, and return a reward source with its function `name`."""
        (self.folder / f"{name}.py").write_text(code)
        return {"python": f"{self.folder}/{name}.py:{name}"}

    def recipe(self, *, adapter: Mapping[str, Any] | None = None, whole: bool = False, **ppo: object) -> Recipe:
        """Return a recipe with a run and a function as reward.

        Args:
            adapter: The adapter section, if not the default one.
            whole: Whether to train whole models.
            ppo: Fields of the section `ppo`.
        """
        section = {
            "start": str(self.folder / "sft"),
            "reward": [{"run": str(self.folder / "reward")}, {**self.by_level, "weight": 0.5}],
            "iterations": 2,
            "rollout_batch_size": 4,
            "max_prompt_length": 10,
            "max_new_tokens": 4,
            "epochs": 1,
            "minibatches": 2,
            "save_every": 2,
            **ppo,
        }
        return self._recipe(adapter=None if whole else adapter or ADAPTER, ppo=section)

    def eval_recipe(self, **fields: object) -> Recipe:
        """Return a recipe that compares the sft adapter with the base model; `fields`: further ones of `eval`."""
        section = {"candidate": str(self.folder / "sft"), "baseline": "base", "reward": None, **fields}
        ppo = {"max_prompt_length": 10, "max_new_tokens": 4}
        return self._recipe(adapter=ADAPTER, ppo=ppo, eval=section)

    def sample_recipe(self, *, adapter: Mapping[str, Any] | None = ADAPTER, **fields: object) -> Recipe:
        """Return a recipe that samples from the sft adapter; `fields`: those of `sample`."""
        lengths = {"max_prompt_length": 10, "max_new_tokens": 4, "batch_size": 8}
        section = {"of": [str(self.folder / "sft")], **lengths, **fields}
        return self._recipe(adapter=adapter, sample=section)

    def _recipe(self, **sections: object) -> Recipe:
        prompts = {"path": str(self.folder / "prompts.jsonl"), "eval_fraction": 0.2}
        common = {"name": "tiny", "base": {"model": str(self.base)}, "data": {"prompts": prompts}}
        return Recipe.model_validate({**common, **sections})

    @property
    def by_level(self) -> dict[str, Any]:
        """A reward source that returns a tenth of the prompt's column `level`."""
        return {"python": f"{self.folder}/judge.py:by_level"}


def save_models(folder: Path) -> None:
    """Save a base model with its tokenizer, and an adapter and a whole model of each kind."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    base = folder / "base"
    LlamaForCausalLM(config).save_pretrained(base)
    words = [f"w{i}" for i in range(VOCABULARY - len(SPECIAL_TOKENS))]
    word_tokenizer(words, bos_token="<s>", unk_token="<unk>").save_pretrained(base)
    for name, task, kind in (
        ("sft", "CAUSAL_LM", AutoModelForCausalLM),
        ("reward", "SEQ_CLS", AutoModelForSequenceClassification),
    ):
        options = {"num_labels": 1} if task == "SEQ_CLS" else {}
        lora = LoraConfig(task_type=task, r=4, lora_alpha=8, target_modules="all-linear")
        model = get_peft_model(kind.from_pretrained(base, **options), lora)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(folder / name)
        kind.from_pretrained(base, **options).save_pretrained(folder / f"whole-{name}")


def save_reward_model(folder: Path) -> Path:
    """Save a reward model of another shape than the base, with the words in another order. Return `folder`."""
    words = [f"w{i}" for i in reversed(range(40))]
    word_tokenizer(words).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(SPECIAL_TOKENS) + len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        initializer_range=0.5,
        pad_token_id=0,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


def word_tokenizer(words: list[str], **special_tokens: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer that splits at spaces, with a token for each word."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL_TOKENS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", **special_tokens)
