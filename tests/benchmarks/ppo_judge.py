"""What a trained policy is worth, told by code of neither tool: transformers and peft alone.

`python -m tests.benchmarks.ppo_judge WORLD POLICY ANSWER_TOKENS RESULT`; POLICY is an adapter on WORLD/base, or
`base`. Two answers to each held-out prompt, at temperature 1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

ANSWERS = 2  # to each prompt
BATCH = 128


@torch.no_grad()
def judge(world: Path, adapter: str, answer_tokens: int) -> dict[str, float]:
    """Means over all answers: reward, KL (k1, nats an answer), tokens."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(world / "base", padding_side="left")
    reference = AutoModelForCausalLM.from_pretrained(world / "base").eval()
    policy = AutoModelForCausalLM.from_pretrained(world / "base").eval()
    if adapter != "base":
        policy = PeftModel.from_pretrained(policy, adapter).eval()
    scorer = AutoModelForSequenceClassification.from_pretrained(world / "base", num_labels=1)
    scorer = PeftModel.from_pretrained(scorer, world / "reward").eval()
    prompts = [json.loads(line)["prompt"] for line in (world / "held_out.jsonl").read_text().splitlines()] * ANSWERS
    rows = []
    for start in range(0, len(prompts), BATCH):
        asked = tokenizer(prompts[start : start + BATCH], padding=True, return_tensors="pt")
        width = asked.input_ids.shape[1]
        ids = policy.generate(**asked, do_sample=True, top_k=0, max_new_tokens=answer_tokens)  # (b, P + R)
        answer = ids[:, width:]
        is_end = answer == tokenizer.eos_token_id
        is_answer = is_end.cumsum(1) - is_end.long() == 0  # (b, R), the end token included
        seen = torch.cat([asked.attention_mask.bool(), is_answer], dim=1)
        moved = _logprobs(policy, ids, seen)[:, width - 1 :] - _logprobs(reference, ids, seen)[:, width - 1 :]
        scores = [
            scorer(input_ids=row[kept][None]).logits.item() for row, kept in zip(ids, seen, strict=True)
        ]  # one at a time: no padding to go wrong
        rows += zip(scores, (moved * is_answer).sum(1).tolist(), is_answer.sum(1).tolist(), strict=True)
    reward, kl, tokens = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    return {"reward": reward, "kl": kl, "tokens": tokens}


def _logprobs(model: torch.nn.Module, ids: Tensor, seen: Tensor) -> Tensor:
    """Of each token but the first: (b, T), (b, T) -> (b, T - 1)."""
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=seen.long(), position_ids=positions).logits[:, :-1]
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]


if __name__ == "__main__":
    world, policy, answer_tokens, result = sys.argv[1:]
    Path(result).write_text(json.dumps(judge(Path(world), policy, int(answer_tokens))))
