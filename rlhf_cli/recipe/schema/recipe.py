"""The recipe: one field per section."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator

from rlhf_cli.recipe.schema.data import Data
from rlhf_cli.recipe.schema.evaluation import Eval, Export
from rlhf_cli.recipe.schema.feedback import Feedback, Revise, Sample
from rlhf_cli.recipe.schema.model import Adapter, Base
from rlhf_cli.recipe.schema.ppo import Ppo
from rlhf_cli.recipe.schema.section import PositiveInt, Section
from rlhf_cli.recipe.schema.training import Pretrain, Reward, Sft

SCHEMA = 1  # version of the recipe format, which a file may state under the key `schema`


class Launch(Section):
    """The processes that run a stage together, each with one GPU of this machine or with some of its CPU cores."""

    processes: PositiveInt = Field(1, description="number of processes; each batch is divided among them")
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="ddp: each process holds the whole base model; fsdp: each process holds a shard of every layer",
    )

    def smoke(self) -> Self:
        """Use a single process: two optimizer steps are too little work for several."""
        return type(self)()


class Recipe(Section):
    """The settings of all stages."""

    name: str = Field(description="name of the recipe and of the directory of its runs")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="seed for all random numbers")
    base: Base = Field(description="the base model that every stage adapts")
    adapter: Adapter | None = Field(Adapter(), description="the adapter that a stage trains; null: train all weights")
    data: Data = Field(Data(), description="the datasets for the stages")
    launch: Launch = Field(Launch(), description="number of processes that run a stage, and the parallelism strategy")
    pretrain: Pretrain = Field(Pretrain(), description="train a base model on text")
    sft: Sft = Field(Sft(), description="supervised fine-tuning on demonstrations")
    sample: Sample = Field(Sample(), description="sample completions for people or a judge to compare")
    feedback: Feedback = Field(Feedback(), description="collect judgments and write them as preference data")
    revise: Revise = Field(Revise(), description="write demonstrations by critique and revision")
    reward: Reward = Field(Reward(), description="train a reward model on preferences")
    ppo: Ppo = Field(Ppo(), description="optimize the policy against the reward")
    eval: Eval = Field(Eval(), description="compare models and check gates")
    export: Export = Field(Export(), description="write the final model")

    @field_validator("name")
    @classmethod
    def _validate_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", name, re.ASCII):
            raise ValueError("at most 100 letters, digits, '.', '_' and '-', of which the first is a letter or a digit")
        return name
