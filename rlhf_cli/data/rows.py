"""The typed rows that the stages train on, whatever format a dataset has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar


class Message(TypedDict):
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


Text = str | list[Message]  # text is used verbatim; a conversation is rendered with the chat template


class TextRow(NamedTuple):
    """A text to pretrain on."""

    text: str


class SftRow(NamedTuple):
    """A demonstration; the loss is on the completion. A row of plain text has an empty prompt."""

    prompt: Text
    completion: Text


class PreferenceRow(NamedTuple):
    """Two completions of one prompt. `extra` holds the dataset's other columns, the same ones on every row."""

    prompt: Text
    chosen: Text
    rejected: Text
    margin: float | None
    extra: Mapping[str, Any]


class PromptRow(NamedTuple):
    """A prompt to complete. `extra` holds the dataset's other columns, the same ones on every row, for rewards."""

    prompt: Text
    extra: Mapping[str, Any]


TypedRow = TextRow | SftRow | PreferenceRow | PromptRow
RowT = TypeVar("RowT", TextRow, SftRow, PreferenceRow, PromptRow)


@dataclass(frozen=True, slots=True)
class Split(Generic[RowT]):
    """Rows to train on and rows held out of training; no prompt is in both.

    Attributes:
        train: The rows to train on.
        held_out: The rows to evaluate on.
        counts: Numbers of rows, such as {"read": 1000, "dropped: chosen equals rejected": 3}.
    """

    train: list[RowT]
    held_out: list[RowT]
    counts: dict[str, int]
