"""Test which modules adapters leave out, and that all others get gradients."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora import LoraLayer

from rlhf_cli.errors import ModelError
from rlhf_cli.models.adapters import attach
from rlhf_cli.models.loading import load_causal_lm
from rlhf_cli.recipe.schema import Adapter
from tests.support.families import MakeFamily
from tests.support.issues import raises_issue
from tests.support.plain_models import base_of


@pytest.mark.parametrize("name", ["gemma3", "phimoe", "granitemoehybrid", "llama", "falcon"])
def test_attach_adapts_only_modules_that_get_gradients(make_family: MakeFamily, name: str) -> None:
    folder = make_family(name)
    model = attach(
        load_causal_lm(base_of(folder), str(folder)),
        Adapter(rank=2, alpha=4),
        task="CAUSAL_LM",
        start=None,
    )
    adapted = [key for key, module in model.named_modules() if isinstance(module, LoraLayer)]
    assert adapted
    assert not [key for key in adapted if "vision" in key or "router" in key or key.endswith("mamba.out_proj")]
    model(input_ids=torch.arange(3, 40)[None], use_cache=False).logits.square().sum().backward()
    without_gradient = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not [key for key in without_gradient if "experts" not in key]  # an expert that no token is routed to


def test_attach_router_by_name_raises_issue(make_family: MakeFamily) -> None:
    folder = make_family("phimoe")
    settings = Adapter(rank=2, alpha=4, target_modules=["router"])
    with raises_issue("model.unknown-target-modules", error=ModelError, location="adapter.target_modules"):
        attach(load_causal_lm(base_of(folder), str(folder)), settings, task="CAUSAL_LM", start=None)
