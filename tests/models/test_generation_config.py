"""Test that a generation_config can be saved after its repair."""

from __future__ import annotations

from types import SimpleNamespace

from transformers import GenerationConfig

from rlhf_cli.models.generation_config import repair_generation_config


def test_repair_generation_config_invalid_keeps_only_special_tokens() -> None:
    config = GenerationConfig(do_sample=False, temperature=0.3, bos_token_id=1, eos_token_id=[2, 3], pad_token_id=0)
    model = SimpleNamespace(generation_config=config)
    repair_generation_config(model)
    repaired = model.generation_config
    repaired.validate(strict=True)
    assert (repaired.bos_token_id, repaired.eos_token_id, repaired.pad_token_id) == (1, [2, 3], 0)
    assert repaired.temperature != 0.3


def test_repair_generation_config_valid_stays_unchanged() -> None:
    config = GenerationConfig(do_sample=True, temperature=0.3, eos_token_id=2)
    model = SimpleNamespace(generation_config=config)
    repair_generation_config(model)
    assert model.generation_config is config


def test_repair_generation_config_without_one_is_a_no_op() -> None:
    model = SimpleNamespace()
    repair_generation_config(model)
    assert not hasattr(model, "generation_config")
