"""Find the files of a source and read its split: files, directories, runs and Hub datasets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_cli.data.batches import Batch, Fields, number_rows, slice_batches
from rlhf_cli.data.dataset_kinds import KINDS
from rlhf_cli.data.folders import (
    TEXT_SUFFIX,
    find_run_files,
    find_split_files,
    held_out_splits,
    join_names,
    unsupported_hint,
)
from rlhf_cli.data.issues import IssueCollector
from rlhf_cli.data.parquet_rows import MAX_BATCH_ROWS, slice_rows
from rlhf_cli.data.readers import SUFFIXES, file_type, read_file
from rlhf_cli.errors import DataError
from rlhf_cli.formatting import did_you_mean, format_exception
from rlhf_cli.recipe.schema import Source
from rlhf_cli.stages import DatasetKind

SAVED_STATES = ("state.json", "dataset_dict.json")  # which `save_to_disk` writes
_SPLIT = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<start>\d+%?)?:(?P<stop>\d+%?)?\])?")

FindRun = Callable[[str], Path]  # from a run reference to the run's directory


class SplitSlice(NamedTuple):
    """A split's name and the bounds of its slice: a number of rows or a percentage each."""

    name: str
    start: str
    stop: str | None


def read_split(
    source: Source,
    split: str,
    kind: DatasetKind,
    find: FindRun,
    issues: IssueCollector,
    *,
    row_by_row: bool = False,
    keep_surrogates: bool = False,
) -> Iterator[Batch]:
    """Yield the rows of one split of a source.

    Args:
        source: The source.
        split: The split's name, or a slice of it such as `train[:1000]`.
        kind: The dataset kind, which decides which file types can be used.
        find: Function from a run reference to the run's directory.
        issues: Where issues of rows, and of a split without a file, are added.
        row_by_row: Make batches of one row, so that a caller who stops early gets no issue of a later row.
        keep_surrogates: Whether text in JSON may contain lone surrogates, which only feedback keeps.

    Raises:
        DataError: The source's files cannot be found, or the Hub dataset cannot be loaded.
    """
    if source.hub:
        return _read_hub(source, split)
    path = Path(source.path) if source.path else find(str(source.run))
    wanted = _parse_split(split, path)
    row_by_row = row_by_row or "[" in split
    if source.path and any((path / name).is_file() for name in SAVED_STATES):
        return _slice(_read_saved(path, wanted.name, issues), wanted)
    if source.run:
        files = find_run_files(path, wanted.name, issues)
    elif path.is_dir():
        files = find_split_files(path, kind, wanted.name, issues)
    else:
        _check_file(path, kind)
        _check_only_split(wanted.name, path)
        files = [path]
    options = {"row_by_row": row_by_row, "keep_surrogates": keep_surrogates}
    return _slice((batch for file in files for batch in read_file(file, issues, **options)), wanted)


def eval_splits(source: Source, find: FindRun) -> list[str]:
    """Return the splits of a source that are held out as a whole; none if a fraction of its prompts is.

    Args:
        source: The source. A run that wrote splits to hold out needs no `eval_split`.
        find: Function from a run reference to the run's directory.

    Raises:
        DataError: The source sets `eval_fraction` although its run has such splits.
    """
    if source.eval_split or not source.run:
        return [source.eval_split] if source.eval_split else []
    run = find(source.run)
    splits = held_out_splits(run)
    if splits and source.eval_fraction is not None:
        message = f"eval_fraction: cannot be used, because the run already holds out {join_names(splits)}."
        hint = "Remove it, and set the fraction in the recipe of that run."
        raise DataError("data.invalid-split", message, location=str(run), hint=hint)
    return splits


def _check_file(path: Path, kind: DatasetKind) -> None:
    """Raise DataError unless `path` is a file of a type that can hold rows of this kind."""
    location = str(path)
    if not path.exists():
        names = sorted(file.name for file in path.parent.iterdir()) if path.parent.is_dir() else []
        hint = did_you_mean(path.name, names) if names else f"The directory {path.parent} has no files."
        raise DataError("data.file-not-found", "file not found.", location=location, hint=hint)
    if not file_type(path):
        message = f"file type: found {path.suffix or 'no suffix'}, expected {join_names(SUFFIXES)}."
        raise DataError("data.unsupported-file-type", message, location=location, hint=unsupported_hint(path))
    if file_type(path) == TEXT_SUFFIX and not KINDS[kind].reads_text_files:
        message = f"file type: {TEXT_SUFFIX} files hold text to pretrain on, not {kind} rows."
        raise DataError("data.unsupported-file-type", message, location=location, hint="Use .jsonl.")


def _check_only_split(split: str, path: Path) -> None:
    if split != "train":
        message = f"split {split!r}: not found; a file has only the split 'train'."
        hint = "Use a directory with one file per split, such as train.jsonl and test.jsonl."
        raise DataError("data.unknown-split", message, location=str(path), hint=hint)


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


def _read_saved(directory: Path, split: str, issues: IssueCollector) -> Iterator[Batch]:
    """Yield the rows of a dataset that `save_to_disk` wrote: of a split if it has splits, or else of `train`."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(directory))
    except Exception as error:  # of several libraries: Arrow's, `datasets`' and JSON's
        message = f"cannot load the dataset that `save_to_disk` wrote: {format_exception(error).rstrip('.')}."
        hint = "Save it again, or convert it with `to_parquet`."
        raise DataError("data.saved-not-loaded", message, location=str(directory), hint=hint) from error
    splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    if split not in splits:
        message = f"split {split!r}: not found; found {', '.join(splits)}."
        issues.add("data.unknown-split", message, str(directory), "Set `split` to one of them.")
        return
    yield from number_rows(f"{directory} row ", _saved_rows(splits[split]))


def _saved_rows(dataset: Any) -> Iterator[list[Fields]]:
    for table in dataset.with_format("arrow").iter(MAX_BATCH_ROWS):
        for batch in table.to_batches():
            yield from slice_rows(batch)


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
