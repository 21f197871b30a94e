"""Repair a generation_config that transformers loads but refuses to save."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig

SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def repair_generation_config(model: Any) -> None:
    """Replace an invalid generation_config by one that keeps only its special tokens. No-op if it is valid or absent.

    `save_pretrained` raises on an invalid one, such as a temperature without sampling. Without the repair, a whole
    model would fail to be saved only after its training.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    try:
        config.validate(strict=True)
    except ValueError:
        model.generation_config = GenerationConfig(**{name: getattr(config, name) for name in SPECIAL_TOKENS})
