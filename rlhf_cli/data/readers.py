"""Read data files into batches of raw rows, and collect every issue of a file with its line.

The files are parsed here and not by `datasets`, which turns a missing field into null and a big integer into a float,
and reports a truncated last line without its number.
"""

from __future__ import annotations

import codecs
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from rlhf_cli.data.batches import Batch, Fields, number_rows
from rlhf_cli.data.compression import COMPRESSION_SUFFIXES, DamagedFileError, open_decompressed
from rlhf_cli.data.csv_rows import read_csv
from rlhf_cli.data.encodings import HEAD_BYTES, add_encoding_issues, decode_line, is_wide
from rlhf_cli.data.issues import IssueCollector, RowError
from rlhf_cli.data.json_rows import parse_fast, parse_list, parse_strict
from rlhf_cli.data.parquet_rows import read_parquet

BATCH_BYTES = 2**16  # about 100 rows: one row that needs the strict parser slows down few others
BATCH_ROWS = 100
EMPTY_HINT = "Use another file, or remove this one."


def file_type(path: Path) -> str:
    """Return the suffix of `SUFFIXES` that tells how the file's rows are written, or "" if it has no such suffix."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    is_compressed = bool(suffixes) and suffixes[-1] in COMPRESSION_SUFFIXES
    suffix = "".join(suffixes[-2:-1] if is_compressed else suffixes[-1:])
    # Parquet is read from both ends, which a compressed file does not allow.
    return suffix if suffix in SUFFIXES and not (is_compressed and suffix == ".parquet") else ""


def read_file(
    path: Path, issues: IssueCollector, *, row_by_row: bool = False, keep_surrogates: bool = False
) -> Iterator[Batch]:
    """Yield the rows of one file, read by its suffix. Add an issue for each row that cannot be read, and skip it.

    Args:
        path: The file; `file_type` knows its suffix. It may be compressed, whatever its name is.
        issues: Where issues are added.
        row_by_row: Make batches of one row, so that a caller who stops early gets no issue of a later row.
        keep_surrogates: Whether text in JSON may contain lone surrogates, which only feedback keeps.
    """
    assert file_type(path), path
    if path.stat().st_size == 0:
        issues.add("data.no-rows", "file is empty; expected rows.", str(path), EMPTY_HINT)
        return
    issues_before = issues.count
    has_rows = False
    try:
        for batch in _read_batches(path, issues, row_by_row=row_by_row, keep_surrogates=keep_surrogates):
            has_rows = has_rows or bool(batch.rows)
            yield batch
    except DamagedFileError as error:
        message = f"compressed file: cannot be decompressed to its end: {str(error).rstrip('.')}."
        hint = "Check whether the file was copied or downloaded completely."
        issues.add("data.damaged-compression", message, str(path), hint)
    except UnicodeDecodeError:
        with open_decompressed(path) as file:
            add_encoding_issues(file, path, issues)
    if not has_rows and issues.count == issues_before:
        issues.add("data.no-rows", "file has no rows; expected at least one.", str(path), EMPTY_HINT)


def _read_batches(path: Path, issues: IssueCollector, *, row_by_row: bool, keep_surrogates: bool) -> Iterator[Batch]:
    kind = file_type(path)
    if kind == ".parquet":
        yield from number_rows(f"{path} row ", read_parquet(path, issues, row_by_row=row_by_row))
        return
    with open_decompressed(path) as file:
        if is_wide(file.peek(HEAD_BYTES)[:HEAD_BYTES], path, issues):
            return
        if kind == ".jsonl":
            yield from _read_jsonl(file, path, issues, row_by_row=row_by_row, keep_surrogates=keep_surrogates)
            return
        if kind == ".json":
            text = file.read().decode("utf-8-sig")
            numbered_rows = parse_list(text, path, issues, keep_surrogates=keep_surrogates)
        else:
            numbered_rows = _TEXT_READERS[kind](file, path, issues)
        while chunk := list(itertools.islice(numbered_rows, 1 if row_by_row else BATCH_ROWS)):
            yield Batch(f"{path}:", [number for number, _ in chunk], [fields for _, fields in chunk])


def _read_jsonl(
    file: io.BufferedReader, path: Path, issues: IssueCollector, *, row_by_row: bool, keep_surrogates: bool
) -> Iterator[Batch]:
    prefix = f"{path}:"
    number = 1
    while lines := file.readlines(1 if row_by_row else BATCH_BYTES):
        if number == 1:
            lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
        numbers = range(number, number + len(lines))
        number += len(lines)
        rows = parse_fast(lines)
        if rows is None:
            yield _parse_each(prefix, numbers, lines, issues, keep_surrogates=keep_surrogates)
        else:
            yield Batch(prefix, numbers, rows)


def _parse_each(
    prefix: str, numbers: range, lines: list[bytes], issues: IssueCollector, *, keep_surrogates: bool
) -> Batch:
    """Return the rows of `lines` that can be read, and add an issue for each of the others."""
    kept: list[int] = []
    rows: list[Fields] = []
    for number, line in zip(numbers, lines, strict=True):
        fast = parse_fast([line])
        location = f"{prefix}{number}"
        fields = fast[0] if fast else _parse_line(line, location, issues, keep_surrogates=keep_surrogates)
        if fields is not None:
            kept.append(number)
            rows.append(fields)
    return Batch(prefix, kept, rows)


def _parse_line(line: bytes, location: str, issues: IssueCollector, *, keep_surrogates: bool) -> Fields | None:
    """Return the row of a line, or None if the line is blank or an issue was added for it."""
    text = decode_line(line, location, issues)
    if text is None:
        return None
    try:
        return parse_strict(text, is_terminated=line.endswith(b"\n"), keep_surrogates=keep_surrogates)
    except RowError as error:
        issues.add_row_error(error, location)
        return None


def _read_csv(file: io.BufferedReader, path: Path, issues: IssueCollector) -> Iterator[tuple[int, Fields]]:
    return read_csv(io.TextIOWrapper(file, "utf-8-sig", newline=""), path, issues)


def _read_txt(file: io.BufferedReader, _path: Path, _issues: IssueCollector) -> Iterator[tuple[int, Fields]]:
    """Yield each paragraph as a row `text`. Blank lines separate paragraphs.

    Only the three line breaks of text files end a line, not those that only Unicode knows, such as U+2028.
    """
    paragraph: list[str] = []
    number = 0
    for number, line in enumerate(io.TextIOWrapper(file, "utf-8-sig", newline=None), 1):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield number - len(paragraph), {"text": "".join(paragraph).removesuffix("\n")}
            paragraph = []
    if paragraph:
        yield number + 1 - len(paragraph), {"text": "".join(paragraph).removesuffix("\n")}


_TEXT_READERS: dict[str, Callable[[io.BufferedReader, Path, IssueCollector], Iterator[tuple[int, Fields]]]] = {
    ".csv": _read_csv,
    ".txt": _read_txt,
}
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")
