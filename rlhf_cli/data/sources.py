"""Load the rows of a recipe's sources: typed, mixed by weight, and split into training and held-out rows."""

from __future__ import annotations

import itertools
import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple, overload

import numpy as np

from rlhf_cli.data.batches import Batch, slice_batches
from rlhf_cli.data.column_hints import is_filled
from rlhf_cli.data.converter import RowConverter
from rlhf_cli.data.dataset_kinds import KINDS
from rlhf_cli.data.issues import IssueCollector
from rlhf_cli.data.row_filter import filter_rows
from rlhf_cli.data.row_policy import RowPolicy
from rlhf_cli.data.rows import PreferenceRow, PromptRow, SftRow, Split, TextRow
from rlhf_cli.data.source_files import FindRun, eval_splits, read_split
from rlhf_cli.data.splits import (
    PromptSplit,
    drop_held_out_prompts,
    drop_repeated_prompts,
    prompt_hash,
    prompt_key,
    split_by_hash,
)
from rlhf_cli.errors import DataError
from rlhf_cli.recipe.schema import Source
from rlhf_cli.stages import DatasetKind

logger = logging.getLogger(__name__)

DEFAULT_POLICY = RowPolicy()
DEFAULT_EVAL_FRACTION = 0.05  # of the prompts
HEAD_BATCHES = 10  # whose columns are known before rows are converted


@overload
def load(
    sources: Sequence[Source],
    kind: Literal["pretrain"],
    *,
    seed: int,
    find: FindRun,
    limit: int | None = None,
    policy: RowPolicy = DEFAULT_POLICY,
) -> Split[TextRow]: ...
@overload
def load(
    sources: Sequence[Source],
    kind: Literal["sft"],
    *,
    seed: int,
    find: FindRun,
    limit: int | None = None,
    policy: RowPolicy = DEFAULT_POLICY,
) -> Split[SftRow]: ...
@overload
def load(
    sources: Sequence[Source],
    kind: Literal["preferences"],
    *,
    seed: int,
    find: FindRun,
    limit: int | None = None,
    policy: RowPolicy = DEFAULT_POLICY,
) -> Split[PreferenceRow]: ...
@overload
def load(
    sources: Sequence[Source],
    kind: Literal["prompts"],
    *,
    seed: int,
    find: FindRun,
    limit: int | None = None,
    policy: RowPolicy = DEFAULT_POLICY,
) -> Split[PromptRow]: ...
@overload
def load(
    sources: Sequence[Source],
    kind: DatasetKind,
    *,
    seed: int,
    find: FindRun,
    limit: int | None = None,
    policy: RowPolicy = DEFAULT_POLICY,
) -> Split[Any]: ...
def load(
    sources: Sequence[Source],
    kind: DatasetKind,
    *,
    seed: int,
    find: FindRun,
    limit: int | None = None,
    policy: RowPolicy = DEFAULT_POLICY,
) -> Split[Any]:
    """Load the rows of all sources, some of them held out.

    Args:
        sources: The sources. If none sets a weight, all rows of all sources are used.
        kind: The dataset kind.
        seed: Seed for the order of the training rows and, if sources have weights, for which rows are left out. It
            does not change which rows are held out.
        find: Function from a run reference to the run's directory.
        limit: Number of rows, the first ones, to read of each source and to return for training; all if None.
        policy: Which rows are invalid apart from their content, and what to do about them.

    Raises:
        DataError: With all issues of all sources.
    """
    mixture = _mix(sources, _Reader(kind, find, limit, keep_rows=True, policy=policy))
    rng = random.Random(seed)
    train: list[Any] = []
    for part, row_count in zip(mixture.parts, mixture.row_counts, strict=True):
        train += rng.sample(part.select(part.split.train), row_count)
    rng.shuffle(train)
    held_out = [row for part in mixture.parts for row in part.select(part.split.held_out)]
    return Split(train[:limit], held_out, mixture.counts)


def count(
    sources: Sequence[Source], kind: DatasetKind, *, find: FindRun, policy: RowPolicy = DEFAULT_POLICY
) -> dict[str, int]:
    """Return the counts of `load`, or raise its issues, in one pass that keeps 8 bytes per row."""
    return _mix(sources, _Reader(kind, find, limit=None, keep_rows=False, policy=policy)).counts


class _SourceRows(NamedTuple):
    """The rows of one source.

    Attributes:
        name: Path, Hub id or run reference of the source.
        weight: Its weight in the mixture.
        text_format: `TEXT` or `CONVERSATION`, or "" without rows.
        rows: The typed rows; empty if they are only counted.
        split: Which rows are trained on and which are held out.
    """

    name: str
    weight: float
    text_format: str
    rows: list[Any]
    split: PromptSplit

    def select(self, indices: np.ndarray) -> list[Any]:
        """Return the rows at `indices`."""
        return [self.rows[index] for index in indices]


class _SplitRows(NamedTuple):
    """One split of a source: the format of its rows, the rows if they are kept, and their prompts' hashes (rows,)."""

    text_format: str
    rows: list[Any]
    hashes: np.ndarray


class _Reader:
    """Reads the sources of a dataset, and collects the issues and the counts of all.

    Args:
        kind: The dataset kind.
        find: Function from a run reference to the run's directory.
        limit: Number of rows to read of each split; all if None.
        keep_rows: Whether to keep the rows, not only their prompts' hashes.
        policy: Which rows are invalid apart from their content, and what to do about them.
    """

    def __init__(
        self, kind: DatasetKind, find: FindRun, limit: int | None, *, keep_rows: bool, policy: RowPolicy
    ) -> None:
        self.kind = kind
        self.limit = limit
        self.issues = IssueCollector()
        self.counts: Counter[str] = Counter()
        self._find = find
        self._keep_rows = keep_rows
        self._policy = policy

    def read(self, source: Source) -> _SourceRows:
        """Return the rows of a source. Raise DataError if it cannot be read at all; add issues of single rows."""
        text_format, rows, hashes = self._read_split(source, source.split)
        if held_out := eval_splits(source, self._find):
            parts = [self._read_split(source, name) for name in held_out]
            rows += [row for part in parts for row in part.rows]
            indices = np.arange(len(hashes) + sum(len(part.hashes) for part in parts))
            all_hashes = np.concatenate([hashes, *(part.hashes for part in parts)])
            split = PromptSplit(all_hashes, indices[: len(hashes)], indices[len(hashes) :])
        else:
            fraction = DEFAULT_EVAL_FRACTION if source.eval_fraction is None else source.eval_fraction
            split = split_by_hash(hashes, fraction)
            if self.limit is None:
                _warn_of_share(source.name, split, fraction)
        return _SourceRows(source.name, source.weight or 1.0, text_format, rows, split)

    def _read_split(self, source: Source, split: str) -> _SplitRows:
        issues = IssueCollector(skips_rows=self._policy.skip_invalid)
        converter, found = self._convert(source, split, None, issues)
        if converter.has_late_columns:
            # A column that came late may change what the rows before it mean, so all are converted again.
            issues = IssueCollector(skips_rows=self._policy.skip_invalid)
            converter, found = self._convert(source, split, converter, issues)
        if not converter.counts["read"] and not issues.count:
            issues.add("data.no-rows", "no rows; expected at least one.", source.name)
        self.issues.merge(issues)
        self.counts.update(converter.counts)
        self.counts.update({f"dropped: invalid ({code})": count for code, count in issues.skipped.items()})
        for issue in issues.shown_skipped:
            logger.warning(f"skipped row: {issue}")
        return found

    def _convert(
        self, source: Source, split: str, earlier: RowConverter | None, issues: IssueCollector
    ) -> tuple[RowConverter, _SplitRows]:
        """Convert a split with the columns of its first batches, or of all batches if the rows are kept.

        Args:
            source: The source.
            split: The split.
            earlier: The converter of an earlier pass, whose columns are known beforehand.
            issues: Where issues are added.
        """

        def read() -> Iterator[Batch]:
            return read_split(source, split, self.kind, self._find, issues, row_by_row=self.limit is not None)

        unused: Counter[str] = Counter()
        raw = filter_rows(source, read, issues, unused, thin=split == source.split)
        batches = slice_batches(raw, 0, self.limit)
        head = list(batches if self._keep_rows else itertools.islice(batches, HEAD_BATCHES))
        columns = dict.fromkeys(earlier.columns if earlier else ())
        columns |= dict.fromkeys(column for batch in head for fields in batch.rows for column in fields)
        if earlier:
            empty = earlier.empty
        else:
            known = {source.columns.get(column, column) for column in KINDS[self.kind].known}
            empty = {
                column
                for column in known.intersection(columns)
                if not any(is_filled(fields.get(column)) for batch in head for fields in batch.rows)
            }
        converter = RowConverter(self.kind, source, list(columns), issues, empty=empty, base=self._policy.base)
        rows: list[Any] = []
        hashes = bytearray()
        for batch in itertools.chain(head, batches):
            keys = self._keys(batch, converter, rows)
            hashes += b"".join(map(prompt_hash, keys))
        converter.finish()
        converter.counts.update({"read": sum(unused.values()), **unused} if unused else {})
        return converter, _SplitRows(converter.text_format, rows, np.frombuffer(hashes, ">u8").astype(np.uint64))

    def _keys(self, batch: Batch, converter: RowConverter, rows: list[Any]) -> Iterable[str]:
        """Return the prompt keys of a batch's rows, and append the rows to `rows` if they are kept."""
        keys = None if self._keep_rows else converter.prompt_keys(batch)
        if keys is not None:
            return keys
        converted = converter.rows(batch)
        if self._keep_rows:
            rows += converted
        return map(prompt_key, converted)


def _warn_of_share(name: str, split: PromptSplit, fraction: float) -> None:
    """Log a warning if the number of held-out prompts is far from the fraction, as it can be in small datasets."""
    prompts = len(np.unique(split.hashes))
    held_out = len(np.unique(split.hashes[split.held_out]))
    difference = abs(held_out - fraction * prompts)
    if difference >= 1 and difference > 0.5 * fraction * prompts:
        share = held_out / prompts
        logger.warning(
            f"{name}: {held_out:,} of {prompts:,} prompts are held out ({share:.1%}); eval_fraction is {fraction:.1%}. "
            "In small datasets, the fraction is approximate; set eval_split to choose the held-out rows yourself."
        )


class _Mixture(NamedTuple):
    """The rows of all sources of a dataset.

    Attributes:
        parts: The rows of each source.
        row_counts: How many rows of each source are trained on.
        counts: Numbers of rows by what became of them, for the user.
    """

    parts: list[_SourceRows]
    row_counts: list[int]
    counts: dict[str, int]


def _mix(sources: Sequence[Source], reader: _Reader) -> _Mixture:
    """Read all sources, and decide which rows are trained on.

    Raises:
        DataError: With all issues of all sources; or a source has no rows left to train on.
    """
    parts = _read_all(sources, reader)
    counts = reader.counts
    splits = [part.split for part in parts]
    if KINDS[reader.kind].unique_prompts:
        splits = _count_dropped(splits, drop_repeated_prompts(splits), "prompt seen before", counts)
    splits = _count_dropped(splits, drop_held_out_prompts(splits), "prompt is held out elsewhere", counts)
    parts = [part._replace(split=split) for part, split in zip(parts, splits, strict=True)]
    for part in parts:
        if not len(part.split.train):
            summary = "; ".join(f"{name} {number:,}" for name, number in counts.items())
            message = f"no rows left to train on ({summary})."
            raise DataError("data.no-rows", message, location=part.name, hint="Add rows, or lower eval_fraction.")
    row_counts = _rows_per_source(parts, weighted=any(source.weight is not None for source in sources))
    for part, row_count in zip(parts, row_counts, strict=True):
        if len(parts) > 1:
            counts[f"used from {part.name}"] += row_count
        if row_count < len(part.split.train):
            counts[f"dropped: from {part.name}, to match the weights"] += len(part.split.train) - row_count
    counts["train"] = sum(row_counts) if reader.limit is None else min(sum(row_counts), reader.limit)
    counts["held out"] = sum(len(split.held_out) for split in splits)
    return _Mixture(parts, row_counts, dict(counts))


def _read_all(sources: Sequence[Source], reader: _Reader) -> list[_SourceRows]:
    """Return the rows of each source. Raise DataError with all issues of all sources."""
    parts = []
    for source in sources:
        try:
            parts.append(reader.read(source))
        except DataError as error:  # to be reported together with the other sources' issues
            reader.issues.extend(error.issues)
    first = next((part for part in parts if part.text_format), None)
    for part in parts:
        if first is not None and part.text_format not in ("", first.text_format):
            message = f"format: found {part.text_format}, expected {first.text_format} as in {first.name}."
            hint = "Use sources with the same format; a dataset cannot mix text and conversations."
            reader.issues.add("data.mixed-formats", message, part.name, hint)
    _check_margins(parts, reader.issues)
    reader.issues.raise_if_any()
    return parts


def _check_margins(parts: Sequence[_SourceRows], issues: IssueCollector) -> None:
    """Add an issue for each source whose rows have no margin although those of another source have one."""
    has_margin = {part.name: part.rows[0].margin is not None for part in parts if part.rows and _is_pair(part.rows[0])}
    given = next((name for name, has in has_margin.items() if has), None)
    for name, has in has_margin.items():
        if given is not None and not has:
            message = f"margin: missing, although the rows of {given} have one."
            issues.add("data.missing-margin", message, name, f"Set `ignore_columns: [margin]` on {given}.")


def _is_pair(row: Any) -> bool:
    return isinstance(row, PreferenceRow)


def _count_dropped(
    before: Sequence[PromptSplit], after: list[PromptSplit], reason: str, counts: Counter[str]
) -> list[PromptSplit]:
    """Return `after`, and count the rows that it lacks."""
    dropped = _count_rows(before) - _count_rows(after)
    if dropped:
        counts[f"dropped: {reason}"] += dropped
    return after


def _count_rows(splits: Sequence[PromptSplit]) -> int:
    return sum(len(split.train) + len(split.held_out) for split in splits)


def _rows_per_source(parts: Sequence[_SourceRows], *, weighted: bool) -> list[int]:
    """Return how many rows of each source to train on.

    Args:
        parts: The rows of each source.
        weighted: Whether to use rows in proportion to the weights, as many as the scarcest source allows, and not all.
    """
    available = [len(part.split.train) for part in parts]
    if not weighted:
        return available
    weights = [Fraction(str(part.weight)) for part in parts]
    unit = min(rows / weight for rows, weight in zip(available, weights, strict=True))
    return [int(unit * weight) for weight in weights]
