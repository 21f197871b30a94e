"""From prompts to responses, in token ids, with transformers' `generate`; and the order in which prompts come.

What is sampled is softmax(logits / temperature) and nothing else: every other knob of generation is off, whatever the
model's own generation_config says, or KL(policy ‖ reference) would be measured on another distribution than the one
that answered. Generation's own log-probabilities are not kept: the training forward computes the old ones again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import GenerationConfig, PreTrainedModel

from rlhf_cli.errors import DivergedError


def generate(
    model: PreTrainedModel,
    prompts: list[list[int]],
    *,
    pad_id: int,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
) -> list[list[int]]:
    """Sample one response for each prompt: token ids in the order of the prompts, the end token included.

    A response ends with the first of `stop_ids`, or is cut off at `max_new_tokens`. Prompts of like length share a
    batch of at most `batch_size`, so that little of it is padding. Draws from torch's global generator.
    """
    assert all(prompts), "an empty prompt gives a model nothing to go on from"
    settings = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,  # unset, it would be 50
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids),
        pad_token_id=pad_id,
        use_cache=True,
    )
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    responses: list[list[int]] = [[] for _ in prompts]
    with _plain(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            width = len(prompts[rows[0]])
            # Position ids come from the mask, in `generate`: a left-padded row counts from its own first token.
            padded = [[pad_id] * (width - len(prompts[i])) + prompts[i] for i in rows]
            mask = [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in rows]
            try:
                out = model.generate(
                    input_ids=torch.tensor(padded, device=model.device),  # (b, P)
                    attention_mask=torch.tensor(mask, device=model.device),
                    generation_config=settings,
                )  # (b, P + R)
            except RuntimeError as error:
                if "probability tensor" not in str(error):
                    raise
                mend = "Lower the learning rate; an earlier checkpoint may be well."
                raise DivergedError("the model's logits are not finite.", where="sampling", mend=mend) from error
            for i, tokens in zip(rows, out[:, width:].tolist(), strict=True):
                responses[i] = cut(tokens, stop_ids)
    return responses


def cut(tokens: list[int], stop_ids: Sequence[int]) -> list[int]:
    """The tokens up to the first end token, which is kept: it was sampled, also where it doubles as padding."""
    for index, token in enumerate(tokens):
        if token in stop_ids:
            return tokens[: index + 1]
    return tokens


def is_truncated(response: Sequence[int], stop_ids: Sequence[int]) -> bool:
    """Whether the response ran into the limit: its last token is no end token."""
    return response[-1] not in stop_ids


class PromptOrder:
    """Which prompts come next: seeded shuffles, one after another, each holding every prompt once.

    `served` (prompts handed out so far) is all the state there is: the order is a function of it and the seed.
    """

    def __init__(self, count: int, seed: int) -> None:
        assert count > 0
        self.count, self.seed, self.served = count, seed, 0

    def take(self, number: int) -> list[int]:
        """Indices of the next `number` prompts."""
        taken: list[int] = []
        while len(taken) < number:
            epoch, at = divmod(self.served, self.count)
            shuffled = random.Random(f"{self.seed}/{epoch}").sample(range(self.count), self.count)
            part = shuffled[at : at + number - len(taken)]
            taken += part
            self.served += len(part)
        return taken


@contextmanager
def _plain(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode, and a blank generation_config: `generate` fills what we leave unset from the model's own one, and a
    repetition penalty or a top_k may be in it."""
    own, training = model.generation_config, model.training
    model.generation_config = GenerationConfig()
    model.eval()
    try:
        yield
    finally:
        model.generation_config = own
        model.train(training)
