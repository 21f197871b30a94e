"""Find the class of a base model with a score head: transformers' own, or one made for a family that has none.

A scorer has the module tree of the language model, so that one adapter fits both.
"""

from __future__ import annotations

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification


def prepare_config(config: PreTrainedConfig, *, new_head: bool) -> PreTrainedConfig:
    """Return the config to load a scorer with by AutoModelForSequenceClassification.

    Args:
        config: The config of the stored model.
        new_head: Whether the stored model may be a language model; the scorer then has one label.
    """
    if new_head:
        config = _language_config(config)
        config.num_labels = 1
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        AutoModelForSequenceClassification.register(type(config), _make_class(config), exist_ok=True)
    return config


def _language_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config that AutoModelForCausalLM builds from: for some models with a vision part, the text config."""
    text_class = config.sub_configs.get("text_config")
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if text_class is not None and getattr(model_class, "config_class", None) == text_class:
        return config.get_text_config()
    return config


def _make_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return a class of the family with a score head."""
    language_model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    family = next(parent for parent in language_model.__mro__[1:] if issubclass(parent, PreTrainedModel))
    return type(
        language_model.__name__.partition("For")[0] + "ForSequenceClassification",
        (GenericForSequenceClassification, family),
        {"base_model_prefix": language_model.base_model_prefix, "config_class": type(config)},
    )
