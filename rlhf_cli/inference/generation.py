"""Sample responses to prompts, in token ids, with transformers' `generate`.

Tokens are sampled from softmax(logits / temperature) only: all other generation options are off, including those of the
model's own generation_config. Otherwise KL(policy ‖ reference) would be measured on another distribution than the
sampled one. The log-probabilities of generation are not kept: the training forward pass computes them again.

A batch does not keep its full size until its longest response ends: each time half of its rows have ended, they leave
it. transformers' continuous batching, which fills their places, was 10 to 30 times slower on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from rlhf_cli.errors import DivergedError
from rlhf_cli.inference.stopping import StoppingRules

MIN_ROWS_TO_SHRINK = 8  # in a smaller batch, a step costs as much with fewer rows


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
    """Sample one response per prompt from torch's global generator. A response includes its end token.

    Args:
        model: The model.
        prompts: Token ids, at least one prompt, none empty.
        pad_id: The id to pad with.
        stops: Where a response ends.
        max_new_tokens: Tokens after which a response is cut off.
        temperature: Divides the logits.
        batch_size: Rows of the largest batch. Prompts of similar length share a batch, so that little of it is
            padding, and all batches have about the same size: a small one takes as many steps as a large one.
        synced_gpus: Run the same number of forward passes on every process (required by FSDP). All processes must have
            the same number of prompts and the same `batch_size`.

    Returns:
        The responses' token ids, in the order of the prompts.

    Raises:
        DivergedError: The model's logits are not finite.
    """
    assert prompts, "no prompts"
    assert all(prompts), "empty prompt"
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    responses: list[list[int]] = [[] for _ in prompts]
    with neutral_generation_config(model):
        batches = math.ceil(len(order) / batch_size)
        for first, end in pairwise(len(order) * i // batches for i in range(batches + 1)):
            rows = order[first:end]
            batch = [prompts[i] for i in rows]
            sampled = _sample_batch(model, batch, pad_id, stops, max_new_tokens, temperature, synced_gpus=synced_gpus)
            for row, response in zip(rows, sampled, strict=True):
                responses[row] = response
    return responses


@contextmanager
def neutral_generation_config(model: PreTrainedModel) -> Iterator[None]:
    """Put the model in eval mode with a blank generation_config inside the block.

    `generate` fills the options that we do not set from the model's own config, which may hold a repetition penalty or
    a top_k.
    """
    own_config, training = model.generation_config, model.training
    model.generation_config = GenerationConfig()
    model.eval()
    try:
        yield
    finally:
        model.generation_config = own_config
        model.train(training)


def _sample_batch(
    model: PreTrainedModel,
    prompts: list[list[int]],
    pad_id: int,
    stops: StoppingRules,
    max_new_tokens: int,
    temperature: float,
    *,
    synced_gpus: bool,
) -> list[list[int]]:
    """Sample responses to one batch of prompts. When half of the rows have ended, the others continue without them."""
    ids, mask = _pad_left(prompts, pad_id, model.device)  # (b, P) each
    prompt_width = ids.shape[1]
    active = list(range(len(prompts)))  # indices of the prompts in the batch, in the order of its rows
    responses: list[list[int]] = [[] for _ in prompts]
    cache = None
    while active:
        can_shrink = len(active) >= MIN_ROWS_TO_SHRINK and not synced_gpus
        finite_logits = _FiniteLogits(ids.device)
        criteria = _BatchStoppingCriteria(
            stops,
            prompt_width,
            finite_logits,
            ended=torch.zeros(len(active), dtype=torch.bool, device=ids.device),
            stop_count=len(active) // 2 if can_shrink else len(active),
        )
        config = GenerationConfig(
            do_sample=True,
            temperature=temperature,
            top_k=0,  # the default is 50
            top_p=1.0,
            max_new_tokens=prompt_width + max_new_tokens - ids.shape[1],
            eos_token_id=list(stops.ids),
            pad_token_id=pad_id,
            use_cache=True,
            return_dict_in_generate=True,
        )
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,  # `generate` derives position ids from it
            past_key_values=cache,
            generation_config=config,
            logits_processor=LogitsProcessorList([finite_logits]),
            stopping_criteria=StoppingCriteriaList([criteria]),
            synced_gpus=synced_gpus,
        )
        finite_logits.check()
        ids, cache = output.sequences, output.past_key_values  # (b, P + R)
        mask = torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
        reached_limit = ids.shape[1] == prompt_width + max_new_tokens
        unfinished: list[int] = []  # rows of the batch
        for row, ended in enumerate(criteria.ended.tolist()):
            if ended or reached_limit:
                responses[active[row]] = stops.trim(ids[row, prompt_width:].tolist())
            else:
                unfinished.append(row)
        active = [active[row] for row in unfinished]
        if active:
            kept_rows = torch.tensor(unfinished, device=ids.device)
            ids, mask = ids[kept_rows], mask[kept_rows]
            cache.reorder_cache(kept_rows)  # unlike batch_select_indices, it also selects states of linear attention
    return responses


def _pad_left(prompts: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the prompts padded on the left, (b, P), and their attention mask, (b, P)."""
    width = max(map(len, prompts))
    ids = [[pad_id] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


class _FiniteLogits(LogitsProcessor):
    """Replace logits that have no distribution, and remember that there were any.

    On CUDA, `multinomial` checks its probabilities in the kernel: the process loses its device, and with it the last
    valid policy. A token may have a logit of -inf, which is a probability of 0.

    Attributes:
        failed: () True as soon as a row had such logits.
    """

    def __init__(self, device: torch.device) -> None:
        self.failed = torch.zeros((), dtype=torch.bool, device=device)

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits, with zeros in rows that have no distribution: (b, V) -> (b, V)."""
        is_valid = scores.amax(dim=-1, keepdim=True).isfinite()  # (b, 1); NaN is above all numbers
        self.failed |= ~is_valid.all()
        return torch.where(is_valid, scores, 0.0)

    def check(self) -> None:
        """Raise DivergedError if a row had no distribution."""
        if self.failed:
            raise DivergedError(
                "training.non-finite",
                "sampling: the model's logits are not finite.",
                hint="Lower the learning rate, or start from an earlier checkpoint.",
            )


class _BatchStoppingCriteria(StoppingCriteria):
    """Stop the rows that have ended, and all rows as soon as `stop_count` of them have or the logits are not finite.

    Attributes:
        ended: (b,) True for rows that have ended.
    """

    def __init__(
        self, stops: StoppingRules, prompt_width: int, finite_logits: _FiniteLogits, *, ended: Tensor, stop_count: int
    ) -> None:
        self.ended = ended
        self._stops, self._prompt_width, self._stop_count = stops, prompt_width, stop_count
        self._finite_logits = finite_logits
        self._stopped = torch.zeros((), dtype=torch.bool, device=ended.device)  # whether all rows stop
        self._end_ids = torch.tensor(stops.ids, device=ended.device)

    def __call__(self, input_ids: Tensor, _scores: object, **_: object) -> Tensor:
        """Return which rows to stop: (b, T) -> (b,)."""
        # On some devices `generate` notices a stop one step late, and undoes that step. Its tokens are padding, which
        # may be the end token.
        self.ended |= self._end_here(input_ids) & ~self._stopped
        self._stopped |= self._finite_logits.failed | (self.ended.sum() >= self._stop_count)
        return self.ended | self._stopped

    def _end_here(self, input_ids: Tensor) -> Tensor:
        """Return the rows whose last token ends them: (b, T) -> (b,). For rows that ended before it is arbitrary."""
        if not self._stops.strings:
            return torch.isin(input_ids[:, -1], self._end_ids)
        start = max(self._prompt_width, input_ids.shape[1] - self._stops.window)
        rows, ended = input_ids[:, start:].tolist(), self.ended.tolist()
        found = [not over and self._stops.is_complete(row) for row, over in zip(rows, ended, strict=True)]
        return torch.tensor(found, device=input_ids.device)
