"""Find the files of a split in a directory. Every file is read, is named as another split, or is an issue."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rlhf_cli.data.dataset_kinds import KINDS
from rlhf_cli.data.issues import IssueCollector
from rlhf_cli.data.readers import SUFFIXES, file_type
from rlhf_cli.errors import DataError, Issue
from rlhf_cli.stages import DatasetKind

SPLIT_NAMES = ("train", "test", "validation", "valid", "val", "dev", "eval")
TEXT_SUFFIX = ".txt"  # its rows are paragraphs
ROW_SUFFIXES = tuple(suffix for suffix in SUFFIXES if suffix != TEXT_SUFFIX)
RUN_DATA = "data"  # folder of a run with its rows, one .jsonl file per split
HELD_OUT_SPLITS = ("test", "annotators")  # of a run, whose rows are not trained on
MAX_SHOWN_NAMES = 10
UNPACK_SUFFIXES = (".zip", ".tar", ".tgz", ".7z")
DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json")  # of a dataset, by `datasets`
DOCUMENT_NAMES = ("readme", "license", "licence", "notice", "citation", "_success", "_metadata", "_common_metadata")
DOCUMENT_SUFFIXES = (".md", ".rst", ".py", ".sh", ".yaml", ".yml")
_SHARD = re.compile(r"-(?P<index>\d+)-of-(?P<count>\d+)(?:-[0-9a-f]{16})?$")  # the last part is a hash, of `datasets`
_PART = re.compile(rf"((?:.*[^a-z])?(?:{'|'.join(SPLIT_NAMES)}))[-_.]?(?:part|shard|chunk)?[-_.]?\d+")


class DataFile(NamedTuple):
    """A data file of a directory.

    Attributes:
        path: The file.
        name: Its path in the directory, for messages.
        stem: The path without suffixes, in lower case.
        split: The split that its name or its folder's name says, such as `train` or `train_prefs`, or "".
    """

    path: Path
    name: str
    stem: str
    split: str


def find_run_files(run: Path, split: str, issues: IssueCollector) -> list[Path]:
    """Return the file of a split of a run that wrote rows. Add an issue, and return [], if it has no such split.

    Raises:
        DataError: The run wrote no rows.
    """
    splits = _run_splits(run)
    if not splits:
        _raise_no_files(run, sorted(entry.name for entry in run.iterdir()), (f"{RUN_DATA}/train.jsonl",))
    if split not in splits:
        hint = f"Set `split` to one of them, or remove it to use {'train' if 'train' in splits else splits[0]}."
        message = f"split {split!r}: not found; found {_shorten(splits)}."
        issues.add("data.unknown-split", message, str(run), hint)
        return []
    return [run / RUN_DATA / f"{split}.jsonl"]


def held_out_splits(run: Path) -> list[str]:
    """Return the splits of a run whose rows are held out of training."""
    return [split for split in _run_splits(run) if split in HELD_OUT_SPLITS]


def _run_splits(run: Path) -> list[str]:
    return sorted(file.stem for file in (run / RUN_DATA).glob("*.jsonl"))


def find_split_files(directory: Path, kind: DatasetKind, split: str, issues: IssueCollector) -> list[Path]:
    """Return the files of a split, by name. All files belong to `train` if none is named after a split.

    Args:
        directory: The directory, whose sub-folders are searched as well.
        kind: The dataset kind, which decides which file types can be used.
        split: The split's name, such as `train_prefs`. `train` also means the only split with this word in its name.
        issues: Where an issue is added if the split has no file; [] is returned then.

    Raises:
        DataError: There are no data files, it is not clear which are meant, or a file cannot be read or is missing.
    """
    suffixes = SUFFIXES if KINDS[kind].reads_text_files else ROW_SUFFIXES
    files, others = _list_files(directory, suffixes)
    if not files:
        _raise_no_files(directory, others, suffixes)
    if others:
        raise DataError([_unreadable_issue(directory / name, kind) for name in others])
    chosen = _select_split(directory, files, split, issues)
    _check_shards(directory, chosen)
    return [file.path for file in chosen]


def unsupported_hint(path: Path) -> str:
    """Return what to do about a file that cannot be read."""
    suffixes = {suffix.lower() for suffix in path.suffixes}
    if not suffixes.isdisjoint(UNPACK_SUFFIXES):
        return "Unpack it."
    if ".parquet" in suffixes:
        return "Decompress it; Parquet compresses its columns by itself."
    if ".arrow" in suffixes:
        return "Use the directory that `save_to_disk` wrote, or convert the file with `datasets` to .parquet."
    return "Convert the file."


def join_names(names: Iterable[str]) -> str:
    """Return names as a list with `or` before the last one."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def _list_files(directory: Path, suffixes: Sequence[str]) -> tuple[list[DataFile], list[str]]:
    """Return the data files, and the names of further files that are neither hidden nor documents, by name."""
    files = []
    others = []
    for folder, folders, names in os.walk(directory):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        linked = [name for name in folders if (Path(folder) / name).is_symlink()]  # which os.walk leaves out
        for entry in sorted([*names, *linked]):
            path = Path(folder) / entry
            name = path.relative_to(directory).as_posix()
            if entry.startswith(".") or _is_document(entry):
                continue
            if entry not in linked and file_type(path) in suffixes:
                files.append(_describe(path, name))
            else:
                others.append(name)
    return files, others


def _is_document(name: str) -> bool:
    path = Path(name.lower())
    if file_type(path) in ROW_SUFFIXES:
        return path.name in DESCRIPTIONS
    return path.name.startswith(DOCUMENT_NAMES) or path.suffix in DOCUMENT_SUFFIXES


def _describe(path: Path, name: str) -> DataFile:
    stem = name.lower()
    stem = stem[: stem.rindex(file_type(path))]
    *folders, last = stem.split("/")
    last = _SHARD.sub("", last)
    numbered = _PART.fullmatch(last)
    for part in (numbered[1] if numbered else last, *reversed(folders)):
        if _split_words(part):
            return DataFile(path, name, stem, part)
    return DataFile(path, name, stem, "")


def _split_words(name: str) -> set[str]:
    """Return the words of a name that are names of splits."""
    return set(SPLIT_NAMES).intersection(re.findall("[a-z]+", name))


def _select_split(directory: Path, files: list[DataFile], split: str, issues: IssueCollector) -> list[DataFile]:
    splits = list(dict.fromkeys(file.split for file in files if file.split))
    if not splits and split == "train":
        return files
    unnamed = [file.name for file in files if not file.split]
    if splits and unnamed:
        message = f"split: not clear for {_shorten(unnamed)}; found the splits {_shorten(splits)} beside it."
        hint = f"Rename it, for example to {splits[0]}-more, or move it out of the directory."
        raise DataError("data.ambiguous-split", message, location=str(directory), hint=hint)
    wanted = split.lower()
    named = [name for name in splits if name == wanted] or [name for name in splits if wanted in _split_words(name)]
    if len(named) == 1:
        return [file for file in files if file.split == named[0]]
    if named:
        message = f"split {split!r}: found several: {_shorten(named)}."
        hint = f"Set `split: {named[0]}`, or another one; list one source for each to use several."
        raise DataError("data.ambiguous-split", message, location=str(directory), hint=hint)
    found = _shorten(splits or [file.name for file in files])
    hint = f"Set `split` to one of them, or name a file after the split, such as {split}.jsonl."
    issues.add("data.unknown-split", f"split {split!r}: not found; found {found}.", str(directory), hint)
    return []


def _check_shards(directory: Path, files: list[DataFile]) -> None:
    """Raise DataError if a shard such as `train-00001-of-00002` is missing, or if a file is there twice."""
    by_stem: dict[str, list[str]] = {}
    found: dict[tuple[str, int], set[int]] = {}
    for file in files:
        by_stem.setdefault(_uncompressed_name(file), []).append(file.name)
        if match := _SHARD.search(file.stem):
            found.setdefault((file.stem[: match.start()], int(match["count"])), set()).add(int(match["index"]))
    for names in by_stem.values():
        if len(names) > 1:
            message = f"{', '.join(names)}: found the same file twice."
            raise DataError("data.missing-shard", message, location=str(directory), hint="Remove one of them.")
    for (stem, count), indices in found.items():
        expected = range(1, count + 1) if count in indices else range(count)
        missing = [f"{stem}-{index:05}-of-{count:05}" for index in expected if index not in indices]
        if missing:
            message = f"shards: not found: {_shorten(missing)}; found {len(indices)} of {count}."
            hint = "Check whether the directory was copied or downloaded completely."
            raise DataError("data.missing-shard", message, location=str(directory), hint=hint)


def _uncompressed_name(file: DataFile) -> str:
    return file.stem + file_type(file.path)


def _unreadable_issue(path: Path, kind: DatasetKind) -> Issue:
    hint = f"{unsupported_hint(path)} If it holds no rows, move it out of the directory."
    if path.is_dir():
        message = "symbolic link to a directory: cannot be searched."
        hint = "Use the directory itself."
    elif file_type(path) == TEXT_SUFFIX:
        message = f"file type: {TEXT_SUFFIX} files hold text to pretrain on, not {kind} rows."
        hint = "Move it out of the directory."
    else:
        message = f"file type: found {path.suffix or 'no suffix'}, expected {join_names(SUFFIXES)}."
    return Issue("data.unsupported-file-type", message, str(path), hint)


def _raise_no_files(directory: Path, names: Sequence[str], suffixes: Sequence[str]) -> list[Path]:
    message = f"directory: no data file; found {_shorten(names) or 'nothing'}, expected {join_names(suffixes)}."
    raise DataError("data.no-files", message, location=str(directory), hint="Check the path.")


def _shorten(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MAX_SHOWN_NAMES])
    return f"{shown} and {len(names) - MAX_SHOWN_NAMES} more" if len(names) > MAX_SHOWN_NAMES else shown
