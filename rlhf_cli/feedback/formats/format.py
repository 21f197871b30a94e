"""The declaration of a format of feedback, and the records and checks that its conversions share."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from rlhf_cli.data.batches import Fields
from rlhf_cli.data.conversations import check_prompt, read_messages
from rlhf_cli.data.fields import mixed_formats_error
from rlhf_cli.data.issues import DroppedRowError, RowError, type_name
from rlhf_cli.data.rows import Message, Text
from rlhf_cli.feedback.types import Answer, NewCompletion, NewItem, NewJudgment, TaskKind, Tiers

Names = tuple[str, ...]  # names of one column in different datasets
ITEM_COLUMNS = ("prompt", "completions", "kind", "language", "field", "answer", "explanation", "is_random", "judgments")
RANKING_HINT = "Write completion indices from 0, best first, with ties in a list, such as [2, [0, 1]]."
LANGUAGE_TAG = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")  # BCP 47, without its rarer forms
LANGUAGES = {  # names of languages in published datasets: their BCP 47 tags
    **{"arabic": "ar", "chinese": "zh", "dutch": "nl", "english": "en", "french": "fr", "german": "de"},
    **{"hindi": "hi", "indonesian": "id", "italian": "it", "japanese": "ja", "korean": "ko", "polish": "pl"},
    **{"portuguese": "pt", "russian": "ru", "spanish": "es", "turkish": "tr", "ukrainian": "uk", "vietnamese": "vi"},
}


class ParsedRow(NamedTuple):
    """An item, the judgments of it that its row holds, and why further judgments of the row cannot be used."""

    item: NewItem
    judgments: tuple[NewJudgment, ...] = ()
    unusable: tuple[str, ...] = ()


@dataclass(frozen=True)
class FeedbackFormat:
    """A format in which items or judgments are imported.

    Attributes:
        name: The value of `--format`.
        origin: Datasets or tools that write it, for the documentation.
        reading: How a row is read, for the documentation.
        columns: The columns that its rows have, each with its possible names.
        convert: Returns a row as items with their judgments. It raises RowError for a row that cannot be used, and
            DroppedRowError for one that is skipped.
        optional: Further columns that are read. Other columns are kept with the item.
        write: Returns an item with its judgments as rows, and counts what they cannot hold; None: only imported.
        remark: What the format does not hold, which an import prints; "" if nothing is lost.
        keeps_other_columns: Whether columns that are not read are kept with the item. If not, `convert` decides.
        is_training_format: Whether it is one of `data.published`, which is used if no other fits as well.
    """

    name: str
    origin: str
    reading: str
    columns: tuple[Names, ...]
    convert: Callable[[Fields], Iterable[ParsedRow]]
    optional: Names = ()
    write: Callable[[ParsedRow, Counter[str]], list[Fields]] | None = None
    remark: str = ""
    keeps_other_columns: bool = True
    is_training_format: bool = False

    def fits(self, found: Collection[str]) -> bool:
        """Return whether rows with these columns can be read."""
        return all(not set(names).isdisjoint(found) for names in self.columns)

    def other_columns(self, fields: Fields) -> Fields:
        """Return the columns of a row that are not read.

        Such a column that has the name of a column of plain rows is renamed, for example `language` to
        `nectar.language`.
        """
        read = {*itertools.chain.from_iterable(self.columns), *self.optional}
        return {
            f"{self.name}.{name}" if name in ITEM_COLUMNS else name: value
            for name, value in fields.items()
            if name not in read
        }

    def describe(self) -> str:
        """Return the required columns in words."""
        return ", ".join(" or ".join(names) for names in self.columns)


def make_item(prompt: Text, completions: Sequence[Any], sources: Sequence[str] = (), **fields: Any) -> NewItem:
    """Return an item. A completion that is text becomes an assistant message if the prompt is a conversation.

    Args:
        prompt: The prompt: text, or messages that end with a user turn.
        completions: The text or the messages of each completion.
        sources: The run or model that wrote each completion; empty: not known.
        fields: Further fields of the item.

    Raises:
        RowError: The prompt or a completion is malformed, or a completion is a conversation and the prompt is not.
        DroppedRowError: There are fewer than two completions, or two of them are equal.
    """
    if not isinstance(prompt, str):
        prompt = read_messages(prompt, "prompt")
        check_prompt(prompt, "prompt")
    texts = [_read_completion(prompt, text, index) for index, text in enumerate(completions)]
    if len(texts) < 2:
        raise DroppedRowError("fewer than two completions")
    if any(text in texts[:index] for index, text in enumerate(texts)):
        raise DroppedRowError("two equal completions")
    named = sources or [""] * len(texts)
    return NewItem(prompt, tuple(map(NewCompletion, texts, named)), **fields)


def _read_completion(prompt: Text, text: Any, index: int) -> Text:
    """Return a completion in the format of the prompt. It may be empty: models write such completions, too."""
    name = f"completions[{index}]"
    if isinstance(prompt, str):
        if isinstance(text, list):
            raise mixed_formats_error(name, text, prompt)
        return check_text(text, name)
    if not isinstance(text, list):
        return [Message(role="assistant", content=check_text(text, name))]
    messages = read_messages(text, name, may_end_empty=True)
    if messages[0]["role"] != "assistant" or messages[-1]["role"] != "assistant":
        message = f"{name}: must start and end with an assistant turn."
        raise RowError("data.roles-out-of-order", message, "Remove the other turns, or the row.")
    return messages


def check_text(value: Any, name: str) -> str:
    """Return a value that must be text; it is used verbatim, and may be empty."""
    if isinstance(value, str):
        return value
    message = f"{name}: found {type_name(value)}, expected text."
    raise RowError("data.wrong-type", message, "Write it in quotes, or remove the row.")


def read_ranking(value: Any, count: int, name: str) -> Tiers:
    """Return a ranking of all completions, such as `[2, [0, 1]]`, as tiers of indices. Raise RowError if it is none.

    Args:
        value: The value.
        count: The number of completions.
        name: The field, for messages.
    """
    tiers = []
    for entry in value if isinstance(value, list) else [value]:
        tier = entry if isinstance(entry, list) else [entry]
        if not tier or any(type(index) is not int for index in tier) or not isinstance(value, list):
            message = f"{name}: found {value!r}, expected a list of completion indices."
            raise RowError("feedback.invalid-answer", message, RANKING_HINT)
        tiers.append(tuple(sorted(tier)))
    indices = [index for tier in tiers for index in tier]
    if len(set(indices)) < len(indices) or not set(indices) <= set(range(count)):
        message = f"{name}: found {value!r}, expected each index from 0 to {count - 1} at most once."
        raise RowError("feedback.invalid-answer", message, RANKING_HINT)
    if len(indices) < count:
        missing = ", ".join(str(index) for index in range(count) if index not in indices)
        message = f"{name}: completion {missing} is missing; found {value!r}."
        raise RowError("feedback.invalid-answer", message, RANKING_HINT)
    return tuple(tiers)


def write_ranking(tiers: Tiers) -> list[int | list[int]]:
    """Return tiers as `read_ranking` reads them: `[2, [0, 1]]`."""
    return [tier[0] if len(tier) == 1 else list(tier) for tier in tiers]


def tiers_of_scores(scores: Sequence[float]) -> Tiers:
    """Return the indices of `scores` as tiers, the highest score first. Equal scores are tied."""
    ordered = sorted(set(scores), reverse=True)
    return tuple(tuple(index for index, score in enumerate(scores) if score == value) for value in ordered)


def pair_answer(preference: float, **fields: Any) -> Answer:
    """Return the answer to a comparison of two completions.

    Args:
        preference: Positive if the first completion is better, negative if the second is, 0 for a tie.
        fields: Further fields of the answer.
    """
    return Answer(tiers_of_scores((preference, 0.0)) if preference else ((0, 1),), **fields)


def judge_item(item: NewItem, annotator: str, answer: Answer, *, task: TaskKind = "rank", **fields: Any) -> NewJudgment:
    """Return a judgment of `item`."""
    return NewJudgment(item, annotator, task, answer, **fields)


def read_text_field(fields: Fields, name: str, default: str = "") -> str:
    """Return an optional text, or `default` if it is missing, null or empty. Raise RowError for another type."""
    value = fields.get(name)
    if value is None or value == "":
        return default
    return check_text(value, name)


def read_language(value: Any) -> str:
    """Return the BCP 47 tag of a language given by tag or English name, or "" if it is neither."""
    if not isinstance(value, str):
        return ""
    named = LANGUAGES.get(value.strip().lower(), value.strip().replace("_", "-"))
    return named if LANGUAGE_TAG.fullmatch(named) else ""


def finite(value: Any) -> float | None:
    """Return a number, also from text as in CSV files, or None if `value` is no finite number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def with_extra(row: ParsedRow, extra: Mapping[str, Any]) -> ParsedRow:
    """Return a row whose item, and that of its judgments, holds further columns."""
    if not extra:
        return row
    item = replace(row.item, extra={**extra, **row.item.extra})
    return row._replace(item=item, judgments=tuple(replace(judgment, item=item) for judgment in row.judgments))
