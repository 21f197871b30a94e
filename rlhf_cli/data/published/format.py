"""The declaration of a published format, and what the conversions share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_cli.data.batches import Fields
from rlhf_cli.data.issues import FILL_IN_HINT, DroppedRowError, RowError, type_name
from rlhf_cli.stages import DatasetKind

Names = tuple[str, ...]  # names of one column in different datasets


class NoPreferenceError(DroppedRowError):
    """Raised for a row without a preference, whose prompt can be used. The message is the reason.

    Args:
        reason: Why there is no preference.
        prompt: The prompt.
    """

    def __init__(self, reason: str, prompt: Any) -> None:
        super().__init__(reason)
        self.prompt = prompt


@dataclass(frozen=True)
class PublishedFormat:
    """A format of published datasets.

    Attributes:
        name: The value of `format` in a recipe.
        datasets: Datasets in this format, for the documentation.
        reading: How a row is read, for the documentation.
        required: The columns that rows of each dataset kind have, each with its possible names. The format can be used
            for these kinds only.
        convert: Returns a row as rows with `prompt`, and `completion` or `chosen` and `rejected`. It raises RowError
            for a row that cannot be used, NoPreferenceError for one of which only the prompt can be used, and
            DroppedRowError for one that is dropped.
        optional: Further columns that are read.
    """

    name: str
    datasets: str
    reading: str
    required: Mapping[DatasetKind, tuple[Names, ...]]
    convert: Callable[[Fields], Iterable[Fields]]
    optional: Names = ()

    @property
    def columns(self) -> list[str]:
        """All columns that are read, by all of their names."""
        required = (name for columns in self.required.values() for names in columns for name in names)
        return list(dict.fromkeys([*required, *self.optional]))

    def fits(self, kind: DatasetKind, found: Iterable[str]) -> bool:
        """Return whether a dataset with these columns can be read as rows of this kind."""
        present = set(found)
        return kind in self.required and all(present.intersection(names) for names in self.required[kind])

    def read(self, kind: DatasetKind, fields: Fields, ignored: Collection[str]) -> Iterable[Fields]:
        """Return the rows, under our names, that a raw row stands for. Of a comparison, sft reads the best completion.

        Raises:
            RowError: A required field is missing, or a field cannot be used.
            DroppedRowError: The row has no preference.
        """
        for names in self.required[kind]:
            if not any(name in fields for name in names):
                raise RowError("data.missing-field", f"{' or '.join(names)}: missing field.", FILL_IN_HINT)
        try:
            rows = list(self.convert({name: value for name, value in fields.items() if name not in ignored}))
        except NoPreferenceError as error:
            if kind == "prompts":
                return [{"prompt": error.prompt}]
            raise
        if kind == "sft" and any("chosen" in row for row in rows):  # the first pair has the best completion
            return [{"prompt": rows[0]["prompt"], "completion": rows[0]["chosen"]}]
        return rows

    def describe(self, kind: DatasetKind) -> str:
        """Return the required columns in words."""
        return ", ".join(" or ".join(names) for names in self.required[kind])


def one_name(*columns: str) -> tuple[Names, ...]:
    """Return columns that have one name each."""
    return tuple((column,) for column in columns)


def user(content: Any) -> Fields:
    """Return a user turn. Raise RowError if its content is no text."""
    return {"role": "user", "content": _check_text(content, "prompt")}


def assistant(content: Any) -> Fields:
    """Return an assistant turn. Raise RowError if its content is no text."""
    return {"role": "assistant", "content": _check_text(content, "completion")}


def _check_text(content: Any, part: str) -> str:
    if isinstance(content, str):
        return content
    message = f"{part}: found {type_name(content)}, expected text."
    hint = "Correct or remove the row, or set `data.on_invalid: skip`."
    raise RowError("data.wrong-type", message, hint, dropped_as=f"{part} that is not text")


def as_turns(prompt: Any) -> list[Any]:
    """Return a prompt as turns. One that is no list becomes a user turn."""
    return prompt if isinstance(prompt, list) else [user(prompt)]


def with_context(question: Any, context: Any) -> Any:
    """Return a question and, after a blank line, its context; either alone if the other one is empty."""
    return f"{question}\n\n{context}" if question and context else question


def pair(prompt: Any, better: Any, worse: Any) -> Fields:
    """Return a preference row of conversations."""
    return {"prompt": as_turns(prompt), "chosen": [assistant(better)], "rejected": [assistant(worse)]}


def ordered_pair(prompt: Any, first: Any, second: Any, preference: float) -> Fields:
    """Return a preference row by a signed label.

    Args:
        prompt: The prompt: text, or a list of turns.
        first: One completion.
        second: The other completion.
        preference: Positive if `first` is better, negative if `second` is.

    Raises:
        NoPreferenceError: The preference is 0.
    """
    if preference == 0:
        raise NoPreferenceError("tie", as_turns(prompt))
    return pair(prompt, first, second) if preference > 0 else pair(prompt, second, first)


def ranked_pairs(prompt: list[Fields], answers: Iterable[tuple[float, str]]) -> list[Fields]:
    """Return each completion with the next lower one as a pair: each is in at most two pairs.

    Training on all pairs of a prompt overfits: each completion then counts many times (InstructGPT, section 3.5).

    Args:
        prompt: The turns before the completions.
        answers: Rank, 1 or 0 for the best, and text of each completion. Equal ranks form no pair.
    """
    ordered = sorted(answers, key=lambda answer: answer[0])
    return [
        pair(prompt, better, worse)
        for (rank, better), (next_rank, worse) in itertools.pairwise(ordered)
        if rank < next_rank
    ]


def read_number(fields: Fields, name: str) -> float:
    """Return a label as a number, also from text as in CSV files."""
    value = fields.get(name)
    if value is None or value == "":
        raise DroppedRowError(f"no {name}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):  # NaN is neither positive nor negative, and would prefer the second completion
        message = f"{name}: found {value!r}, expected a finite number."
        raise RowError("data.invalid-label", message, "Correct it, or remove the row.")
    return number


def read_choice(fields: Fields, name: str, choices: Mapping[Any, float]) -> float:
    """Return the preference that a label stands for.

    Args:
        fields: The row.
        name: The column of the label.
        choices: Labels, in lower case if they are text: 1 if the first completion is better, -1 if the second is, or 0.
    """
    value = fields.get(name)
    key = value.strip().lower() if isinstance(value, str) else value
    if isinstance(key, int | float | str | None) and key in choices:
        return choices[key]
    message = f"{name}: found {value!r}, expected {', '.join(dict.fromkeys(map(str, choices)))}."
    raise RowError("data.invalid-label", message, "Correct it, or remove the row.")


def read_list(fields: Fields, name: str) -> list[Any]:
    """Return a field that must be a list."""
    value = fields.get(name)
    if isinstance(value, list):
        return value
    message = f"{name}: found {type_name(value)}, expected a list."
    raise RowError("data.wrong-type", message, "Correct it, or remove the row.")


def read_object(value: Any, name: str) -> Fields:
    """Return a value that must be an object."""
    if isinstance(value, dict):
        return value
    message = f"{name}: found {type_name(value)}, expected an object."
    raise RowError("data.wrong-type", message, "Correct it, or remove the row.")
