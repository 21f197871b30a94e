"""The sections of the stages that train with a trainer of TRL: pretrain, sft and reward."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field

from rlhf_cli.recipe.schema.section import (
    SMOKE_STEPS,
    SMOKE_TOKENS,
    PathKind,
    PositiveFloat,
    PositiveInt,
    Section,
)


class TrainerSection(Section):
    """The fields that all stages with a trainer of TRL share."""

    start: Annotated[str, PathKind("run", ("base",))] = Field(
        "base", description="base, a run, or the directory of an adapter"
    )
    epochs: PositiveFloat | None = Field(
        None, description="passes over the data; cannot be combined with max_steps; null: 1 unless max_steps is set"
    )
    max_steps: PositiveInt | None = Field(None, description="optimizer steps; cannot be combined with epochs")
    batch_size: PositiveInt = Field(32, description="sequences per optimizer step, over all devices")
    micro_batch_size: PositiveInt = Field(8, description="sequences per forward pass, per device")
    learning_rate: PositiveFloat = Field(description="peak learning rate of AdamW")
    max_length: PositiveInt = Field(1024, description="maximum length of a sequence, in tokens")
    save_every: PositiveInt = Field(500, description="optimizer steps between two checkpoints, for --resume")
    trainer: dict[str, Any] = Field({}, description="additional options, passed to the trainer's TRL config unchanged")

    def smoke(self) -> Self:
        """Train two optimizer steps on short sequences."""
        return (
            super()
            .smoke()
            .replace(
                epochs=None,
                max_steps=SMOKE_STEPS,
                batch_size=2,
                micro_batch_size=1,
                max_length=min(self.max_length, SMOKE_TOKENS),
                save_every=1,
            )
        )


class Architecture(Section):
    """The shape of the Llama model that `pretrain` creates from scratch."""

    vocab_size: Annotated[int, Field(ge=260)] = Field(512, description="size of the BPE vocabulary, in tokens")
    hidden_size: PositiveInt = Field(
        128, description="width of the residual stream, in dimensions; a multiple of 64 for 4-bit weights on a CPU"
    )
    intermediate_size: PositiveInt = Field(384, description="width of the feed-forward layer, in dimensions")
    layers: PositiveInt = Field(4, description="number of transformer blocks")
    heads: PositiveInt = Field(4, description="number of attention heads")
    kv_heads: PositiveInt = Field(4, description="number of key/value heads; a divisor of heads")
    context: PositiveInt = Field(512, description="context length, in tokens")

    def smoke(self) -> Self:
        """Shrink every size but the vocabulary and the context."""
        return self.replace(hidden_size=64, intermediate_size=128, layers=2, heads=4, kv_heads=2)


class Pretrain(TrainerSection):
    """Train a base model and its tokenizer from scratch, or continue pretraining an existing base model."""

    start: Annotated[str, PathKind("model", ("scratch",))] = Field(
        "scratch", description="scratch, or the Hub id or directory of a model whose pretraining is continued"
    )
    micro_batch_size: PositiveInt = Field(32, description="sequences per forward pass, per device")
    learning_rate: PositiveFloat = Field(1e-3, description="peak learning rate of AdamW")
    max_length: PositiveInt = Field(256, description="length of a packed sequence, in tokens")
    architecture: Architecture = Field(Architecture(), description="shape of the model to train from scratch")


class Sft(TrainerSection):
    """Supervised fine-tuning on demonstrations. The loss is computed on the completions only."""

    start: Annotated[str, PathKind("run", ("base",))] = Field(
        "base", description="base, an sft or ppo run, or the directory of an adapter"
    )
    learning_rate: PositiveFloat = Field(2e-4, description="peak learning rate of AdamW")
    max_length: PositiveInt = Field(
        1024, description="maximum length of a row, in tokens; the completion of a longer row is truncated"
    )


class Reward(TrainerSection):
    """Train a reward model on pairwise preferences (Bradley–Terry)."""

    start: Annotated[str, PathKind("run", ("base",))] = Field(
        "sft", description="base, an sft or reward run, or the directory of an adapter"
    )
    members: PositiveInt = Field(
        1,
        description="number of reward models to train on the base model, one after another, each with its own seed and "
        "its own sample of the pairs; with more than one, ppo and eval combine their scores",
    )
    batch_size: PositiveInt = Field(32, description="pairs per optimizer step, over all devices")
    micro_batch_size: PositiveInt = Field(8, description="pairs per forward pass, per device")
    learning_rate: PositiveFloat = Field(1e-4, description="peak learning rate of AdamW")
    max_length: PositiveInt = Field(
        1024, description="maximum length of a prompt with either completion, in tokens; longer pairs are dropped"
    )

    def smoke(self) -> Self:
        """Train at most two members."""
        shrunk = super().smoke()
        return shrunk.replace(members=min(shrunk.members, 2))
