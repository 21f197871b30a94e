"""The base model, and the adapter that every stage trains on it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlhf_cli.recipe.schema.section import PathKind, PositiveFloat, PositiveInt, Section, UnitFloat


class Base(Section):
    """The base model that every stage adapts."""

    model: Annotated[str, PathKind("model")] = Field(
        description="Hub id, directory, or a pretrain run (`pretrain`, `pretrain@v0002`)"
    )
    revision: str = Field("main", description="branch, tag or commit of a Hub model")
    quantize: Literal["none", "int8", "nf4"] = Field(
        "none", description="format of the frozen linear weights: none (16 or 32 bits), int8 (8 bits), nf4 (4 bits)"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="data type of weights and computation; auto: bfloat16 on a GPU that supports it, else float32",
    )
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = Field("auto", description="attention kernel")
    chat_template: Annotated[str, PathKind("template")] = Field(
        "auto", description="auto: the tokenizer's template, or a plain-text one if it has none; or a .jinja file"
    )


class Adapter(Section):
    """The LoRA adapter that a stage trains on the base model. `adapter: null` trains all weights instead."""

    rank: PositiveInt = Field(16, description="rank of the update, in dimensions")
    alpha: PositiveFloat = Field(32, description="scale: the update is multiplied by alpha / rank")
    dropout: UnitFloat = Field(
        0.0, description="fraction of the adapter's inputs that are dropped in sft and reward training"
    )
    target_modules: str | list[str] = Field(
        "all-linear", description="names of the modules to adapt, or all-linear for all linear layers"
    )
    dora: bool = Field(False, description="train magnitude and direction separately (DoRA, arXiv:2402.09353)")
