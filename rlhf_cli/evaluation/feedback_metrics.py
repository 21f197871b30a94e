"""Describe the metrics that `rlhf annotate qc` reports. docs/quality.md explains them.

They are computed in `rlhf_cli/feedback/quality`.
"""

from __future__ import annotations

from rlhf_cli.evaluation.metric_types import SLICE, Direction, Metric

ANNOTATOR, FLAG = "<annotator>", "<flag>"  # placeholders in names, beside SLICE
_AGREEMENT: tuple[tuple[str, str, str], ...] = (  # name, unit, description
    (
        "agreement",
        "fraction of pairs of labels",
        "How often two annotators give the same label to a pair of completions; a tie agrees only with a tie.",
    ),
    (
        "agreement_half_ties",
        "fraction of pairs of labels",
        "The same, where a tie and another label agree by half.",
    ),
    ("agreement_no_ties", "fraction of pairs of labels", "The same for labels that are no ties."),
    ("alpha", "", "Krippendorff's alpha: nominal for outcomes, ordinal for ratings and strengths."),
    ("ac1", "", "Gwet's AC1, for unordered labels."),
    ("ac2", "", "Gwet's AC2 with linear weights, for ordered labels: worse, tied, better."),
    ("kappa", "", "Cohen's kappa of two annotators, or Fleiss' kappa of more."),
)
_SHARES: tuple[tuple[str, str, Direction, str], ...] = (  # name, unit, direction, description
    ("gold_accuracy", "fraction of pairs", "higher", "Pairs of gold items that are labeled rightly."),
    ("consistency", "fraction of pairs", "higher", "Pairs with the same label when an item was shown again."),
    ("first_shown_wins", "fraction of pairs", "none", "Decided pairs in which the completion shown first wins."),
    ("longer_wins", "fraction of pairs", "none", "Decided pairs in which the completion with more characters wins."),
    ("tie_rate", "fraction of pairs", "none", "Pairs that are labeled a tie."),
    (f"flag_rate.{FLAG}", "fraction of judgments", "lower", "Judgments that flag a completion or the item."),
)


def _quality(name: str, unit: str, direction: Direction, description: str, *, has_interval: bool = True) -> Metric:
    return Metric(
        f"feedback.{name}", unit, direction, description, "feedback", has_interval=has_interval, has_count=has_interval
    )


QUALITY_METRICS = (
    _quality("judgments", "judgments", "none", "Judgments of ordinary items that count as votes.", has_interval=False),
    _quality("items", "items", "none", "Items with at least one vote.", has_interval=False),
    _quality("items_judged_twice", "items", "higher", "Items with at least two votes.", has_interval=False),
    _quality("annotators", "annotators", "none", "Annotators with at least one vote.", has_interval=False),
    *(_quality(name, unit, "higher", description) for name, unit, description in _AGREEMENT),
    *(
        _quality(f"{name}.{SLICE}", unit, "higher", f"`feedback.{name}` of a slice of at least 30 items.")
        for name, unit, _ in _AGREEMENT
    ),
    *(_quality(*share) for share in _SHARES),
    _quality(
        "first_listed_wins",
        "fraction of pairs",
        "none",
        "Decided pairs in which the completion that the import lists first wins. Far from 1/2, alpha and kappa are low "
        "even if annotators agree.",
    ),
    _quality(f"annotator.{ANNOTATOR}.judgments", "judgments", "none", "Judgments of all items.", has_interval=False),
    _quality(f"annotator.{ANNOTATOR}.skipped", "items", "none", "Skipped items.", has_interval=False),
    _quality(f"annotator.{ANNOTATOR}.seconds", "seconds", "none", "Median time per item.", has_interval=False),
    _quality(
        f"annotator.{ANNOTATOR}.skill",
        "probability",
        "higher",
        "Probability that the next label is right, by the model of Dawid and Skene.",
        has_interval=False,
    ),
    _quality(
        f"annotator.{ANNOTATOR}.weighted_agreement",
        "fraction of pairs",
        "higher",
        "Mean probability that a label is right by the votes of the others, weighted by their skills; without ties, so "
        "that guessing gives 1/2.",
    ),
    _quality(
        f"annotator.{ANNOTATOR}.agreement",
        "fraction of pairs of labels",
        "higher",
        "How often another annotator gives the same label.",
    ),
    _quality(
        f"annotator.{ANNOTATOR}.agreement_no_ties",
        "fraction of pairs of labels",
        "higher",
        "The same for labels that are no ties.",
    ),
    *(
        _quality(f"annotator.{ANNOTATOR}.{name}", unit, direction, f"`feedback.{name}` of an annotator.")
        for name, unit, direction, _ in _SHARES
    ),
)
