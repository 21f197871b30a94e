"""Test right-padded batches within a budget of tokens."""

from __future__ import annotations

import pytest
import torch

from rlhf_cli.inference import batching
from tests.support.tiny_policy import PAD, MakeActorCritic, Ragged


def test_pack_keeps_to_the_budget_and_loses_no_row() -> None:
    lengths = [3, 50, 7, 7, 1, 20, 19]
    groups = batching.pack(lengths, 40)
    assert sorted(i for group in groups for i in group) == list(range(7))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= 40
    assert groups[1] == [5, 6]  # rows of similar length share a batch


def test_split_groups_halves_the_largest_until_there_are_enough() -> None:
    assert batching.split_groups([[0, 1, 2, 3, 4], [5]], 4) == [[0, 1], [2], [3, 4], [5]]
    assert batching.split_groups([[0, 1], [2]], 2) == [[0, 1], [2]]


def test_padded_batches_pad_on_the_right_with_a_mask() -> None:
    (batch,) = batching.padded_batches([[5], [6, 7, 8]], pad_id=PAD, max_tokens=6, device=torch.device("cpu"))
    assert batch.rows == [1, 0]
    assert batch.input_ids.tolist() == [[6, 7, 8], [5, PAD, PAD]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_length_mask_is_true_on_own_tokens() -> None:
    assert batching.length_mask([2, 1, 3]).tolist() == [[True, True, False], [True, False, False], [True, True, True]]


@pytest.mark.parametrize("max_tokens", [1, 40, 10_000])
def test_micro_batches_point_at_the_token_before_each_response_token(
    make_actor_critic: MakeActorCritic, ragged: Ragged, max_tokens: int
) -> None:
    prompts, responses = ragged
    model = make_actor_critic().model
    seen: dict[int, list[int]] = {}
    for batch in batching.micro_batches(prompts, responses, pad_id=PAD, max_tokens=max_tokens, model=model):
        assert len(batch.rows) == 1 or batch.input_ids.numel() <= max_tokens
        following = batch.input_ids[batch.token_rows, batch.token_positions + 1]
        assert torch.equal(following, batch.tokens)
        for index, row in enumerate(batch.rows):
            seen[row] = batch.tokens[batch.token_rows == index].tolist()
    assert [seen[row] for row in range(len(responses))] == responses
