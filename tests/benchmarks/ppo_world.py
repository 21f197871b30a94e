"""Make the world of a timed PPO case: a Llama with random weights, a reward model on it, and prompts.

The lengths of completions are built into the model. Every token's embedding has the same number in dimension 0, and no
layer writes there, so that it is a constant after the last norm; the end token's row of the (tied) head turns it into
the same probability of ending at every step. So both tools draw lengths from one geometric distribution, or, with a
probability of 0, completions that all run to the limit.
"""

from __future__ import annotations

import json
import math
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tests.benchmarks.ppo_job import LORA_ALPHA, LORA_RANK

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PAD, END = 0, 1  # token ids
PROMPTS = 512
CONSTANT = 0.2  # in dimension 0 of every embedding


@dataclass(frozen=True)
class World:
    """Shape of the model and lengths.

    Attributes:
        vocab_size: Tokens in the vocabulary.
        hidden_size: Width of the model.
        intermediate_size: Width of the feed-forward layers.
        layers: Number of layers.
        heads: Attention heads.
        kv_heads: Key-value heads.
        prompt_tokens: Tokens of each prompt.
        response_tokens: The limit on a completion's tokens.
        length_share: Mean length of a completion as a fraction of the limit, or None if all run to the limit.
        whole: Whether the reward model is a whole model, not an adapter.
        dtype: Of weights and computation.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    prompt_tokens: int
    response_tokens: int
    length_share: float | None = None
    whole: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"

    def arguments(self, folder: Path) -> list[str]:
        """Return the command-line arguments of this module that make the world in `folder`."""
        return [json.dumps(asdict(self)), str(folder)]


def make(world: World, folder: Path) -> None:
    """Write base, reward and prompts."""
    import torch

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _base(world, device).save_pretrained(folder / "base")
    _tokenizer(world.vocab_size).save_pretrained(folder / "base")
    _reward(world, folder, device).save_pretrained(folder / "reward")
    rng = random.Random(0)
    words = [f"w{index}" for index in range(2, world.vocab_size)]
    rows = [{"prompt": " ".join(rng.choices(words, k=world.prompt_tokens))} for _ in range(PROMPTS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def end_probability(limit: int, share: float) -> float:
    """Return p with E[min(Geometric(p), limit)] = (1 − (1 − p)^limit) / p = share · limit, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        if (1 - (1 - p) ** limit) / p > share * limit:
            low = p
        else:
            high = p
    return p


def _base(world: World, device: str) -> PreTrainedModel:
    """Return the base model, with the probability of ending built in."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=world.vocab_size,
        hidden_size=world.hidden_size,
        intermediate_size=world.intermediate_size,
        num_hidden_layers=world.layers,
        num_attention_heads=world.heads,
        num_key_value_heads=world.kv_heads,
        max_position_embeddings=2 * (world.prompt_tokens + world.response_tokens),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
        dtype=world.dtype,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, world.dtype))
    with torch.device(device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(before)
    with torch.no_grad():
        table = model.get_input_embeddings().weight  # (V, H)
        table[:, 0] = CONSTANT
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        ids = torch.randint(2, world.vocab_size, (8, world.prompt_tokens), device=device)
        hidden = model.model(ids).last_hidden_state.float()  # (8, T, H)
        constant = hidden[..., 0].mean().item()
        others = (hidden @ table[2:].float().T).logsumexp(-1).mean().item()
        table[[PAD, END]] = 0
        table[[PAD, END], 0] = -50 / constant
        if world.length_share is not None:
            p = end_probability(world.response_tokens, world.length_share)
            table[END, 0] = (math.log(p / (1 - p)) + others) / constant
    return model


def _tokenizer(vocab_size: int) -> PreTrainedTokenizerBase:
    """Return a tokenizer with one token per word, so that a prompt has as many tokens as words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {"<pad>": PAD, "<end>": END} | {f"w{index}": index for index in range(2, vocab_size)}
    words = Tokenizer(models.WordLevel(names, unk_token="w2"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")


def _reward(world: World, folder: Path, device: str) -> Any:
    """Return a scorer with a random head on the base: with random LoRA weights or, if `whole`, with the base's own."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        folder / "base", num_labels=1, dtype=world.dtype, device_map=device
    )
    if world.whole:
        return model
    lora = LoraConfig(task_type="SEQ_CLS", r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear")
    scorer = get_peft_model(model, lora)
    for name, parameter in scorer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    return scorer


if __name__ == "__main__":
    make(World(**json.loads(sys.argv[1])), Path(sys.argv[2]))
