"""Slices of preference pairs, and the accuracies that are reported for them."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_cli.evaluation.measurements import Ceiling, PreferenceMargins
from rlhf_cli.evaluation.metrics import compute, find_metric
from rlhf_cli.evaluation.preference_metrics import PREFERENCE_METRICS
from rlhf_cli.evaluation.slices import slices_of
from rlhf_cli.evaluation.statistics import wilson


def measure(margins: list[float], columns: list[dict[str, Any]], ceiling: Ceiling | None = None) -> dict[str, float]:
    pairs = PreferenceMargins.from_rows(margins, [0.0] * len(margins), columns, ceiling)
    return compute(PREFERENCE_METRICS, "preferences", pairs)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, set()),
        ({"languages": ["en", "zh-Hans"], "fields": []}, {"language.en", "language.zh-Hans"}),
        ({"field": "internal medicine. B", "source": "human"}, {"field.internal_medicine_B", "source.human"}),
        ({"groups": ["annotator", "expert"]}, {"annotators.annotator", "annotators.expert"}),
        ({"source": 3, "languages": None, "fields": [1, ""], "language": {"a": 1}}, set()),
    ],
)
def test_slices_of_row_are_named_by_its_columns(columns: dict[str, Any], expected: set[str]) -> None:
    assert slices_of(columns) == expected


def test_accuracy_of_slice_has_interval_and_count_and_small_slices_are_suppressed() -> None:
    english = [{"languages": ["en"]}] * 40
    german = [{"languages": ["de"]}] * 29
    found = measure([1.0] * 30 + [-1.0] * 10 + [1.0] * 29, [*english, *german])
    expected = wilson(30, 40)
    name = "reward.accuracy.language.en"
    assert (found[name], found[f"{name}.low"], found[f"{name}.high"]) == expected[:3]
    assert found[f"{name}.n"] == 40
    assert not [name for name in found if "language.de" in name]
    assert found["reward.accuracy"] == pytest.approx(59 / 69)


def test_votes_of_held_out_annotators_count_apart_from_the_labels() -> None:
    labels = [{"split": "test"}] * 4
    votes = [{"split": "annotators"}] * 2
    found = measure([1.0, 1.0, 1.0, -1.0, 1.0, -1.0], [*labels, *votes])
    assert (found["reward.accuracy"], found["reward.accuracy.n"]) == (0.75, 4)
    name = "reward.accuracy.held_out_annotators"
    assert (found[name], found[f"{name}.n"]) == (0.5, 2)


def test_votes_of_held_out_annotators_without_labels_are_the_accuracy() -> None:
    found = measure([1.0, -1.0], [{"split": "annotators"}] * 2)
    assert (found["reward.accuracy"], found["reward.accuracy.held_out_annotators"]) == (0.5, 0.5)


def test_ceiling_is_reported_if_it_is_known() -> None:
    assert measure([1.0], [{}], Ceiling(0.75, 80))["reward.ceiling"] == 0.75
    assert not [name for name in measure([1.0], [{}]) if "ceiling" in name]


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("reward.accuracy.language.en", "reward.accuracy.<slice>"),
        ("reward.accuracy.language.en.low", "reward.accuracy.<slice>"),
        ("reward.accuracy.held_out_annotators.n", "reward.accuracy.held_out_annotators"),
        ("reward.accuracy.low", "reward.accuracy"),
    ],
)
def test_find_metric_of_slice_returns_its_family(name: str, family: str) -> None:
    metric = find_metric(name)
    assert metric is not None
    assert metric.name == family
