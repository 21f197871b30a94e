"""Score a trained policy with code of neither tool: transformers and peft only.

`python -m tests.benchmarks.ppo_judge WORLD POLICY COMPLETION_TOKENS RESULT`; POLICY is an adapter on WORLD/base, or
`base`. Two completions of each held-out prompt are sampled at temperature 1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

COMPLETIONS = 2  # per prompt
BATCH = 128


@torch.no_grad()
def judge(world: Path, adapter: str, completion_tokens: int) -> dict[str, float]:
    """Return means over all completions: reward, KL (k1, nats per completion), and tokens.

    Args:
        world: Folder with base, reward and held_out.jsonl.
        adapter: Folder of the policy's adapter, or `base`.
        completion_tokens: The limit on a completion's tokens.
    """
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(world / "base", padding_side="left")
    reference = AutoModelForCausalLM.from_pretrained(world / "base").eval()
    policy = AutoModelForCausalLM.from_pretrained(world / "base").eval()
    if adapter != "base":
        policy = PeftModel.from_pretrained(policy, adapter).eval()
    scorer = AutoModelForSequenceClassification.from_pretrained(world / "base", num_labels=1)
    scorer = PeftModel.from_pretrained(scorer, world / "reward").eval()
    lines = (world / "held_out.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines] * COMPLETIONS
    rows: list[tuple[float, float, float]] = []
    for start in range(0, len(prompts), BATCH):
        batch = tokenizer(prompts[start : start + BATCH], padding=True, return_tensors="pt")
        width = batch.input_ids.shape[1]
        ids = policy.generate(**batch, do_sample=True, top_k=0, max_new_tokens=completion_tokens)  # (b, P + R)
        completion = ids[:, width:]  # (b, R)
        is_end = completion == tokenizer.eos_token_id
        response_mask = is_end.cumsum(1) - is_end.long() == 0  # (b, R), True up to the first end token, included
        mask = torch.cat([batch.attention_mask.bool(), response_mask], dim=1)  # (b, P + R)
        log_ratios = _logprobs(policy, ids, mask) - _logprobs(reference, ids, mask)  # (b, P + R - 1)
        kl = (log_ratios[:, width - 1 :] * response_mask).sum(1)
        # One row at a time: without padding, a scorer cannot read the wrong position.
        scores = [scorer(input_ids=row[kept][None]).logits.item() for row, kept in zip(ids, mask, strict=True)]
        rows += zip(scores, kl.tolist(), response_mask.sum(1).tolist(), strict=True)
    reward, mean_kl, tokens = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    return {"reward": reward, "kl": mean_kl, "tokens": tokens}


def _logprobs(model: torch.nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the log-probability of each token but the first: (b, T), (b, T) -> (b, T - 1)."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask.long(), position_ids=positions).logits[:, :-1]
    logprobs: Tensor = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return logprobs


if __name__ == "__main__":
    world, policy, completion_tokens, result = sys.argv[1:]
    Path(result).write_text(json.dumps(judge(Path(world), policy, int(completion_tokens))))
