"""Convert batches of raw rows into typed rows, and check what no single row shows: equal formats and margins."""

from __future__ import annotations

import itertools
import operator
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import Any

from rlhf_cli.data.batches import Batch, Fields
from rlhf_cli.data.column_hints import is_filled, unused_column
from rlhf_cli.data.columns import ColumnPlan, ignored_columns, plan_columns, rename_columns
from rlhf_cli.data.conversation_batches import FORMATS, ConversationBatches
from rlhf_cli.data.conversations import may_be_messages, without_message_keys
from rlhf_cli.data.fields import CONVERSATION, TEXT, format_of
from rlhf_cli.data.formats import CONVERSATION_STARTS, ParseRow, plain_text_columns, row_parser
from rlhf_cli.data.issues import MAX_SHOWN_ISSUES, DroppedRowError, IssueCollector, RowError
from rlhf_cli.data.rows import PreferenceRow, TypedRow
from rlhf_cli.data.splits import normalize_whitespace
from rlhf_cli.data.system_turns import refuses_system_turns
from rlhf_cli.data.transcripts import is_transcript
from rlhf_cli.recipe.schema import Base, Source
from rlhf_cli.stages import DatasetKind

_FIRST_CHARACTERS = {start[0] for start in CONVERSATION_STARTS}


class RowConverter:
    """Converts the batches of one split of a source. Adds issues, and counts read and dropped rows.

    Attributes:
        columns: The columns known beforehand, and those of the rows converted since.
        empty: Those of the columns known beforehand without a value in any row so far.
        counts: Rows read, and rows dropped by reason.
        text_format: `TEXT` or `CONVERSATION`, of the first row; "" before it.

    Args:
        kind: The dataset kind.
        source: The source. If it is a Hub dataset, which users cannot edit, a row that is empty or has its turns out of
            order is dropped and counted instead of being an issue.
        found: The columns known beforehand, which decide the rows' format and further columns.
        issues: Where issues are added.
        empty: Those of `found` that have no value in any row.
        base: The base model, whose chat template must render the rows. None: not checked.
    """

    def __init__(
        self,
        kind: DatasetKind,
        source: Source,
        found: Sequence[str],
        issues: IssueCollector,
        *,
        empty: Collection[str] = (),
        base: Base | None = None,
    ) -> None:
        self.columns = dict.fromkeys(found)
        self.empty = set(empty)
        self._found_count = len(self.columns)
        self._empty_count = len(self.empty)
        self.counts: Counter[str] = Counter()
        self.text_format = ""
        self._first_location = ""
        self._kind = kind
        self._source = source
        self._issues = issues
        self._base = base
        self._margins = _MarginCheck()
        self._plan: ColumnPlan | None = None  # None if the columns fit no format, or there are none
        self._parse: ParseRow | None = None
        self._plain_columns: tuple[str, ...] = ()  # for the fast path of `prompt_keys`
        self._conversations: ConversationBatches | None = None
        self._unused: list[str] = []  # columns in which no value was found yet
        if found and (plan := plan_columns(kind, source, found, self.empty, issues)):
            self._plan = plan
            self._parse = row_parser(kind, plan.row_format, plan.columns)
            self._unused = plan.unused
            if not source.columns and not source.ignore_columns and not plan.published:
                self._plain_columns = plain_text_columns(kind, plan.row_format, plan.columns)
                if plan.row_format in FORMATS and not (kind == "preferences" and "margin" in plan.columns):
                    has_prompt = "prompt" in plan.columns
                    self._conversations = ConversationBatches(plan.row_format, self._parse_shape, has_prompt=has_prompt)

    @property
    def has_late_columns(self) -> bool:
        """Whether rows had columns, or values of columns, that were not known beforehand."""
        return len(self.columns) > self._found_count or len(self.empty) < self._empty_count

    def rows(self, batch: Batch) -> list[Any]:
        """Return the typed rows of a batch. Rows with an issue and dropped rows are left out."""
        self._count(batch)
        if self._parse is None:
            return []
        rows = []
        for number, fields in zip(batch.numbers, batch.rows, strict=True):
            try:
                parsed = [self._parse(row) for row in self._convert(fields)]
                for row in parsed:
                    self._check_format(row, f"{batch.prefix}{number}")
                    self._check_system_turn(row)
            except DroppedRowError as reason:
                self.counts[f"dropped: {reason}"] += 1
            except RowError as error:
                if error.dropped_as and self._source.hub is not None:
                    self.counts[f"dropped: {error.dropped_as}"] += 1
                else:
                    self._issues.add_row_error(error, f"{batch.prefix}{number}")
            else:
                rows += parsed
                for row in parsed:
                    if type(row) is PreferenceRow:
                        self._margins.add(row, batch, number)
        return rows

    def prompt_keys(self, batch: Batch) -> Sequence[str] | None:
        """Return the `prompt_key` of each row, or None if a row may need more than these checks by column.

        It counts and checks what `rows` does, in a quarter of the time.
        """
        if not batch.rows:
            return None
        text_format = TEXT
        keys = self._text_keys(batch) if self._plain_columns else None
        if keys is None and self._conversations is not None:
            text_format = CONVERSATION
            keys = self._conversations.prompt_keys(batch.rows)
        if keys is None or self.text_format not in ("", text_format):
            return None
        self._count(batch)
        if not self.text_format:
            self.text_format = text_format
            self._first_location = f"{batch.prefix}{batch.numbers[0]}"
        return keys

    def _text_keys(self, batch: Batch) -> list[str] | None:
        """Return the `prompt_key` of each row of a batch in which every row is valid text, or None."""
        try:
            columns = [[fields[name] for fields in batch.rows] for name in self._plain_columns]
        except KeyError:
            return None
        for texts in columns:
            if set(map(type, texts)) != {str}:
                return None
            stripped = [*map(str.strip, texts)]
            if not all(stripped) or any(
                start[0] in _FIRST_CHARACTERS and (may_be_messages(text) or is_transcript(text))
                for text, start in zip(texts, stripped, strict=True)
            ):
                return None
        is_preference = len(columns) == 3
        if is_preference and any(map(operator.eq, columns[1], columns[2])):
            return None
        return [*map(normalize_whitespace, columns[0])]

    def finish(self) -> None:
        """Add the issues that are known only after the last batch."""
        self._margins.add_issues(self._issues)

    def _convert(self, fields: Fields) -> Iterator[Fields]:
        """Yield the rows, under our names, that a raw row stands for."""
        assert self._plan is not None
        if self._source.columns:
            fields = rename_columns(fields, self._source.columns)
        if self._source.ignore_columns:
            ignored = ignored_columns(self._kind, self._source)
            fields = {column: value for column, value in fields.items() if column not in ignored}
            fields = without_message_keys(fields, self._source.ignore_columns)
        published = self._plan.published
        if published is None:
            yield fields
            return
        # Rewards of prompts may compare completions with the answers.
        read = () if self._kind == "prompts" else published.columns
        others = {column: value for column, value in fields.items() if column not in read}
        for row in published.read(self._kind, fields, self._source.ignore_columns):
            yield {**others, **row}

    def _count(self, batch: Batch) -> None:
        for column in list(self._unused):
            self._check_unused(column, batch)
        if self.empty:
            self.empty -= {name for name in self.empty if any(is_filled(fields.get(name)) for fields in batch.rows)}
        self.columns.update(dict.fromkeys(itertools.chain.from_iterable(batch.rows)))
        self.counts["read"] += len(batch.rows)

    def _check_unused(self, column: str, batch: Batch) -> None:
        """Add an issue for the first row with a value in a column that may change its meaning and is not read."""
        theirs = self._source.columns.get(column, column)
        for number, fields in zip(batch.numbers, batch.rows, strict=True):
            if is_filled(fields.get(theirs)):
                message, hint = unused_column(self._kind, theirs, list(self.columns))
                self._issues.add("data.unused-column", message, f"{batch.prefix}{number}", hint)
                self._unused.remove(column)
                return

    def _check_format(self, row: Any, location: str) -> None:
        """Raise RowError if the row's format, of its first field, is not that of the first row."""
        text_format = format_of(row[0])
        if not self.text_format:
            self.text_format = text_format
            self._first_location = location
        elif text_format != self.text_format:
            message = f"format: found {text_format}, expected {self.text_format} as in {self._first_location}."
            raise RowError("data.mixed-formats", message, "Use the same format for all rows.")

    def _parse_shape(self, fields: Fields) -> TypedRow:
        """Return the typed row of conversations that stand for all with the same roles."""
        assert self._parse is not None
        row = self._parse(fields)
        self._check_system_turn(row)
        return row

    def _check_system_turn(self, row: Any) -> None:
        """Raise RowError if the row starts with a system turn and the chat template refuses it."""
        if self._base is None or type(row[0]) is not list or row[0][0]["role"] != "system":
            return
        if self._refuses_system_turns:
            message = "system: the chat template of the base model refuses system turns."
            hint = "Set base.chat_template to a .jinja file that renders them, or move the text into the user turn."
            raise RowError("data.unsupported-role", message, hint)

    @cached_property
    def _refuses_system_turns(self) -> bool:
        return self._base is not None and refuses_system_turns(self._base)


class _MarginCheck:
    """Checks that `margin` is set on all rows or on none: trainers look for it on the first row only."""

    def __init__(self) -> None:
        self._first_with = ""  # a location
        self._without: list[str] = []  # locations, at most MAX_SHOWN_ISSUES
        self._without_count = 0

    def add(self, row: PreferenceRow, batch: Batch, number: int) -> None:
        """Record whether a row has a margin."""
        if row.margin is None:
            self._without_count += 1
            if len(self._without) < MAX_SHOWN_ISSUES:
                self._without.append(f"{batch.prefix}{number}")
        elif not self._first_with:
            self._first_with = f"{batch.prefix}{number}"

    def add_issues(self, issues: IssueCollector) -> None:
        """Add an issue for each row without a margin if any row has one."""
        if not self._first_with:
            return
        message = f"margin: missing, although {self._first_with} has one."
        for location in self._without:
            issues.add("data.missing-margin", message, location, "Set it on all rows or on none.")
        issues.count += self._without_count - len(self._without)
