"""The sections of evaluation and export."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from rlhf_cli.recipe.schema.section import PathKind, PositiveFloat, PositiveInt, Section


class Gate(Section):
    """Bounds on a metric. `rlhf eval` exits with code 8 if the metric is outside them."""

    metric: str = Field(description="name of a metric of the evaluation, such as win_rate or reward.accuracy")
    min: float | None = Field(None, description="lowest value that passes, in the metric's unit; null: none")
    max: float | None = Field(None, description="highest value that passes, in the metric's unit; null: none")


class Eval(Section):
    """Compare the candidate with the baseline on the same held-out prompts, with the same sampling settings."""

    candidate: Annotated[str, PathKind("run", ("base",))] = Field(
        "ppo", description="the model to evaluate: an sft or ppo run, a directory, or base"
    )
    baseline: Annotated[str | None, PathKind("run", ("base",))] = Field(
        "sft", description="the model to compare with: an sft or ppo run, a directory, or base; null: no comparison"
    )
    reward: Annotated[str | None, PathKind("run")] = Field(
        "reward", description="the reward run that scores completions; null: none"
    )
    samples: PositiveInt = Field(256, description="maximum number of held-out rows to use from each dataset")
    temperature: PositiveFloat = Field(1.0, description="sampling temperature")
    max_new_tokens: PositiveInt | None = Field(
        None, description="maximum length of a completion, in tokens; null: ppo.max_new_tokens"
    )
    batch_size: PositiveInt = Field(32, description="sequences per forward pass")
    python: Annotated[list[str], PathKind("function")] = Field(
        [], description="functions (file.py:function) that score completions; never used in training"
    )
    judge: bool = Field(
        False, description="whether the judge in feedback.judge also compares the completions of both models"
    )
    blind: bool = Field(
        False,
        description="whether people compare the completions of both models on the annotation page, without knowing "
        "which model wrote which; same as rlhf eval --blind",
    )
    gates: list[Gate] = Field([], description="bounds that the metrics must satisfy")

    def smoke(self) -> Self:
        """Evaluate eight short completions without gates: random weights would fail them."""
        return self.replace(samples=min(self.samples, 8), max_new_tokens=8, gates=[], blind=False)


class Export(Section):
    """Write the final model to a directory that other tools can load."""

    of: Annotated[str, PathKind("run")] = Field("ppo", description="an sft or ppo run, or a directory")
    format: Literal["merged", "adapter"] = Field(
        "merged", description="merged: a full model; adapter: only the adapter"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("bfloat16", description="data type of the merged weights")
