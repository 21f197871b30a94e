"""What the memory of the device decides about PPO: the batches of a rollout, and whether activations are recomputed."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig

from rlhf_cli.models import device_memory, footprint
from rlhf_cli.models.footprint import ModelFootprint
from rlhf_cli.recipe.schema import Adapter, Base, Recipe
from rlhf_cli.stages import STAGES
from rlhf_cli.training import memory_estimate
from rlhf_cli.training.memory_estimate import PPOPlan

PlanOf = Callable[..., PPOPlan]
GB = 1e9
PROMPT, NEW = 512, 256  # tokens
KV_BYTES = 32 * 2 * 8 * 128 * 2  # of a token: layers, keys and values, heads, width, bfloat16
(PPO,) = (spec for spec in STAGES.values() if spec.memory_model == "ppo")


@pytest.fixture(scope="module")
def llama_8b_footprint(tmp_path_factory: pytest.TempPathFactory) -> ModelFootprint:
    """Measure a Llama of 8B parameters from its config, without weights."""
    folder = tmp_path_factory.mktemp("llama-8b")
    LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        dtype="bfloat16",
    ).save_pretrained(folder)
    return footprint.measure_footprint(Base(model=str(folder), dtype="bfloat16"), Adapter(), str(folder), padded=False)


@pytest.fixture
def plan_of(monkeypatch: pytest.MonkeyPatch, llama_8b_footprint: ModelFootprint) -> PlanOf:
    """Return a function that plans PPO by defaults on a GPU of some bytes, with options of `ppo.trainer`."""
    monkeypatch.setattr(footprint, "measure_footprint", lambda *_, **__: llama_8b_footprint)
    monkeypatch.setattr(memory_estimate, "default_device", lambda: torch.device("cuda", 0))

    def plan(memory: float, **trainer: object) -> PPOPlan:
        monkeypatch.setattr(device_memory, "memory_capacity", lambda _: memory)
        ppo = {"reward": [{"run": "reward"}], "max_new_tokens": NEW, "trainer": trainer}
        recipe = Recipe.model_validate({"name": "t", "base": {"model": "llama-8b"}, "ppo": ppo})
        found = memory_estimate.estimate(PPO, recipe, "llama-8b", PROMPT, 0)
        assert found is not None
        assert found.plan is not None
        return found.plan

    return plan


def test_plan_rollout_of_128_rows_by_defaults_is_one_batch_on_80_gb(plan_of: PlanOf) -> None:
    """Four times micro_batch_tokens, the budget of an update, would be 42 rows: four batches."""
    rows = plan_of(80 * GB).rollout_tokens // (PROMPT + NEW)
    assert math.ceil(128 / rows) == 1
    assert rows * (PROMPT + NEW) * KV_BYTES < 0.5 * (80 * GB - 16 * GB)


def test_plan_rollout_rows_follow_the_memory_beside_the_weights(plan_of: PlanOf) -> None:
    weights = 16.06 * GB  # 8.03 billion bfloat16 numbers
    few, many = (plan_of(weights + free).rollout_tokens // (PROMPT + NEW) for free in (20 * GB, 40 * GB))
    assert many == pytest.approx(2 * few, rel=0.1)
    assert plan_of(10 * GB).rollout_tokens == PROMPT + NEW  # one row


def test_plan_recomputes_activations_only_if_keeping_them_does_not_fit(plan_of: PlanOf) -> None:
    wide, narrow = (plan_of(memory * GB) for memory in (400, 24))
    assert (wide.recompute, narrow.recompute) == (False, True)
    for is_set in (True, False):
        assert plan_of(400 * GB, activation_checkpointing=is_set).recompute is is_set
