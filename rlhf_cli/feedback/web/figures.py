"""The metrics of the owner's overview, as the templates show them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rlhf_cli.evaluation.statistics import Interval
from rlhf_cli.feedback.quality.agreement import measure_outcomes, outcome_labels
from rlhf_cli.feedback.quality.annotators import AnnotatorQuality
from rlhf_cli.feedback.quality.report import measure_quality, overlap_of
from rlhf_cli.feedback.quality.votes import count_votes, first_judgments
from rlhf_cli.feedback.store import Status, Store
from rlhf_cli.feedback.types import Snapshot

MAX_POINTS = 12  # of the chart
MIN_ITEMS = 5  # per point: fewer have intervals too wide to show a change
LEFT, RIGHT, TOP, BOTTOM = 62, 592, 14, 150  # of the chart, in its own units
TICKS = (0.0, 0.5, 1.0)


class Figures(NamedTuple):
    """What the overview shows beside the numbers of the store.

    Attributes:
        agreement: Raw agreement of all pairs, or None if no two people judged the same item.
        chart: Agreement over time, or None if there is too little.
        annotators: One row per person.
    """

    agreement: Interval | None
    chart: Chart | None
    annotators: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Chart:
    """A line with its band, in the units of the drawing."""

    points: Sequence[Mapping[str, Any]]
    line: str
    band: str
    ticks: Sequence[Mapping[str, Any]]
    first: str
    last: str
    description: str


class Overview:
    """Measures a project again only if something was judged since: it takes seconds if there are many judgments."""

    def __init__(self) -> None:
        self._status: Status | None = None
        self._figures: Figures | None = None

    def measure(self, store: Store) -> tuple[Status, Figures]:
        """Return the numbers and the metrics of the project."""
        status = store.status()
        if self._figures is None or status != self._status:
            self._status, self._figures = status, measure(status, store.snapshot(), overlap_of(store.settings))
        return status, self._figures


def measure(status: Status, snapshot: Snapshot, overlap: int | None) -> Figures:
    """Return the metrics of a project."""
    report = measure_quality(snapshot, overlap=overlap)
    agreement = report.overall["agreement"]
    qualities = {quality.id: quality for quality in report.annotators}
    return Figures(
        agreement if isinstance(agreement, Interval) else None,
        _chart(_agreement_over_time(snapshot)),
        _rows(status, qualities),
    )


def format_pace(seconds: float) -> str:
    """Return a time per item, such as 24 s or 1.5 min."""
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.1f} min"


def _rows(status: Status, qualities: Mapping[int, AnnotatorQuality]) -> list[dict[str, Any]]:
    """Return one row per person who judges."""
    rows = []
    for row in status.annotators:
        person, quality = row.annotator, qualities.get(row.annotator.id)
        if person.source != "human" or (person.role == "owner" and not row.judged):
            continue
        values = {
            name: quality.number(name) if quality else None
            for name in ("seconds", "gold_accuracy", "agreement", "first_shown_wins", "longer_wins")
        }
        rows.append(
            {
                "name": person.name,
                "role": person.role,
                "judged": row.judged,
                "skipped": row.skipped,
                "test": "–" if row.qualification == "none" else row.qualification,
                "pace": "–" if values["seconds"] is None else format_pace(values["seconds"]),
                "gold": _percent(values["gold_accuracy"]),
                "agreement": _percent(values["agreement"]),
                "first": _percent(values["first_shown_wins"]),
                "longer": _percent(values["longer_wins"]),
                "latest": row.latest[:16].replace("T", " "),
            }
        )
    return rows


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


class Batch(NamedTuple):
    """The agreement about some items, until a date."""

    date: str
    agreement: Interval


def _agreement_over_time(snapshot: Snapshot) -> list[Batch]:
    """Return the agreement of batches of items, in the order of the latest judgment of each item."""
    judgments = first_judgments(snapshot)
    times: dict[int, list[str]] = defaultdict(list)
    for judgment in judgments:
        times[judgment.item_id].append(judgment.created)
    latest = sorted((max(created), item) for item, created in times.items() if len(created) > 1)
    labels = outcome_labels(count_votes(judgments))
    size = max(MIN_ITEMS, -(-len(latest) // MAX_POINTS))
    batches = []
    for start in range(0, len(latest) - MIN_ITEMS + 1, size):
        chosen = latest[start : start + size]
        agreement = measure_outcomes(labels.of_items([item for _, item in chosen]), labels.values)["agreement"]
        if isinstance(agreement, Interval):
            batches.append(Batch(chosen[-1][0][:10], agreement))
    return batches


def _chart(batches: Sequence[Batch]) -> Chart | None:
    """Return the drawing of the agreement, or None if there are fewer than two batches."""
    if len(batches) < 2:
        return None
    step = (RIGHT - LEFT) / (len(batches) - 1)
    xs = [round(LEFT + step * index, 1) for index in range(len(batches))]
    values = [batch.agreement for batch in batches]
    above = [f"{x},{_height(value.high)}" for x, value in zip(xs, values, strict=True)]
    below = [f"{x},{_height(value.low)}" for x, value in zip(xs, values, strict=True)]
    points = [
        {
            "x": x,
            "y": _height(batch.agreement.value),
            "label": _describe(batch),
        }
        for x, batch in zip(xs, batches, strict=True)
    ]
    return Chart(
        points=points,
        line=" ".join(f"{point['x']},{point['y']}" for point in points),
        band=" ".join([*above, *reversed(below)]),
        ticks=[{"y": _height(tick), "label": f"{tick:.0%}"} for tick in TICKS],
        first=batches[0].date,
        last=batches[-1].date,
        description="Agreement over time: " + "; ".join(str(point["label"]) for point in points),
    )


def _describe(batch: Batch) -> str:
    value, low, high, _ = batch.agreement
    return f"{value:.0%} ({low:.0%} to {high:.0%}), {batch.date}"


def _height(value: float) -> float:
    """Return the vertical position of a value from 0 to 1."""
    return round(BOTTOM - (BOTTOM - TOP) * value, 1)
