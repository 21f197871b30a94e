"""Test the way from hidden states to logits against the models' own forward passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_cli.errors import ModelError
from rlhf_cli.models.output_path import OutputPath, find_output_head
from tests.support.families import MakeFamily
from tests.support.issues import raises_issue

IDS = torch.arange(3, 15).reshape(2, 6)


@pytest.mark.parametrize("name", ["gemma2", "granite", "cohere", "gemma4_text"])
def test_find_output_head_of_capped_or_scaled_logits_equals_the_model(make_family: MakeFamily, name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_family(name))
    head = find_output_head(model)
    assert isinstance(head, OutputPath)
    hidden = model.get_decoder()(input_ids=IDS, use_cache=False).last_hidden_state
    expected = model(input_ids=IDS, use_cache=False).logits
    assert torch.equal(head(hidden), expected)
    assert not torch.allclose(model.get_output_embeddings()(hidden), expected, atol=0.01)
    torch.testing.assert_close(head(hidden[0, 2:4]), expected[0, 2:4])  # (N, H) -> (N, V); the sums run differently


def test_find_output_head_of_plain_logits_is_the_output_layer(make_family: MakeFamily) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_family("llama"))
    assert find_output_head(model) is model.lm_head


def test_find_output_head_of_other_logits_raises_issue(make_family: MakeFamily) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_family("llama"))
    embeddings = model.get_input_embeddings()
    own_forward = model.forward

    def forward(input_ids: torch.Tensor, **options: Any) -> Any:
        output = own_forward(input_ids=input_ids, **options)
        output.logits = output.logits + embeddings(input_ids).mean()  # not from the hidden states
        return output

    model.forward = forward
    with raises_issue("model.unsupported-architecture", error=ModelError) as issues:
        find_output_head(model)
    assert "not a function of the decoder's last hidden states" in issues[0].message
