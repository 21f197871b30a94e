"""The typed rows that every stage trains on, whatever form the data had: nothing implicit is left in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar


class Message(TypedDict):
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


Text = str | list[Message]  # text is used as it stands; a conversation goes through the chat template


class TextRow(NamedTuple):
    """A piece of text to pretrain on."""

    text: str


class SftRow(NamedTuple):
    """A demonstration; the loss is on the completion. A row of text alone has the prompt ""."""

    prompt: Text
    completion: Text


class PreferenceRow(NamedTuple):
    """Two answers to one prompt. `extra` holds the data's further columns, the same ones on every row."""

    prompt: Text
    chosen: Text
    rejected: Text
    margin: float | None
    extra: Mapping[str, Any]


class PromptRow(NamedTuple):
    """A prompt to answer. `extra` holds the further columns, the same ones on every row, for reward functions."""

    prompt: Text
    extra: Mapping[str, Any]


Row = TypeVar("Row", TextRow, SftRow, PreferenceRow, PromptRow)


@dataclass(frozen=True, slots=True)
class Split(Generic[Row]):
    """Rows to train on and rows kept out of training; no prompt lies on both sides.

    `counts`: what became of the rows, e.g. {"read": 1000, "dropped: chosen equals rejected": 3}, in rows.
    """

    train: list[Row]
    held_out: list[Row]
    counts: dict[str, int]
