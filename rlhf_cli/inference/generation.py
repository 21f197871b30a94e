"""From prompts to responses, in token ids, with transformers' `generate`; and the order in which prompts come.

What is sampled is softmax(logits / temperature) and nothing else: every other knob of generation is off, whatever the
model's own generation_config says, or KL(policy ‖ reference) would be measured on another distribution than the one
that answered. Generation's own log-probabilities are not kept: the training forward computes the old ones again.

A batch does not wait for its longest answer at its full size: rows that have ended leave it, halving by halving.
transformers' continuous batching, which would fill their places, was tried: 10 to 30 times slower on a CPU.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from rlhf_cli.errors import DivergedError
from rlhf_cli.inference.stopping import StoppingRules

SMALL_BATCH = 8  # rows; a smaller batch is answered to its end: fewer rows would cost as much a step


def generate(
    model: PreTrainedModel,
    prompts: list[list[int]],
    *,
    pad_id: int,
    stops: StoppingRules,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    synced_gpus: bool = False,
) -> list[list[int]]:
    """Sample one response for each prompt: token ids in the order of the prompts, the end token included.

    A response ends where `stops` says, or is cut off at `max_new_tokens`. Prompts of like length share a batch of at
    most `batch_size`, so that little of it is padding. Draws from torch's global generator. `in_step`: all processes
    call the model equally often, which have as many prompts and the same `batch_size`.
    """
    assert all(prompts), "an empty prompt gives a model nothing to go on from"
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    responses: list[list[int]] = [[] for _ in prompts]
    with neutral_generation_config(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            found = _sample(model, [prompts[i] for i in rows], pad_id, stops, max_new_tokens, temperature, synced_gpus)
            for i, response in zip(rows, found, strict=True):
                responses[i] = response
    return responses


def _sample(
    model: PreTrainedModel,
    prompts: list[list[int]],
    pad_id: int,
    stops: StoppingRules,
    max_new_tokens: int,
    temperature: float,
    synced_gpus: bool,
) -> list[list[int]]:
    """One batch. Whenever half of its rows have ended, those leave it, and the others go on from their cache."""
    width = max(map(len, prompts))
    # Position ids come from the mask, in `generate`: a left-padded row counts from its own first token.
    ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts], device=model.device)  # (b, P)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    rows = list(range(len(prompts)))  # of the prompts that are still being answered
    responses: list[list[int]] = [[] for _ in prompts]
    cache = None
    while rows:
        is_halved = len(rows) >= SMALL_BATCH and not synced_gpus
        watch = _Ends(stops, width, leave_at=len(rows) // 2 if is_halved else len(rows))
        settings = GenerationConfig(
            do_sample=True,
            temperature=temperature,
            top_k=0,  # unset, it would be 50
            top_p=1.0,
            max_new_tokens=width + max_new_tokens - ids.shape[1],
            eos_token_id=list(stops.ids),
            pad_token_id=pad_id,
            use_cache=True,
            return_dict_in_generate=True,
        )
        try:
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList([watch]),
                synced_gpus=synced_gpus,
            )
        except RuntimeError as error:
            if "probability tensor" not in str(error):
                raise
            hint = "Lower the learning rate; an earlier checkpoint may be well."
            raise DivergedError("the model's logits are not finite.", location="sampling", hint=hint) from error
        ids, cache = out.sequences, out.past_key_values  # (b, P + R)
        mask = torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
        is_full = ids.shape[1] == width + max_new_tokens
        left = [at for at, ended in enumerate(watch.ended.tolist()) if not ended and not is_full]
        for at in set(range(len(rows))).difference(left):
            responses[rows[at]] = stops.cut(ids[at, width:].tolist())
        rows = [rows[at] for at in left]
        if rows:
            kept = torch.tensor(left, device=ids.device)
            ids, mask = ids[kept], mask[kept]
            cache.batch_select_indices(kept)
    return responses


class _Ends(StoppingCriteria):
    """Tells `generate` which rows have ended, and all of them once `leave_at` have."""

    def __init__(self, stops: StoppingRules, width: int, leave_at: int) -> None:
        self.stops, self.width, self.leave_at = stops, width, leave_at
        self.ended = torch.zeros(0, dtype=torch.bool)  # (b,)
        self._ids: torch.Tensor | None = None  # the end tokens, on the model's device

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:  # (b, T) -> (b,)
        if self._ids is None:
            self._ids = torch.tensor(self.stops.ids, device=input_ids.device)
            self.ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        if self.stops.strings:
            now = [self.stops.ends(row) for row in input_ids[:, self.width :].tolist()]
            self.ended |= torch.tensor(now, device=input_ids.device)
        else:
            self.ended |= torch.isin(input_ids[:, -1], self._ids)
        return self.ended | (self.ended.sum() >= self.leave_at)


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
def neutral_generation_config(model: PreTrainedModel) -> Iterator[None]:
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
