"""The fields of a recipe, each with its unit. Sections are frozen, and unknown keys are errors.

Only the options that most users set are fields; a stage's `trainer:` mapping passes further ones to TRL. A rule that
spans several fields is in `recipe/validation/`.
"""

from __future__ import annotations

from rlhf_cli.recipe.schema.data import Data, Source, Sources
from rlhf_cli.recipe.schema.evaluation import Eval, Export, Gate
from rlhf_cli.recipe.schema.feedback import Feedback, Gold, Judge, Qualification, Revise, Sample
from rlhf_cli.recipe.schema.model import Adapter, Base
from rlhf_cli.recipe.schema.ppo import Critic, Kl, Length, Ppo, RewardSource, Rule
from rlhf_cli.recipe.schema.recipe import SCHEMA, Launch, Recipe
from rlhf_cli.recipe.schema.section import Key, PathKind, Section, is_run_reference
from rlhf_cli.recipe.schema.training import Architecture, Pretrain, Reward, Sft, TrainerSection

__all__ = [
    "SCHEMA",
    "Adapter",
    "Architecture",
    "Base",
    "Critic",
    "Data",
    "Eval",
    "Export",
    "Feedback",
    "Gate",
    "Gold",
    "Judge",
    "Key",
    "Kl",
    "Launch",
    "Length",
    "PathKind",
    "Ppo",
    "Pretrain",
    "Qualification",
    "Recipe",
    "Revise",
    "Reward",
    "RewardSource",
    "Rule",
    "Sample",
    "Section",
    "Sft",
    "Source",
    "Sources",
    "TrainerSection",
    "is_run_reference",
]
