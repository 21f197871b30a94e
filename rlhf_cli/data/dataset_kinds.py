"""The columns of each dataset kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlhf_cli.stages import DatasetKind

Format = tuple[str, ...]  # the columns that a format needs

PAIR: Format = ("chosen", "rejected")
MESSAGES: Format = ("messages",)


@dataclass(frozen=True)
class KindSpec:
    """What the data of a dataset kind may look like.

    Attributes:
        expected: The columns, in words.
        formats: The known formats. The first one whose columns a dataset has is used.
        optional: Further columns with a meaning of their own.
        keeps_other_columns: Whether rows keep their other columns, under any name.
        accepts_other_kinds: Whether rows of other kinds can be used, so that a format does not identify this kind.
        reserved: Names that a column must not have.
        reads_text_files: Whether a paragraph of a .txt file can be a row.
        unique_prompts: Whether each prompt is used once, however many rows have it.
        suggested: The formats to map to, in order of preference, for a dataset with other columns.
    """

    expected: str
    formats: tuple[Format, ...]
    suggested: tuple[Format, ...]
    optional: tuple[str, ...] = ()
    keeps_other_columns: bool = False
    accepts_other_kinds: bool = False
    reserved: tuple[str, ...] = ()
    reads_text_files: bool = False
    unique_prompts: bool = False

    @property
    def known(self) -> list[str]:
        """All columns with a meaning."""
        return list(dict.fromkeys([*(column for row_format in self.formats for column in row_format), *self.optional]))


KINDS: Mapping[DatasetKind, KindSpec] = {
    "pretrain": KindSpec(expected="`text`", formats=(("text",),), suggested=(("text",),), reads_text_files=True),
    "sft": KindSpec(
        expected="`prompt` and `completion`, or `messages`, or `text`",
        formats=(("prompt", "completion"), MESSAGES, ("text",)),
        suggested=(("prompt", "completion"), MESSAGES, ("text",)),
    ),
    "preferences": KindSpec(
        expected="`prompt`, `chosen` and `rejected`, or `chosen` and `rejected` that start with the same prompt",
        formats=(PAIR,),
        suggested=(("prompt", *PAIR),),
        optional=("prompt", "margin"),
        keeps_other_columns=True,
    ),
    "prompts": KindSpec(
        expected="`prompt`, or `messages`",
        formats=(PAIR, MESSAGES, ("prompt",)),
        suggested=(("prompt",), MESSAGES, ("prompt", *PAIR)),
        optional=("prompt",),
        keeps_other_columns=True,
        accepts_other_kinds=True,
        reserved=("prompts", "completions"),  # arguments of every reward function
        unique_prompts=True,
    ),
}
CONVERTED: Mapping[DatasetKind, Format] = {  # the format of rows that were converted from a published one
    "sft": ("prompt", "completion"),
    "preferences": PAIR,
    "prompts": ("prompt",),
}
