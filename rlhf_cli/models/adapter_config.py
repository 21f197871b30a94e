"""Compare the adapter_config.json of a stored adapter with the recipe. Importing this loads neither torch nor peft.

Only plain LoRA and DoRA are loaded. Other variants are stored as LoRA too, but PEFT changes the base model when it
loads them (PiSSA, OLoRA, CorDA, LoftQ), or computes something else with the same tensors (rsLoRA, aLoRA). One base is
shared by several adapters, so it cannot be changed; and every option that is not known to be harmless is refused,
because later versions of PEFT will have more of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_cli.errors import Issue, ModelError
from rlhf_cli.formatting import format_exception
from rlhf_cli.recipe.schema import Adapter

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER_CONFIG = "adapter_config.json"
SCORE_HEADS = ("classifier", "score")  # PEFT's own `modules_to_save` for SEQ_CLS

COMPARED = ("peft_type", "r", "lora_alpha", "use_dora", "rank_pattern", "alpha_pattern", "target_parameters")
WITHOUT_EFFECT = (  # on the output of a loaded adapter, or compared by the names and shapes of its tensors
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "peft_version", "revision"),
    *("exclude_modules", "layers_pattern", "layers_to_transform", "target_modules", "task_type"),
    "fan_in_fan_out",  # PEFT sets it by the type of each layer
    *("megatron_core", "qalora_group_size"),  # belong to `megatron_config` and `use_qalora`
)
PLAIN_VALUES: dict[str, tuple[Any, ...]] = {  # in addition to null, false and empty ones
    "bias": ("none",),
    # Without another base: the stored tensors replace the initial ones.
    "init_lora_weights": (True, "gaussian", "orthogonal"),
    "modules_to_save": (list(SCORE_HEADS), list(reversed(SCORE_HEADS)), ["score"]),
}
DERIVED = ("rank_pattern", "alpha_pattern", "target_parameters")  # PEFT sets them for the fused experts of a base


def is_adapter(folder: Path) -> bool:
    """Return whether the directory holds a PEFT adapter rather than a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def check_kind(folder: Path, adapter: Adapter | None) -> None:
    """Raise ModelError unless the directory holds an adapter (or a whole model if `adapter` is None)."""
    if adapter is None and is_adapter(folder):
        raise ModelError(
            "model.wrong-kind",
            "found an adapter, expected a full model, because the recipe has `adapter: null`.",
            location=str(folder),
            hint="Add the `adapter` section that it was trained with to the recipe, or start from a full model.",
        )
    if adapter is not None and not is_adapter(folder):
        raise ModelError(
            "model.wrong-kind",
            "found a full model, expected an adapter, because the recipe trains adapters.",
            location=str(folder),
            hint="Set `base.model` to the full model, or set `adapter: null` to train full models.",
        )


def check_settings(folder: Path, adapter: Adapter) -> None:
    """Raise ModelError if a stored adapter is not plain LoRA or DoRA with the settings of the recipe.

    What depends on the base model is checked by `check_derived`, and by the tensors themselves.
    """
    stored = _read(folder)
    if stored.get("peft_type") != "LORA":
        raise ModelError(
            "model.unsupported-adapter",
            f"peft_type: unsupported adapter; found {stored.get('peft_type')}, expected LORA.",
            location=str(folder),
            hint="Start from a LoRA adapter, or from base.",
        )
    issues = [
        Issue(
            "model.adapter-mismatch",
            f"adapter.{field}: differs from the stored adapter; found {value} in the recipe, "
            f"expected {stored.get(key)}.",
            str(folder),
            f"Set `adapter.{field}: {json.dumps(stored.get(key))}`, or start from base.",
        )
        for field, key, value in (
            ("rank", "r", adapter.rank),
            ("alpha", "lora_alpha", as_int_if_whole(adapter.alpha)),
            ("dora", "use_dora", adapter.dora),
        )
        if stored.get(key) != value
    ]
    issues += [
        _unsupported_option(folder, key, value)
        for key, value in sorted(stored.items())
        if key not in (*COMPARED, *WITHOUT_EFFECT) and value and value not in PLAIN_VALUES.get(key, ())
    ]
    if issues:
        raise ModelError(issues)


def check_derived(folder: Path, attached: LoraConfig) -> None:
    """Raise ModelError if a stored option differs from the one that PEFT derived for this base model.

    Args:
        folder: The stored adapter.
        attached: PEFT's config of a new adapter with the recipe's settings, after it was attached to the base.
    """
    stored = _read(folder)
    issues = [
        _unsupported_option(folder, key, stored[key])
        for key in DERIVED
        if _comparable(stored.get(key)) != _comparable(getattr(attached, key))
    ]
    if issues:
        raise ModelError(issues)


def as_int_if_whole(number: float) -> float | int:
    """Return 16 for 16.0, as PEFT stores it and as messages print it."""
    return int(number) if float(number).is_integer() else number


def _read(folder: Path) -> dict[str, Any]:
    try:
        stored: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            "model.load-failed",
            f"{ADAPTER_CONFIG}: cannot be read: {format_exception(error).rstrip('.')}.",
            location=str(folder),
            hint="Run the stage that wrote it again.",
        ) from error
    return stored


def _unsupported_option(folder: Path, key: str, value: Any) -> Issue:
    return Issue(
        "model.unsupported-adapter",
        f"{key}: unsupported adapter option; found {value}.",
        str(folder),
        "Start from an adapter without this option, or from base; or merge the adapter into its base model with PEFT, "
        "and set `base.model` to the result.",
    )


def _comparable(value: Any) -> Any:
    """Return a value of a config so that null equals empty, and a list equals a set."""
    return sorted(value) if isinstance(value, list | set) and value else value or None
