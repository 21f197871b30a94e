"""Warnings about annotators and projects, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlhf_cli.evaluation.statistics import Interval
from rlhf_cli.feedback.quality.agreement import Estimate, Undefined
from rlhf_cli.feedback.quality.annotators import AnnotatorQuality, Trials

MIN_TRIALS = 20  # fewer pairs or judgments give no warning
CHANCE = 0.5
MARGIN = 0.05  # from chance: a bias that is certain but smaller is of no concern
MIN_ACCURACY = 0.7  # the default of feedback.qualification.min_accuracy
FAST = 1 / 3  # of the median pace of the others
MIN_ITEMS = 30
HIGH_FLAG_RATE = 0.05


def annotator_warnings(annotators: Sequence[AnnotatorQuality], trials: Mapping[str, Trials]) -> list[str]:
    """Return what the owner should look at, the annotators of lowest rank first."""
    found = []
    for annotator in reversed(annotators):
        problems = [
            *_unreliable(annotator, trials["weighted_agreement"]),
            *_biased(annotator, trials["longer_wins"]),
            *_careless(annotator, annotators),
        ]
        found += [f"{annotator.pseudonym} {problem}." for problem in problems]
    return found


def project_warnings(overall: Mapping[str, Estimate | float], judged_twice: int) -> list[str]:
    """Return what makes the metrics of the whole project hard to read."""
    found = []
    if judged_twice < MIN_ITEMS:
        found.append(
            f"agreement: measured on {judged_twice} items with at least two judgments; "
            f"its interval is reliable from about {MIN_ITEMS} items."
        )
    first = _usable(overall["first_shown_wins"])
    if first and _is_biased(first):
        found.append(f"the completion shown first wins {describe(first)}, expected about 50%.")
    listed = _usable(overall["first_listed_wins"])
    if listed and not 0.3 <= listed.value <= 0.7:
        found.append(
            f"the completion listed first in the import wins {describe(listed)}; alpha and kappa are low for such "
            "labels even if annotators agree, so read agreement and AC2 instead."
        )
    private = _usable(overall["flag_rate.private"])
    if private and private.value > HIGH_FLAG_RATE:
        found.append(f"private data was flagged in {describe(private, 'judgments')}; remove it before the export.")
    return found


def describe(interval: Interval, noun: str = "pairs") -> str:
    """Return a fraction as `78% [70, 85] of 120 pairs`."""
    return f"{interval.value:.0%} [{interval.low * 100:.0f}, {interval.high * 100:.0f}] of {interval.n:,} {noun}"


def _unreliable(annotator: AnnotatorQuality, agreement: Trials) -> list[str]:
    found = []
    own, others = annotator.interval("weighted_agreement"), agreement.share(annotator.id, others=True)
    if own and own.n >= MIN_TRIALS and own.low <= CHANCE and isinstance(others, Interval) and own.high < others.value:
        found.append(
            f"agrees with the others no more than a coin: {describe(own)} are right by the others' weighted votes"
        )
    gold = annotator.interval("gold_accuracy")
    if gold and gold.n >= MIN_TRIALS and gold.high < MIN_ACCURACY:
        found.append(f"is often wrong on gold items: right on {describe(gold)}")
    same = annotator.interval("consistency")
    if same and same.n >= MIN_TRIALS and same.high < MIN_ACCURACY:
        found.append(f"often changes an own judgment when the item is shown again: the same in {describe(same)}")
    return found


def _biased(annotator: AnnotatorQuality, longer: Trials) -> list[str]:
    found = []
    first = annotator.interval("first_shown_wins")
    if first and first.n >= MIN_TRIALS and _is_biased(first):
        side = "first" if first.value > CHANCE else "last"
        found.append(f"prefers the completion shown {side}: the one shown first wins {describe(first)}")
    length, others = annotator.interval("longer_wins"), longer.share(annotator.id, others=True)
    if length and length.n >= MIN_TRIALS and _is_biased(length) and _exceeds(length, others):
        side = "longer" if length.value > CHANCE else "shorter"
        text = describe(length if side == "longer" else _complement(length))
        found.append(f"prefers the {side} completion: {text}{_compare(others, side)}")
    return found


def _careless(annotator: AnnotatorQuality, annotators: Sequence[AnnotatorQuality]) -> list[str]:
    found = []
    ties, judged = annotator.interval("tie_rate"), annotator.number("judgments") or 0
    if ties and ties.n >= MIN_TRIALS and ties.value == 1:
        found.append(f"answered every pair with a tie ({ties.n:,} pairs)")
    paces = sorted(
        pace for other in annotators if other is not annotator and (pace := other.number("seconds")) is not None
    )
    own = annotator.number("seconds")
    if own is not None and paces and judged >= MIN_TRIALS:
        middle = paces[len(paces) // 2]
        if own < FAST * middle:
            found.append(f"takes {own:.0f} seconds per item, the others {middle:.0f}")
    return found


def _usable(value: Estimate | float) -> Interval | None:
    return value if isinstance(value, Interval) and value.n >= MIN_TRIALS else None


def _is_biased(interval: Interval) -> bool:
    return interval.low > CHANCE + MARGIN or interval.high < CHANCE - MARGIN


def _exceeds(interval: Interval, others: Estimate) -> bool:
    """Return whether the bias is certainly larger than that of the others: if longer is better, all prefer longer."""
    if isinstance(others, Undefined):
        return True
    return interval.low > others.value if interval.value > CHANCE else interval.high < others.value


def _complement(interval: Interval) -> Interval:
    return Interval(1 - interval.value, 1 - interval.high, 1 - interval.low, interval.n)


def _compare(others: Estimate, side: str) -> str:
    if isinstance(others, Undefined):
        return ""
    return f"; the others {others.value if side == 'longer' else 1 - others.value:.0%}"
