"""The records of human feedback, independent of how they are stored. Statistics and exports take only these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as with_default
from typing import Any, Literal, NamedTuple

from rlhf_cli.data.rows import Text

TaskKind = Literal["rank", "best-worst", "pair"]
ItemKind = Literal["item", "gold", "qualification"]
Source = Literal["human", "ai"]
Role = Literal["annotator", "expert", "owner"]
Flag = Literal["unsafe", "false", "private", "language", "broken"]

FLAGS: tuple[Flag, ...] = ("unsafe", "false", "private", "language", "broken")
RATINGS = range(1, 6)  # by one criterion, from worst to best
MAX_STRENGTH = 3  # absolute, of a pair
WHOLE_ITEM = -1  # the key of `flags` in a NewJudgment that stands for the whole item
MAX_NAME = 100  # characters of a name, a language, a field or a key: two of them fit into an index row of PostgreSQL

Tiers = tuple[tuple[int, ...], ...]  # completion ids, best tier first; completions of one tier are tied


@dataclass(frozen=True)
class Completion:
    """A completion that is judged.

    Attributes:
        id: Its id in the store.
        text: Its text, or the messages of its last turn.
        source: The run or model that wrote it. Never sent to an annotator.
    """

    id: int
    text: Text
    source: str = ""


@dataclass(frozen=True)
class Item:
    """A prompt with the completions that are compared.

    Attributes:
        id: Its id in the store.
        prompt_key: Stable hash of the prompt, the same in every store.
        prompt: The prompt.
        completions: The completions, in the order in which they were imported.
        kind: Whether it is an ordinary item, a gold item or part of the qualification test.
        language: BCP 47 tag, such as `en`; "" if unknown.
        field: Subject, such as `medicine`; "" if none.
        answer: The right tiers of a gold or qualification item; empty for others.
        explanation: Why they are right, shown after a qualification item.
        is_random: Whether the item was selected at random, so that it may be used for evaluation.
        extra: Further columns of the imported row, kept for the export.
    """

    id: int
    prompt_key: str
    prompt: Text
    completions: tuple[Completion, ...]
    kind: ItemKind = "item"
    language: str = ""
    field: str = ""
    answer: Tiers = ()
    explanation: str = ""
    is_random: bool = True
    extra: Mapping[str, Any] = with_default(default_factory=dict)


@dataclass(frozen=True)
class Annotator:
    """A person, or a model with `source: ai`, who judges.

    Attributes:
        id: Its id in the store.
        name: The name that the owner entered. Never exported.
        pseudonym: The name in exports and reports.
        role: What the annotator may do: judge; also adjudicate; or everything.
        languages: BCP 47 tags of the items that the annotator is asked about; empty: all.
        fields: Subjects of the items that the annotator is asked about; empty: all.
        source: Whether a person or a model judges.
        is_active: Whether the annotator may log in.
    """

    id: int
    name: str
    pseudonym: str
    role: Role = "annotator"
    languages: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    source: Source = "human"
    is_active: bool = True


@dataclass(frozen=True)
class Answer:
    """What an annotator answers about one item.

    Attributes:
        tiers: The completions from best to worst. For `best-worst`: the best, the others, the worst.
        strength: For `pair`: -3 to 3, negative if the first completion of the item is better; None for other tasks.
        all_bad: Whether no completion is acceptable.
        criteria: Rating by criterion, 1 (worst) to 5 (best), for each completion id.
        flags: Flags by completion id. The id 0 flags the prompt or the whole item.
        rationale: Why, in the annotator's words; may be empty.
        skip_reason: Why the annotator skipped the item; "" if judged. A skipped item has no tiers.
        seconds: How long the annotator took, in seconds.
    """

    tiers: Tiers
    strength: int | None = None
    all_bad: bool = False
    criteria: Mapping[int, Mapping[str, int]] = with_default(default_factory=dict)
    flags: Mapping[int, tuple[Flag, ...]] = with_default(default_factory=dict)
    rationale: str = ""
    skip_reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Judgment:
    """An answer that the store acknowledged.

    Attributes:
        id: Its id in the store.
        item_id: The item that was judged.
        annotator_id: Who judged.
        task: The kind of task, which decides which pairs the tiers imply.
        answer: The answer.
        order: The completion ids in the order in which they were shown.
        guideline: SHA-256 of the guideline that was in force; "" if none.
        is_repeat: Whether the annotator had judged the item before.
        source: Whether a person or a model judged.
        principle: Id of the constitution's principle by which a model judged; "" for people.
        created: Time in UTC, ISO 8601.
    """

    id: int
    item_id: int
    annotator_id: int
    task: TaskKind
    answer: Answer
    order: tuple[int, ...]
    guideline: str = ""
    is_repeat: bool = False
    source: Source = "human"
    principle: str = ""
    created: str = ""


@dataclass(frozen=True)
class Decision:
    """An expert's decision about an item. It outranks the judgments and never replaces them."""

    item_id: int
    expert_id: int
    tiers: Tiers
    rationale: str = ""
    created: str = ""


@dataclass(frozen=True)
class Snapshot:
    """All feedback of a project at one moment, in the order of ids. Superseded judgments are left out."""

    items: Sequence[Item]
    annotators: Sequence[Annotator]
    judgments: Sequence[Judgment]
    decisions: Sequence[Decision] = ()
    guidelines: Mapping[str, str] = with_default(default_factory=dict)  # SHA-256: text


@dataclass(frozen=True)
class NewCompletion:
    """A completion that is not in the store yet.

    Attributes:
        text: Its text, or the messages of its last turn.
        source: The run or model that wrote it.
    """

    text: Text
    source: str = ""


@dataclass(frozen=True)
class NewItem:
    """An item that is not in the store yet. The fields without a description are those of `Item`.

    Attributes:
        answer: The right tiers, as indices of `completions` from 0.
    """

    prompt: Text
    completions: tuple[NewCompletion, ...]
    kind: ItemKind = "item"
    language: str = ""
    field: str = ""
    answer: Tiers = ()
    explanation: str = ""
    is_random: bool = True
    extra: Mapping[str, Any] = with_default(default_factory=dict)


@dataclass(frozen=True)
class NewJudgment:
    """A judgment that was made elsewhere: imported, or by a model.

    Attributes:
        item: The item, which the store has already, or its id there.
        annotator: Name of the person or model.
        task: The kind of task.
        answer: The answer, with indices of the item's completions from 0 instead of ids. The key -1 of `flags` flags
            the whole item.
        order: The indices in the order in which the completions were shown; empty: not known.
        source: Whether a person or a model judged.
        principle: Id of the constitution's principle; "" for people.
        guideline: SHA-256 of the guideline that was in force; "" if none.
        created: Time in UTC, ISO 8601; "": now.
        key: Identifies the judgment where it comes from, so that it is recorded once; "": its content does.
    """

    item: NewItem | int
    annotator: str
    task: TaskKind
    answer: Answer
    order: tuple[int, ...] = ()
    source: Source = "human"
    principle: str = ""
    guideline: str = ""
    created: str = ""
    key: str = ""


class Comparison(NamedTuple):
    """Two completions that a judgment compares. `outcome` is 1 if `first` is better, -1 if `second` is, 0 if tied."""

    first: int
    second: int
    outcome: int


def comparisons(tiers: Tiers, task: TaskKind) -> list[Comparison]:
    """Return each pair of completions that `tiers` orders or ties, with `first` the smaller id.

    The middle tier of a best-worst answer holds completions that were not compared with each other, not ties.
    """
    pairs = []
    for index, tier in enumerate(tiers):
        middle = task == "best-worst" and len(tiers) == 3 and index == 1
        if not middle:
            pairs += [Comparison(min(a, b), max(a, b), 0) for i, a in enumerate(tier) for b in tier[i + 1 :]]
        for worse in tiers[index + 1 :]:
            pairs += [Comparison(a, b, 1) if a < b else Comparison(b, a, -1) for a in tier for b in worse]
    return sorted(pairs)
