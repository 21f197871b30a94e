"""Declare the metrics of a reward model on held-out preferences: overall, by slice, and beside what people reach."""

from __future__ import annotations

from rlhf_cli.evaluation import comparison
from rlhf_cli.evaluation.metric_types import SLICE, Metric

PREFERENCE_METRICS = (
    Metric(
        name="reward.accuracy",
        unit="fraction of pairs",
        direction="higher",
        description="How often the reward model scores the chosen completion higher; a tie is wrong. Wilson interval.",
        group="preferences",
        needs=("preferences", "reward_model"),
        compute=comparison.preference_accuracy,
        has_interval=True,
        has_count=True,
    ),
    Metric(
        name="reward.ceiling",
        unit="fraction of votes",
        direction="none",
        description="How often a person's vote agrees with the majority of the other people's votes on the pair, in "
        "the feedback runs that data.preferences names: what a reward model can be expected to reach. Wilson interval.",
        group="preferences",
        needs=("preferences", "reward_model"),
        compute=comparison.ceiling,
        is_optional=True,
        has_interval=True,
        has_count=True,
    ),
    Metric(
        name="reward.accuracy.held_out_annotators",
        unit="fraction of votes",
        direction="higher",
        description="The accuracy on single votes of annotators whose votes became no labels, on prompts that were not "
        "trained on. Wilson interval.",
        group="preferences",
        needs=("preferences", "reward_model"),
        compute=comparison.held_out_annotator_accuracy,
        is_optional=True,
        has_interval=True,
        has_count=True,
    ),
    Metric(
        name=f"reward.accuracy.{SLICE}",
        unit="fraction of pairs",
        direction="higher",
        description="The accuracy on the pairs of a slice of at least 30, by the columns of the rows: "
        "language.<language>, field.<field>, source.<source>, and annotators.<role> of a voter. Wilson interval.",
        group="preferences",
        needs=("preferences", "reward_model"),
        compute=comparison.slice_accuracy,
        is_optional=True,
        has_interval=True,
        has_count=True,
    ),
    Metric(
        name="reward.ties",
        unit="pairs",
        direction="none",
        description="Pairs in which the reward model scores both completions the same.",
        group="preferences",
        needs=("preferences", "reward_model"),
        compute=comparison.ties,
    ),
    Metric(
        name="reward.accuracy_longer",
        unit="fraction of pairs",
        direction="none",
        description="Length baseline: the accuracy of always preferring the longer completion.",
        group="preferences",
        needs=("preferences", "reward_model"),
        compute=comparison.length_accuracy,
    ),
    Metric(
        name="reward.margin",
        unit="score",
        direction="none",
        description="Mean difference of the scores, chosen minus rejected.",
        group="preferences",
        needs=("preferences", "reward_model"),
        compute=comparison.margin,
    ),
    Metric(
        name="reward.brier",
        unit="squared probability",
        direction="lower",
        description="Brier score of the probability that the margin implies; 0.25 for a constant 0.5.",
        group="preferences",
        needs=("preferences", "reward_model"),
        compute=comparison.brier_score,
    ),
    Metric(
        name="reward.ece",
        unit="probability",
        direction="lower",
        description="Expected calibration error: mean distance between confidence and accuracy over 10 bins.",
        group="preferences",
        needs=("preferences", "reward_model"),
        compute=comparison.calibration_error,
    ),
)
