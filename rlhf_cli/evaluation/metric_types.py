"""Define the record of a metric: its name, unit and meaning, what it needs, and how it is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rlhf_cli.evaluation.statistics import Interval

Direction = Literal["higher", "lower", "none"]
Need = Literal["sft", "preferences", "prompts", "baseline", "reward_model", "functions", "judge", "people"]
Group = Literal[
    "demonstrations",
    "preferences",
    "completions",
    "comparison",
    "training",
    "ppo",
    "export",
    "sample",
    "feedback",
    "revise",
    "trainer_steps",
    "ppo_iterations",
    "sample_batches",
    "revise_steps",
]

FUNCTION, SOURCE, STAGE, SLICE = "<function>", "<source>", "<stage>", "<slice>"  # placeholders in names
BASELINE_SUFFIX = ".baseline"
INTERVAL_SUFFIXES = (".low", ".high")
COUNT_SUFFIX = ".n"

GROUPS: Mapping[Group, str] = {  # group: its heading in docs/metrics.md
    "demonstrations": "Evaluation on held-out demonstrations",
    "preferences": "Evaluation of the reward model on held-out preferences",
    "completions": "Evaluation of completions for held-out prompts",
    "comparison": "Comparison of candidate and baseline",
    "training": "Training with a TRL trainer",
    "ppo": "PPO",
    "export": "Export",
    "sample": "Sampling of completions to compare",
    "feedback": "Human feedback",
    "revise": "Critique and revision",
    "trainer_steps": "Each logged step of a TRL trainer, in metrics.jsonl",
    "ppo_iterations": "Each PPO iteration, in metrics.jsonl",
    "sample_batches": "Each step of sampling, in metrics.jsonl",
    "revise_steps": "Each step of critique and revision, in metrics.jsonl",
}


@dataclass(frozen=True)
class Metric:
    """One metric, or a family of metrics whose name holds a placeholder.

    Attributes:
        name: As in manifests, reports, gates and `--json`. May hold a placeholder such as `<function>`.
        unit: The unit of its value.
        direction: Whether a higher or a lower value is better; "none" if neither.
        description: One sentence for the reference.
        group: Where it is listed. An evaluation's group also tells which measurement `compute` takes: `CompletionLoss`
            for demonstrations, `PreferenceMargins` for preferences, `ScoredCompletions` for completions and
            `PairedCompletions` for comparison.
        needs: What a recipe must have for `eval` to report it.
        compute: Computes it from a measurement; returns Interval exactly if `has_interval`. In a family of functions
            it takes the function's name too, in a family of slices the slice. None if a training stage or the export
            logs it.
        is_optional: Whether only some rows have what it is computed from; `compute` returns None for others.
        has_interval: Whether `<name>.low` and `<name>.high` are reported.
        has_count: Whether `<name>.n`, the number of items, is reported.
        has_baseline: Whether `<name>.baseline`, the value of the baseline, is reported if the recipe has one.
        gain: Name of the metric of the paired difference between candidate and baseline, or "" if there is none.
        in_overview: Whether the console's short comparison of two models shows it.
        tolerance: How much worse than the baseline the candidate may be, in the metric's unit, before it is reported as
            a regression; None: never.
    """

    name: str
    unit: str
    direction: Direction
    description: str
    group: Group
    needs: tuple[Need, ...] = ()
    compute: Callable[..., float | Interval | None] | None = None
    is_optional: bool = False
    has_interval: bool = False
    has_count: bool = False
    has_baseline: bool = False
    gain: str = ""
    in_overview: bool = False
    tolerance: float | None = None

    def names(self, *, with_baseline: bool = True) -> list[str]:
        """Return the name with each suffix that is reported."""
        suffixes = [""]
        if self.has_interval:
            suffixes += INTERVAL_SUFFIXES
        if self.has_count:
            suffixes.append(COUNT_SUFFIX)
        if self.has_baseline and with_baseline:
            suffixes.append(BASELINE_SUFFIX)
        return [self.name + suffix for suffix in suffixes]

    def values(self, measurement: Any) -> dict[str, float]:
        """Compute the metric, with the ends of its interval and its count if it has them. Empty if there is none."""
        assert self.compute is not None
        result = self.compute(measurement)
        if self.is_optional and result is None:
            return {}
        assert result is not None, self.name
        assert isinstance(result, Interval) == self.has_interval, self.name
        if not isinstance(result, Interval):
            return {self.name: result}
        ends = dict(zip(INTERVAL_SUFFIXES, (result.low, result.high), strict=True))
        values = {self.name: result.value} | {self.name + suffix: end for suffix, end in ends.items()}
        if self.has_count:
            values[self.name + COUNT_SUFFIX] = float(result.n)
        return values
