"""The quality report of a project: agreement, bias, annotators, models and warnings, as metrics and as tables."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

import numpy as np

from rlhf_cli.evaluation.statistics import Interval, wilson
from rlhf_cli.feedback.quality import agreement as agreement_
from rlhf_cli.feedback.quality.aggregation import fit_annotators, most_probable
from rlhf_cli.feedback.quality.agreement import MIN_SLICE_ITEMS, Estimate, Labels, Undefined
from rlhf_cli.feedback.quality.annotators import (
    AGREEMENTS,
    AnnotatorQuality,
    Trials,
    Value,
    flag_trials,
    measure_annotators,
    measure_trials,
)
from rlhf_cli.feedback.quality.bradley_terry import strengths_of
from rlhf_cli.feedback.quality.votes import (
    FIRST,
    PEOPLE,
    TIE,
    FloatArray,
    Votes,
    count_labels,
    count_votes,
    first_judgments,
)
from rlhf_cli.feedback.quality.warnings import annotator_warnings, project_warnings
from rlhf_cli.feedback.types import ItemKind, Judgment, Snapshot, Source
from rlhf_cli.recipe.schema import Feedback

PREFIX = "feedback."


class ModelQuality(NamedTuple):
    """How often the completions of a model win against those of others, by the majority of votes.

    Attributes:
        model: The source of the completions.
        win_rate: Fraction of the pairs with another model that it wins; a tie counts as half a win.
        strength: Bradley-Terry strength with geometric mean 1, or None if it is not defined.
    """

    model: str
    win_rate: Interval
    strength: float | None


@dataclass(frozen=True)
class QualityReport:
    """The quality of all feedback of a project.

    Attributes:
        overall: Metrics of the project by name, without the prefix `feedback.`.
        slices: Agreement by slice, such as `language.en`, `criterion.helpful` and `strength`.
        suppressed: Number of items of the slices that have too few.
        annotators: The annotators, the best first.
        models: The models that wrote the completions, the strongest first; empty if there is only one.
        warnings: What the owner should look at, in plain words.
    """

    overall: Mapping[str, Value]
    slices: Mapping[str, Mapping[str, Estimate]]
    suppressed: Mapping[str, int]
    annotators: Sequence[AnnotatorQuality]
    models: Sequence[ModelQuality]
    warnings: Sequence[str]

    def metrics(self) -> dict[str, float]:
        """Return every defined number by its name, such as `feedback.alpha` and `feedback.alpha.low`."""
        found: dict[str, float] = {}
        for name, value in self._values():
            if isinstance(value, Interval):
                found |= {name: value.value, f"{name}.low": value.low, f"{name}.high": value.high}
                found[f"{name}.n"] = float(value.n)
            elif not isinstance(value, Undefined):
                found[name] = value
        return found

    def undefined(self) -> dict[str, str]:
        """Return why each metric without a value has none."""
        return {name: value.reason for name, value in self._values() if isinstance(value, Undefined)}

    def _values(self) -> Iterator[tuple[str, Value]]:
        for name, value in self.overall.items():
            yield f"{PREFIX}{name}", value
        for slice_name, estimates in self.slices.items():
            for name, estimate in estimates.items():
                yield f"{PREFIX}{name}.{slice_name}", estimate
        for annotator in self.annotators:
            for name, value in annotator.values.items():
                yield f"{PREFIX}annotator.{annotator.pseudonym}.{name}", value


def measure_quality(
    snapshot: Snapshot, *, sources: Collection[Source] = PEOPLE, overlap: int | None = None, seed: int = 0
) -> QualityReport:
    """Return the quality report of a project.

    Args:
        snapshot: All feedback of the project.
        sources: Whose judgments are measured.
        overlap: Number of judgments that every item gets. Further ones, which items get on which annotators disagree,
            do not count for agreement; see `agreement.before_disagreement`. None: all count.
        seed: Seed of the bootstrap.
    """
    everything = [judgment for judgment in snapshot.judgments if judgment.source in sources]
    first = first_judgments(snapshot, sources=sources, kinds=get_args(ItemKind))
    votes = count_votes(first)
    kinds = {item.id: item.kind for item in snapshot.items}
    is_ordinary = np.array([kinds[judgment.item_id] == "item" for judgment in first], dtype=bool)
    is_early = is_ordinary & agreement_.before_disagreement(first, votes, overlap)
    ordinary = [judgment for judgment, counts in zip(first, is_ordinary, strict=True) if counts]
    early = [judgment for judgment, counts in zip(first, is_early, strict=True) if counts]
    early_votes = votes.select(is_early[votes.judgment])
    fitted = fit_annotators(snapshot, votes) if votes.pair.size else None
    labels = agreement_.outcome_labels(early_votes)
    trials = measure_trials(snapshot, first, votes, early_votes, fitted) | {
        f"flag_rate.{flag}": trial for flag, trial in flag_trials(everything).items()
    }
    judged_twice = agreement_.count_judged_twice(labels)
    overall: dict[str, Value] = {
        "judgments": float(len(ordinary)),
        "items": float(len({judgment.item_id for judgment in ordinary})),
        "items_judged_twice": float(judged_twice),
        "annotators": float(len({judgment.annotator_id for judgment in ordinary})),
        **agreement_.measure_outcomes(labels, labels.values, seed=seed),
        **{name: trial.share() for name, trial in trials.items() if name not in AGREEMENTS},
        "first_listed_wins": _first_listed(early_votes),
    }
    slices, suppressed = _measure_slices(snapshot, early, labels, seed)
    people = measure_annotators(snapshot, everything, votes, fitted, trials)
    warnings = project_warnings(overall, judged_twice) + annotator_warnings(people, trials)
    return QualityReport(
        overall,
        slices,
        suppressed,
        people,
        _measure_models(snapshot, votes.select(is_ordinary[votes.judgment])),
        warnings,
    )


def overlap_of(settings: Feedback) -> int | None:
    """Return the number of judgments that every item gets, or None if items never get more."""
    return settings.overlap if settings.max_overlap > settings.overlap else None


def _first_listed(votes: Votes) -> Estimate:
    """Return how often the completion with the smaller id wins: by how much the labels are skewed by the import."""
    decided = votes.select(votes.label != TIE)
    item = votes.pairs[decided.pair, 0]
    is_first = (decided.label == FIRST).astype(float)
    return Trials(decided.annotator, item, is_first, "no pair is decided").share()


def _measure_slices(
    snapshot: Snapshot, judgments: Sequence[Judgment], labels: Labels, seed: int
) -> tuple[dict[str, dict[str, Estimate]], dict[str, int]]:
    """Return agreement by slice, and the numbers of items of the slices that are suppressed."""
    found: dict[str, dict[str, Estimate]] = {}
    suppressed: dict[str, int] = {}
    judged = set(labels.item.tolist())
    by_slice = {
        name: labels.of_items(items)
        for name, items in agreement_.slices_of(item for item in snapshot.items if item.id in judged).items()
    }
    ratings = {f"criterion.{name}": rated for name, rated in agreement_.rating_labels(judgments).items()}
    strengths = agreement_.strength_labels(judgments)
    if strengths.value.size:
        ratings["strength"] = strengths
    for name, own in [*by_slice.items(), *ratings.items()]:
        n = agreement_.count_judged_twice(own)
        if n < MIN_SLICE_ITEMS:
            suppressed[name] = n
        elif name in by_slice:
            found[name] = agreement_.measure_outcomes(own, labels.values, seed=seed)
        else:
            found[name] = agreement_.measure_ratings(own, own.values, seed=seed)
    return found, suppressed


def _measure_models(snapshot: Snapshot, votes: Votes) -> list[ModelQuality]:
    """Return the models by strength, or by win rate if the strengths are not defined; none if there is only one."""
    source = {completion.id: completion.source for item in snapshot.items for completion in item.completions}
    completions = np.array(sorted(source), dtype=np.int64)
    names, model = np.unique([source[completion] for completion in completions.tolist()], return_inverse=True)
    counts = count_labels(votes)
    label, _ = most_probable(counts / np.maximum(counts.sum(1, keepdims=True), 1))
    first, second = (model[np.searchsorted(completions, votes.pairs[:, column])] for column in (1, 2))
    is_match = counts.any(1) & (first != second) & (names[first] != "") & (names[second] != "")
    if not is_match.any():
        return []
    share = label[is_match] / 2  # of a win, to the first
    matches, mirrored = (a[is_match] * len(names) + b[is_match] for a, b in ((first, second), (second, first)))
    cells = np.bincount(matches, share, len(names) ** 2) + np.bincount(mirrored, 1 - share, len(names) ** 2)
    wins: FloatArray = cells.reshape(len(names), len(names)).astype(np.float64)
    played = np.flatnonzero((wins + wins.T).any(1))
    strengths = strengths_of(wins[np.ix_(played, played)])
    found = []
    for index, row in enumerate(played.tolist()):
        won, lost = float(wins[row].sum()), float(wins[:, row].sum())
        strength = None if strengths is None else float(strengths[index])
        found.append(ModelQuality(str(names[row]), wilson(won, round(won + lost)), strength))
    return sorted(found, key=lambda model: (-(model.strength or 0), -model.win_rate.value, model.model))
