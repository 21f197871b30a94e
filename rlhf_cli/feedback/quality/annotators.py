"""Annotators: whether they are right, consistent, fast, in agreement with the others, or biased."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.data.rows import Text
from rlhf_cli.evaluation.statistics import Interval, wilson
from rlhf_cli.feedback.quality.aggregation import UNKNOWN, known_labels
from rlhf_cli.feedback.quality.agreement import CONSTANT, Estimate, Undefined
from rlhf_cli.feedback.quality.dawid_skene import DawidSkene
from rlhf_cli.feedback.quality.votes import (
    FIRST,
    LABELS,
    SECOND,
    TIE,
    FloatArray,
    IntArray,
    Votes,
    count_labels,
    unique_rows,
)
from rlhf_cli.feedback.types import FLAGS, Comparison, Item, Judgment, Snapshot, comparisons

MIN_SKILL_PAIRS = 10  # pairs with another vote or a known label, below which a skill is mostly the prior
MIN_SKILL_ANNOTATORS = 3  # two annotators who disagree cannot be told apart
AGREEMENTS = ("agreement", "agreement_no_ties", "weighted_agreement")  # with the other annotators
SHARES = ("gold_accuracy", "consistency", *AGREEMENTS, "first_shown_wins", "longer_wins", "tie_rate")

Value = Interval | float | Undefined


@dataclass(frozen=True)
class AnnotatorQuality:
    """The metrics of one annotator.

    Attributes:
        id: Id of the annotator.
        pseudonym: The name in reports.
        values: `judgments`, `skipped`, `seconds`, `skill`, those of SHARES, and `flag_rate.<flag>`.
    """

    id: int
    pseudonym: str
    values: Mapping[str, Value]

    def number(self, name: str) -> float | None:
        """Return the value of a metric, or None if it is not defined."""
        value = self.values[name]
        if isinstance(value, Undefined):
            return None
        return value.value if isinstance(value, Interval) else value

    def interval(self, name: str) -> Interval | None:
        """Return the value of a metric with its interval, or None if it has none."""
        value = self.values[name]
        return value if isinstance(value, Interval) else None


@dataclass(frozen=True)
class Trials:
    """Successes of annotators, as far as each vote or judgment is one.

    Attributes:
        annotator: Id of the annotator. Shape: (N,)
        item: Id of the item. Trials on one item are not independent. Shape: (N,)
        success: 0 to 1. Shape: (N,)
        reason: Why the fraction is not defined if there is no trial.
    """

    annotator: IntArray
    item: IntArray
    success: FloatArray
    reason: str

    @cached_property
    def cells(self) -> tuple[IntArray, IntArray, FloatArray, FloatArray]:
        """Annotator, index of the item, sum of successes and number of trials, for each annotator and item."""
        cells, cell = unique_rows(np.stack([self.annotator, self.item], -1))
        _, item = np.unique(cells[:, 1], return_inverse=True)
        success, trials = np.bincount(cell, self.success, len(cells)), np.bincount(cell, minlength=len(cells))
        return cells[:, 0], item, success.astype(np.float64), trials.astype(np.float64)

    def share(self, annotator: int | None = None, *, others: bool = False) -> Estimate:
        """Return the fraction of successes of one annotator, of all others, or of all, with a Wilson interval.

        The number of trials in the interval is divided by the design effect of trials on the same item (Kish 1965),
        so that the six pairs of one ranking do not count as six independent observations.
        """
        owner, item, success, trials = self.cells
        mask = np.ones(len(owner), dtype=bool) if annotator is None else (owner == annotator) != others
        success, trials = (np.bincount(item[mask], of_cell[mask]).astype(np.float64) for of_cell in (success, trials))
        n, items = round(trials.sum()), int((trials > 0).sum())
        if n == 0:
            return Undefined(self.reason)
        share = float(success.sum() / n)
        effective = items
        if 0 < share < 1:
            variance = float(((success - share * trials) ** 2).sum()) / (n * share * (1 - share))
            effective = round(n / max(1.0, variance))
        interval = wilson(share * effective, effective)
        return Interval(share, interval.low, interval.high, n)


def measure_trials(
    snapshot: Snapshot, judgments: Sequence[Judgment], votes: Votes, early: Votes, fitted: DawidSkene | None
) -> dict[str, Trials]:
    """Return the trials of each of SHARES.

    Args:
        snapshot: All feedback of the project.
        judgments: The first judgments of annotators on items of all kinds.
        votes: Their votes.
        early: The votes that count for agreement.
        fitted: The model of Dawid and Skene of all votes; None: there is no vote.
    """
    kind_of = {item.id: item.kind for item in snapshot.items}
    kind = np.array([kind_of[judgment.item_id] for judgment in judgments], dtype=str)[votes.judgment]
    ordinary = votes.select(kind == "item")
    decided = ordinary.select(ordinary.label != TIE)
    return {
        "gold_accuracy": _gold_accuracy(snapshot, votes.select(kind == "gold")),
        "consistency": _consistency(snapshot.judgments, judgments),
        "agreement": _agreement_with_others(early, "no other annotator judged the same pairs"),
        "agreement_no_ties": _agreement_with_others(
            early.select(early.label != TIE), "no other annotator decided the same pairs"
        ),
        "weighted_agreement": _weighted_agreement(snapshot, votes, fitted),
        "first_shown_wins": _wins(decided, _shown_first(judgments, decided), "no pair with a known order is decided"),
        "longer_wins": _wins(decided, _longer(snapshot.items, decided), "no pair of different lengths is decided"),
        "tie_rate": _trials(ordinary, ordinary.label == TIE, "no ordinary item was judged"),
    }


def flag_trials(judgments: Sequence[Judgment]) -> dict[str, Trials]:
    """Return, for each flag, whether a judgment sets it on a completion or on the item."""
    annotator = np.array([judgment.annotator_id for judgment in judgments], dtype=np.int64)
    item = np.array([judgment.item_id for judgment in judgments], dtype=np.int64)
    raised = [{flag for flags in judgment.answer.flags.values() for flag in flags} for judgment in judgments]
    return {
        flag: Trials(annotator, item, np.array([flag in flags for flags in raised], dtype=float), "nothing was judged")
        for flag in FLAGS
    }


def measure_annotators(
    snapshot: Snapshot,
    judgments: Sequence[Judgment],
    votes: Votes,
    fitted: DawidSkene | None,
    trials: Mapping[str, Trials],
) -> list[AnnotatorQuality]:
    """Return the metrics of each annotator who judged anything, the best first.

    The order is that of the skill, or of gold accuracy or agreement if the skill is not defined.

    Args:
        snapshot: All feedback of the project.
        judgments: All judgments that are measured, also skipped and repeated ones.
        votes: The votes of the first judgments on items of all kinds.
        fitted: The model of Dawid and Skene of these votes; None: there is no vote.
        trials: Trials by name of the metric.
    """
    skills = _skills(snapshot, votes, fitted)
    skipped = Counter(judgment.annotator_id for judgment in judgments if judgment.answer.skip_reason)
    seconds: dict[int, list[float]] = {}
    for judgment in judgments:
        seconds.setdefault(judgment.annotator_id, [])
        if not judgment.answer.skip_reason and judgment.answer.seconds > 0:
            seconds[judgment.annotator_id].append(judgment.answer.seconds)
    total = Counter(judgment.annotator_id for judgment in judgments)
    found = [
        AnnotatorQuality(
            person.id,
            person.pseudonym,
            {
                "judgments": float(total[person.id] - skipped[person.id]),
                "skipped": float(skipped[person.id]),
                "seconds": median(seconds[person.id]) if seconds[person.id] else Undefined("no time is known"),
                "skill": skills.get(person.id, Undefined("nothing was judged")),
                **{name: trial.share(person.id) for name, trial in trials.items()},
            },
        )
        for person in snapshot.annotators
        if total[person.id]
    ]
    return sorted(found, key=_rank)


def _rank(annotator: AnnotatorQuality) -> tuple[float, str]:
    numbers = (annotator.number(name) for name in ("skill", "gold_accuracy", "agreement"))
    return -next((number for number in numbers if number is not None), -1.0), annotator.pseudonym


def _skills(snapshot: Snapshot, votes: Votes, fitted: DawidSkene | None) -> dict[int, float | Undefined]:
    """Return the probability that an annotator's next label is right, by the model of Dawid and Skene."""
    if fitted is None:
        return {}
    people, person = np.unique(votes.annotator, return_inverse=True)
    is_known = known_labels(snapshot, votes) != UNKNOWN
    is_comparable = is_known | (count_labels(votes).sum(1) > 1)
    known, comparable = (np.bincount(person, mask[votes.pair]).tolist() for mask in (is_known, is_comparable))
    is_constant = len(np.unique(votes.label)) == 1
    found: dict[int, float | Undefined] = {}
    for index, (number, skill) in enumerate(zip(people.tolist(), fitted.skill.tolist(), strict=True)):
        found[number] = skill
        if is_constant:
            found[number] = CONSTANT
        elif len(people) < MIN_SKILL_ANNOTATORS and known[index] < MIN_SKILL_PAIRS:
            found[number] = Undefined(f"it needs {MIN_SKILL_ANNOTATORS} annotators, or gold items")
        elif comparable[index] < MIN_SKILL_PAIRS:
            found[number] = Undefined(f"fewer than {MIN_SKILL_PAIRS} of the pairs can be compared with others")
    return found


def _weighted_agreement(snapshot: Snapshot, votes: Votes, fitted: DawidSkene | None) -> Trials:
    """Return, for each vote, how probably it is right by the votes of the others alone, weighted by their skills.

    Ties are left out, as if they could not occur, so that guessing gives 1/2.
    """
    reason = "no other annotator decided the same pairs"
    if fitted is None or len(np.unique(votes.label)) == 1:
        return _trials(votes.select(np.zeros(votes.pair.shape, dtype=bool)), np.zeros(0), reason)
    is_known = (known_labels(snapshot, votes) != UNKNOWN)[votes.pair]
    _, person = np.unique(votes.annotator, return_inverse=True)
    own_evidence = np.where(is_known[:, None], 1.0, fitted.confusion[person, votes.label])  # (V, LABELS)
    others = fitted.posterior[votes.pair] / own_evidence
    decided = others[:, FIRST] + others[:, SECOND]
    has_others = is_known | (count_labels(votes).sum(1)[votes.pair] > 1)
    is_trial = has_others & (votes.label != TIE) & (decided > 0)
    right = others[np.arange(len(others)), votes.label]
    return _trials(votes.select(is_trial), right[is_trial] / decided[is_trial], reason)


def _trials(votes: Votes, success: NDArray[np.bool_] | FloatArray, reason: str) -> Trials:
    return Trials(votes.annotator, votes.pairs[votes.pair, 0], success.astype(float), reason)


def _gold_accuracy(snapshot: Snapshot, votes: Votes) -> Trials:
    known = known_labels(snapshot, votes)[votes.pair]
    own = votes.select(known != UNKNOWN)
    return _trials(own, own.label == known[known != UNKNOWN], "no gold item was judged")


def _consistency(everything: Sequence[Judgment], first: Sequence[Judgment]) -> Trials:
    """Compare each repeated judgment with the annotator's first one of the item."""
    earlier = {(judgment.item_id, judgment.annotator_id): judgment for judgment in first}
    rows: list[tuple[int, int, bool]] = []
    for judgment in everything:
        before = earlier.get((judgment.item_id, judgment.annotator_id))
        if judgment.is_repeat and before is not None and judgment.answer.tiers:
            outcomes = {(pair.first, pair.second): pair.outcome for pair in _pairs(before)}
            rows += [
                (judgment.annotator_id, judgment.item_id, outcomes[pair.first, pair.second] == pair.outcome)
                for pair in _pairs(judgment)
                if (pair.first, pair.second) in outcomes
            ]
    annotator, item, success = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return Trials(annotator, item, success.astype(float), "no item was judged twice")


def _pairs(judgment: Judgment) -> list[Comparison]:
    return comparisons(judgment.answer.tiers, judgment.task)


def _agreement_with_others(votes: Votes, reason: str) -> Trials:
    """Return, for each vote, the fraction of the other votes on the pair that are the same."""
    others = count_labels(votes)[votes.pair] - np.eye(LABELS)[votes.label]
    total = others.sum(1)
    same = others[np.arange(len(total)), votes.label] / np.maximum(total, 1)
    return _trials(votes.select(total > 0), same[total > 0], reason)


def _wins(votes: Votes, advantage: FloatArray, reason: str) -> Trials:
    """Return, for each vote, whether the completion with the advantage won.

    Args:
        votes: Votes that are no ties.
        advantage: Above 0 if the first completion has it, below if the second has; 0 or NaN: the vote is left out.
            Shape: (V,)
        reason: Why the fraction is not defined if no vote is left.
    """
    has_advantage = np.abs(advantage) > 0
    own = votes.select(has_advantage)
    return _trials(own, (own.label == FIRST) == (advantage[has_advantage] > 0), reason)


def _shown_first(judgments: Sequence[Judgment], votes: Votes) -> FloatArray:
    """Return, for each vote, how much earlier the first completion was shown; NaN if the order is not known."""
    width = int(votes.pairs.max(initial=0)) + 1
    keys = [index * width + completion for index, judgment in enumerate(judgments) for completion in judgment.order]
    places = [place for judgment in judgments for place in range(len(judgment.order))]
    order = np.argsort(np.array(keys, dtype=np.int64))
    known, place = np.array(keys, dtype=np.int64)[order], np.array(places, dtype=float)[order]
    return _look_up(votes, votes.judgment * width, known, -place)


def _longer(items: Sequence[Item], votes: Votes) -> FloatArray:
    """Return, for each vote, by how many characters the first completion is longer."""
    lengths = {c.id: _length(c.text) for item in items for c in item.completions}
    known = np.array(sorted(lengths), dtype=np.int64)
    length = np.array([lengths[completion] for completion in known.tolist()], dtype=float)
    return _look_up(votes, np.zeros_like(votes.judgment), known, length)


def _look_up(votes: Votes, offset: IntArray, known: IntArray, value: FloatArray) -> FloatArray:
    """Return the value of a vote's first completion minus that of its second one; NaN if one is not known.

    Args:
        votes: The votes.
        offset: Added to the completion ids to get the keys. Shape: (V,)
        known: The keys in ascending order. Shape: (K,)
        value: The value of each key. Shape: (K,)
    """
    if not known.size:
        return np.full(votes.pair.shape, np.nan)
    first, second = (votes.pairs[votes.pair, column] + offset for column in (1, 2))
    sides = []
    for keys in (first, second):
        index = np.minimum(np.searchsorted(known, keys), known.size - 1)
        sides.append(np.where(known[index] == keys, value[index], np.nan))
    difference: FloatArray = sides[0] - sides[1]
    return difference


def _length(text: Text) -> int:
    """Return the number of characters of a completion."""
    return len(text) if isinstance(text, str) else sum(len(message["content"]) for message in text)
