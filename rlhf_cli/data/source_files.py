"""Find the files of a source and read its split: files, directories, runs and Hub datasets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from rlhf_cli.data.batches import Batch, slice_batches
from rlhf_cli.data.columns import KINDS
from rlhf_cli.data.issues import IssueCollector
from rlhf_cli.data.readers import SUFFIXES, read_file
from rlhf_cli.errors import DataError
from rlhf_cli.formatting import did_you_mean, format_exception
from rlhf_cli.recipe.schema import Source
from rlhf_cli.stages import DatasetKind

SPLIT_NAMES = ("train", "test", "validation", "valid", "val", "dev", "eval")
TEXT_SUFFIX = ".txt"  # its rows are paragraphs
ROW_SUFFIXES = tuple(suffix for suffix in SUFFIXES if suffix != TEXT_SUFFIX)
RUN_SUFFIXES = (".jsonl",)
RUN_RECORDS = ("metrics.jsonl", "samples.jsonl")  # records of a run, which are not its rows
MAX_SHOWN_NAMES = 10
_SPLIT = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<start>\d+%?)?:(?P<stop>\d+%?)?\])?")

FindRun = Callable[[str], Path]  # from a run reference to the run's directory


class SplitSlice(NamedTuple):
    """A split's name and the bounds of its slice: a number of rows or a percentage each."""

    name: str
    start: str
    stop: str | None


def read_split(
    source: Source, split: str, kind: DatasetKind, find: FindRun, issues: IssueCollector, *, row_by_row: bool
) -> Iterator[Batch]:
    """Yield the rows of one split of a source.

    Args:
        source: The source.
        split: The split's name, or a slice of it such as `train[:1000]`.
        kind: The dataset kind, which decides which file types can be used.
        find: Function from a run reference to the run's directory.
        issues: Where issues of rows, and of a split without a file, are added.
        row_by_row: Make batches of one row, so that a caller who stops early gets no issue of a later row.

    Raises:
        DataError: The source's files cannot be found, or the Hub dataset cannot be loaded.
    """
    if source.hub:
        return _read_hub(source, split)
    path = Path(source.path) if source.path else find(str(source.run))
    wanted = _parse_split(split, path)
    if source.run or path.is_dir():
        files = _files_of_directory(path, kind, is_run=source.run is not None)
        files = _files_of_split(path, files, wanted.name, issues)
    else:
        _check_file(path, kind, wanted.name)
        files = [path]
    row_by_row = row_by_row or "[" in split
    return _slice((batch for file in files for batch in read_file(file, issues, row_by_row=row_by_row)), wanted)


def _check_file(path: Path, kind: DatasetKind, split: str) -> None:
    """Raise DataError unless `path` is a file of a type that can hold rows of this kind, and the split is `train`."""
    location = str(path)
    if not path.exists():
        names = sorted(file.name for file in path.parent.iterdir()) if path.parent.is_dir() else []
        hint = did_you_mean(path.name, names) if names else f"The directory {path.parent} has no files."
        raise DataError("data.file-not-found", "file not found.", location=location, hint=hint)
    if path.suffix not in SUFFIXES:
        message = f"file type: found {path.suffix or 'no suffix'}, expected {_join(SUFFIXES)}."
        raise DataError("data.unsupported-file-type", message, location=location, hint="Convert the file.")
    if path.suffix == TEXT_SUFFIX and not KINDS[kind].reads_text_files:
        message = f"file type: {TEXT_SUFFIX} files hold text to pretrain on, not {kind} rows."
        raise DataError("data.unsupported-file-type", message, location=location, hint="Use .jsonl.")
    if split != "train":
        message = f"split {split!r}: not found; a single file has only the split 'train'."
        hint = "Use a directory with one file per split, such as train.jsonl and test.jsonl."
        raise DataError("data.unknown-split", message, location=location, hint=hint)


def _files_of_directory(directory: Path, kind: DatasetKind, *, is_run: bool) -> list[Path]:
    """Return the data files of a directory or a run, by name. Raise DataError if it has none."""
    suffixes = SUFFIXES if KINDS[kind].reads_text_files else ROW_SUFFIXES
    ignored: tuple[str, ...] = ()
    if is_run:
        suffixes = RUN_SUFFIXES
        ignored = RUN_RECORDS
    entries = sorted(directory.iterdir())
    files = [
        file
        for file in entries
        if file.suffix in suffixes and not file.name.startswith(".") and file.name not in ignored
    ]
    if not files:
        found = ", ".join(entry.name for entry in entries[:MAX_SHOWN_NAMES]) or "nothing"
        message = f"directory: no data file; found {found}, expected {_join(suffixes)}."
        raise DataError("data.no-files", message, location=str(directory), hint="Check the path.")
    return files


def _files_of_split(directory: Path, files: list[Path], split: str, issues: IssueCollector) -> list[Path]:
    """Return the files of a split, by their names (train.jsonl, train-00000-of-00002.parquet).

    All files belong to `train` if none is named after a split. If the split has no file, add an issue and return [].
    """
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(re.split(r"[-.]", file.name)[0], []).append(file)
    splits = [name for name in by_split if name in SPLIT_NAMES]
    if split in by_split:
        return by_split[split]
    if not splits and split == "train":
        return files
    found = ", ".join(splits or [file.name for file in files[:MAX_SHOWN_NAMES]])
    message = f"split {split!r}: not found; found {found}."
    issues.add("data.unknown-split", message, str(directory), f"Name a file after the split, such as {split}.jsonl.")
    return []


def _parse_split(split: str, path: Path) -> SplitSlice:
    match = _SPLIT.fullmatch(split)
    if match is None:
        message = f"split {split!r}: invalid; expected the name of a split or a slice of one."
        raise DataError("data.invalid-split", message, location=str(path), hint="Write train or train[:1000].")
    return SplitSlice(match["name"], match["start"] or "0", match["stop"])


def _slice(batches: Iterable[Batch], wanted: SplitSlice) -> Iterator[Batch]:
    """Yield the rows between the bounds of the slice."""
    total = 0
    if wanted.start.endswith("%") or (wanted.stop or "").endswith("%"):
        batches = list(batches)
        total = sum(len(batch.rows) for batch in batches)

    def row_number(bound: str) -> int:
        return total * int(bound[:-1]) // 100 if bound.endswith("%") else int(bound)

    return slice_batches(batches, row_number(wanted.start), row_number(wanted.stop) if wanted.stop else None)


def _read_hub(source: Source, split: str) -> Iterator[Batch]:
    import datasets

    try:
        rows = datasets.load_dataset(source.hub, source.config, split=split, revision=source.revision)
    except Exception as error:  # `datasets` raises a dozen types, some of other libraries
        message = f"cannot load the Hub dataset: {format_exception(error).rstrip('.')}."
        hint = "Check the name, `config`, `split` and the connection; for a private dataset, run `hf auth login`."
        raise DataError("data.hub-not-loaded", message, location=str(source.hub), hint=hint) from error
    for number, fields in enumerate(rows, 1):
        yield Batch(f"{source.hub} {split} row ", [number], [fields])


def _join(suffixes: Iterable[str]) -> str:
    *others, last = suffixes
    return f"{', '.join(others)} or {last}" if others else last
