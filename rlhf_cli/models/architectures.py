"""Refuse base models that no stage, or not every stage, can train, by their config.json. Importing this loads no torch.

The reasons also make the table in docs/models.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf_cli.errors import ModelError

NO_CACHE = "its decoder returns no cache of keys and values, which scorers and batches of completions need"
REFUSED = {  # model_type: reason
    "falcon_h1": "the scores of its padded batches are not finite",
    "falcon_mamba": NO_CACHE,
    "llama4": "TRL does not find its decoder",
    "llama4_text": "TRL does not find its decoder",
    "mamba": NO_CACHE,
    "mamba2": NO_CACHE,
    "recurrent_gemma": NO_CACHE,
    "rwkv": NO_CACHE,
    "xlstm": NO_CACHE,
}
WITH_VISION = ("gemma3", "qwen3_5")  # models with a vision part that have a language model class in transformers
# Names of the number of positions in the configs of different families.
POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len")
ROPE_SWITCH_KEY = "original_max_position_embeddings"  # Phi-3: longer rows give all rows of a batch other rope factors
ENCODER_DECODER = "an encoder-decoder is no causal language model"
NO_LANGUAGE_MODEL = "transformers has no language model class for it without its vision part"


def check_architecture(folder: Path, *, location: str) -> None:
    """Refuse the base model in a folder if its architecture is not supported.

    Args:
        folder: A model folder. A missing or damaged config.json is reported when the model is loaded.
        location: The recipe key that names the model.

    Raises:
        ModelError: The architecture is not supported.
    """
    config = _read_config(folder)
    name = config.get("model_type")
    reason = REFUSED.get(str(name))
    if config.get("is_encoder_decoder"):
        reason = ENCODER_DECODER
    elif config.get("vision_config") is not None and name not in WITH_VISION:
        reason = NO_LANGUAGE_MODEL
    if reason is not None:
        raise ModelError(
            "model.unsupported-architecture",
            f"{name}: architecture is not supported: {reason}.",
            location=location,
            hint="Use a base model of another family; docs/models.md lists those that are tested.",
        )


def read_context_limit(folder: Path) -> int | None:
    """Return the number of tokens up to which any row can be used, by config.json, or None if it gives no number."""
    config = _read_config(folder)
    text = {**config, **(config.get("text_config") or {})}
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    found = [text.get(key) for key in POSITION_KEYS]
    if {rope.get("rope_type"), rope.get("type")} & {"longrope", "su"}:  # the other kinds have one set of factors
        found.append(rope.get(ROPE_SWITCH_KEY) or text.get(ROPE_SWITCH_KEY))
    return min((number for number in found if isinstance(number, int) and number > 0), default=None)


def _read_config(folder: Path) -> dict[str, Any]:
    """Return config.json, or an empty mapping if it is missing or damaged, which is reported when a model is loaded."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
