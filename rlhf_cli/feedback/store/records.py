"""The records that only the store's callers need: what it returns about assignments, receipts, progress and status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlhf_cli.feedback.types import Annotator, Answer, Item, Judgment, TaskKind, Tiers

QualificationState = Literal["none", "open", "passed", "failed"]


@dataclass(frozen=True)
class AddResult:
    """How many items were added, how many existed already, and the ids of all in the given order."""

    added: int
    existing: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class RecordResult:
    """How many judgments were stored, and how many existed already."""

    added: int
    existing: int


@dataclass(frozen=True)
class Invite:
    """A one-time token with which an annotator logs in. The store keeps only its hash."""

    annotator: Annotator
    token: str


@dataclass(frozen=True)
class Session:
    """A token that identifies an annotator who has logged in. The store keeps only its hash."""

    annotator: Annotator
    token: str


@dataclass(frozen=True)
class Guideline:
    """One version of the guideline; the SHA-256 of its text identifies it."""

    sha256: str
    text: str
    created: str


@dataclass(frozen=True)
class Assignment:
    """An item that is reserved for an annotator.

    Attributes:
        id: Its id in the store.
        item: The item with its completions in the order in which they are shown. Its kind, its answer and the sources
            of its completions are removed.
        order: The completion ids in the order in which they are shown.
        task: The kind of task.
        criteria: The aspects that the annotator also rates.
        is_qualification: Whether the item is part of the qualification test.
        is_disputed: Whether the judgments so far contradict each other.
        guideline: SHA-256 of the guideline that is in force; "" if none.
        expires: When the lease expires, in seconds since 1970.
        is_open: Whether the item waits for an answer. False if it was submitted.
        judgment_id: The judgment that was reopened or submitted, or None.
        answer: The answer of that judgment, or None.
    """

    id: int
    item: Item
    order: tuple[int, ...]
    task: TaskKind
    criteria: tuple[str, ...]
    is_qualification: bool
    is_disputed: bool
    guideline: str
    expires: float
    is_open: bool = True
    judgment_id: int | None = None
    answer: Answer | None = None


@dataclass(frozen=True)
class QualificationFeedback:
    """How an annotator answered one item of the qualification test.

    Attributes:
        correct: Pairs that the annotator ordered as the right answer does.
        pairs: Pairs that the right answer orders or ties, and that the task compares.
        tiers: The right tiers, as completion ids.
        explanation: Why they are right.
        state: Whether the whole test is open, passed or failed after this item.
    """

    correct: int
    pairs: int
    tiers: Tiers
    explanation: str
    state: QualificationState


@dataclass(frozen=True)
class Receipt:
    """The acknowledgment of a judgment.

    Attributes:
        judgment_id: The judgment in the store.
        feedback: How the item was answered, if it is part of the qualification test.
        is_duplicate: Whether the item had been answered before, by another key, so that this answer was not stored.
    """

    judgment_id: int
    feedback: QualificationFeedback | None = None
    is_duplicate: bool = False


@dataclass(frozen=True)
class Progress:
    """How far an annotator is.

    Attributes:
        judged: Items that the annotator judged, without skipped ones and the qualification test.
        today: Those of the current day in UTC.
        remaining: Items that the annotator may still be asked about; at most `REMAINING_LIMIT` are counted.
        leased: Items beside those, without the qualification test, that are reserved for the annotator and not judged.
        qualification: State of the qualification test; none: the project has no test for this annotator.
        pace_seconds: Median time of the latest judgments, in seconds; None if there is no judgment.
    """

    judged: int
    today: int
    remaining: int
    leased: int
    qualification: QualificationState
    pace_seconds: float | None


@dataclass(frozen=True)
class AnnotatorStatus:
    """What one annotator has done. `latest` is the time of the latest judgment in UTC, or ""."""

    annotator: Annotator
    judged: int
    skipped: int
    qualification: QualificationState
    latest: str


@dataclass(frozen=True)
class GroupStatus:
    """Numbers of items of one language and field."""

    language: str
    field: str
    items: int
    open: int
    done: int
    disputed: int


@dataclass(frozen=True)
class Status:
    """Numbers of a project. Every ordinary item is open, done or disputed.

    Attributes:
        items: Ordinary items.
        open: Items with fewer judgments than the overlap.
        done: Items with enough judgments that agree, or with an expert's decision.
        disputed: Items with enough judgments that contradict each other, and without a decision.
        judgments: Judgments of people about ordinary items, without skipped ones and repeats.
        annotators: What each annotator has done.
        groups: The numbers by language and field.
        kinds: Number of items of each kind.
    """

    items: int
    open: int
    done: int
    disputed: int
    judgments: int
    annotators: Sequence[AnnotatorStatus]
    groups: Sequence[GroupStatus]
    kinds: Mapping[str, int]


@dataclass(frozen=True)
class DisputedItem:
    """An item on which annotators disagree, with all its judgments.

    Attributes:
        item: The item.
        judgments: Its current judgments by people.
        missing: How many further judgments it may still get before only an expert can settle it.
    """

    item: Item
    judgments: Sequence[Judgment]
    missing: int
