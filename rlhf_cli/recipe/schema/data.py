"""The datasets and the sources of their rows."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field

from rlhf_cli.recipe.schema.section import PathKind, PositiveFloat, Section, UnitFloat

SourceFormat = Literal[
    "auto",
    "instruction",
    "self-instruct",
    "sharegpt",
    "transcript",
    "oasst",
    "pandalm",
    "helpsteer2",
    "helpsteer3",
    "arena",
    "arena-55k",
    "shp",
    "webgpt",
    "pku-better",
    "pku-safer",
    "nectar",
    "summarize-from-feedback",
    "kto",
]


def _wrap_single_value(value: object) -> object:
    """Return text as a list of one item."""
    return [value] if isinstance(value, str) else value


class Source(Section):
    """A source of rows: exactly one of `path`, `hub` and `run`."""

    path: Annotated[str | None, PathKind("file")] = Field(
        None, description="a .jsonl, .json, .csv, .parquet or .txt file, also compressed, or a directory of such files"
    )
    hub: str | None = Field(None, description="dataset id on the Hugging Face Hub")
    run: str | None = Field(None, description="a run that wrote rows, such as feedback@latest")
    config: str | None = Field(None, description="configuration name of a Hub dataset")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub dataset; null: main")
    split: str = Field(
        "train", description="split of a Hub dataset or of a directory, or a slice of one, such as train[:1000]"
    )
    eval_split: str | None = Field(
        None, description="split to hold out for evaluation; cannot be combined with eval_fraction"
    )
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="fraction of the prompts to hold out, independent of the seed; null: 0.05 unless eval_split is set",
    )
    format: SourceFormat = Field(
        "auto",
        description="published format of the rows; auto: rows under the names that rlhf uses, and HH-RLHF transcripts",
    )
    columns: dict[str, str] = Field(
        {}, description="column mapping, from the name that rlhf or `format` uses to the name in the data"
    )
    ignore_columns: list[str] = Field(
        [],
        description="columns, or keys of messages, that may be skipped although their names suggest that they belong "
        "to the prompt or the completion, such as input or system",
    )
    only: dict[
        str, Annotated[list[str], BeforeValidator(_wrap_single_value, json_schema_input_type=str | list[str])]
    ] = Field(
        {},
        description="rows are used only if each of these columns has one of the given values, such as {source: human}; "
        "a column with a list, if one of its items is a given value",
    )
    half_life_days: PositiveFloat | None = Field(
        None,
        description="of rows to train on that are this much older than the newest one, by the column judged, half are "
        "used; null: rows of any age are used alike",
    )
    weight: PositiveFloat | None = Field(
        None, description="relative weight in a mixture; if no source has a weight, all rows of all sources are used"
    )

    @property
    def name(self) -> str:
        """The path, Hub id or run reference."""
        name = self.path or self.hub or self.run
        assert name, "the recipe's validation refuses a source without path, hub and run"
        return name


def _wrap_single_source(value: object) -> object:
    """Return a mapping as a list of one item."""
    if not isinstance(value, dict | list):
        raise ValueError("a mapping such as {path: rows.jsonl}, or a list of mappings")
    return [value] if isinstance(value, dict) else value


Sources = Annotated[
    list[Source],
    BeforeValidator(_wrap_single_source, json_schema_input_type=Source | list[Source]),
    Field(min_length=1),
]


class Data(Section):
    """The datasets for the stages. Each is one source, or a list of sources with optional weights."""

    pretrain: Sources | None = Field(None, description="rows with `text`")
    sft: Sources | None = Field(None, description="rows with prompt and completion, messages, or text")
    preferences: Sources | None = Field(None, description="rows with prompt, chosen and rejected")
    prompts: Sources | None = Field(
        None, description="rows with prompt; reward functions receive the other columns as well"
    )
    on_invalid: Literal["error", "skip"] = Field(
        "error", description="what to do about an invalid row; skip: do not use it, but list and count it"
    )
    max_overlong: UnitFloat = Field(
        1.0, description="maximum fraction of a dataset's rows that may exceed the stage's token limit"
    )

    def smoke(self) -> Self:
        """Accept any number of overlong rows: a smoke run has other length limits than the recipe."""
        return self.replace(max_overlong=1.0)
