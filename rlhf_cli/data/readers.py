"""Read data files into batches of raw rows, and collect every issue of a file with its line.

The files are parsed here and not by `datasets`, which turns a missing field into null and a big integer into a float,
and reports a truncated last line without its number.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from rlhf_cli.data.batches import Batch, Fields
from rlhf_cli.data.issues import IssueCollector, RowError
from rlhf_cli.data.json_rows import parse_fast, parse_list, parse_strict
from rlhf_cli.formatting import format_exception

BATCH_BYTES = 2**16  # about 100 rows: one row that needs the strict parser slows down few others
BATCH_ROWS = 100
MAX_CSV_CELL = 2**31 - 1  # characters; what a C long holds on every platform. The csv module's default is 131,072
ENCODING_HINT = "Save the file as UTF-8, for example with `iconv -f latin1 -t utf-8`."
EMPTY_HINT = "Use another file, or remove this one."


def read_file(path: Path, issues: IssueCollector, *, row_by_row: bool = False) -> Iterator[Batch]:
    """Yield the rows of one file, read by its suffix. Add an issue for each row that cannot be read, and skip it.

    Args:
        path: The file; its suffix is one of `SUFFIXES`.
        issues: Where issues are added.
        row_by_row: Make batches of one row, so that a caller who stops early gets no issue of a later row.
    """
    assert path.suffix in SUFFIXES, path
    if path.stat().st_size == 0:
        issues.add("data.no-rows", "file is empty; expected rows.", str(path), EMPTY_HINT)
        return
    issues_before = issues.count
    has_rows = False
    read = _read_jsonl if path.suffix == ".jsonl" else _read_other
    for batch in read(path, issues, row_by_row=row_by_row):
        has_rows = has_rows or bool(batch.rows)
        yield batch
    if not has_rows and issues.count == issues_before:
        issues.add("data.no-rows", "file has no rows; expected at least one.", str(path), EMPTY_HINT)


def _read_jsonl(path: Path, issues: IssueCollector, *, row_by_row: bool) -> Iterator[Batch]:
    prefix = f"{path}:"
    number = 1
    with path.open("rb") as file:
        while lines := file.readlines(1 if row_by_row else BATCH_BYTES):
            if number == 1:
                if _is_utf16(lines[0]):
                    _add_utf16_issue(f"{prefix}{number}", issues)
                    return
                lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
            numbers = range(number, number + len(lines))
            number += len(lines)
            rows = parse_fast(lines)
            yield _parse_each(prefix, numbers, lines, issues) if rows is None else Batch(prefix, numbers, rows)


def _parse_each(prefix: str, numbers: range, lines: list[bytes], issues: IssueCollector) -> Batch:
    """Return the rows of `lines` that can be read, and add an issue for each of the others."""
    kept: list[int] = []
    rows: list[Fields] = []
    for number, line in zip(numbers, lines, strict=True):
        fast = parse_fast([line])
        fields = fast[0] if fast else _parse_line(line, f"{prefix}{number}", issues)
        if fields is not None:
            kept.append(number)
            rows.append(fields)
    return Batch(prefix, kept, rows)


def _parse_line(line: bytes, location: str, issues: IssueCollector) -> Fields | None:
    """Return the row of a line, or None if the line is blank or an issue was added for it."""
    text = _decode_line(line, location, issues)
    if text is None:
        return None
    try:
        return parse_strict(text, is_terminated=line.endswith(b"\n"))
    except RowError as error:
        issues.add_row_error(error, location)
        return None


def _read_other(path: Path, issues: IssueCollector, *, row_by_row: bool) -> Iterator[Batch]:
    numbered_rows = _READERS[path.suffix](path, issues)
    prefix = f"{path} row " if path.suffix == ".parquet" else f"{path}:"
    while chunk := list(itertools.islice(numbered_rows, 1 if row_by_row else BATCH_ROWS)):
        yield Batch(prefix, [number for number, _ in chunk], [fields for _, fields in chunk])


def _read_json(path: Path, issues: IssueCollector) -> Iterator[tuple[int, Fields]]:
    text = _decode_file(path, issues)
    if text is not None:
        yield from parse_list(text, path, issues)


def _read_csv(path: Path, issues: IssueCollector) -> Iterator[tuple[int, Fields]]:
    text = _decode_file(path, issues)
    if text is None:
        return
    csv.field_size_limit(MAX_CSV_CELL)  # a setting of the process: the module has no other
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    next_line = 1
    try:
        for record in reader:
            line, next_line = next_line, reader.line_num + 1
            if not record:
                continue
            if header and len(record) == len(header):
                yield line, dict(zip(header, record, strict=True))
            elif header:
                message = f"row: found {len(record)} fields, expected {len(header)} as in the header."
                hint = 'Put a field that contains a comma, a quote or a line break in "quotes".'
                issues.add("data.invalid-csv", message, f"{path}:{line}", hint)
            elif len(set(record)) < len(record):
                message = f"header: duplicate column; found {', '.join(record)}."
                issues.add("data.duplicate-key", message, f"{path}:{line}", "Rename one of them.")
                return
            else:
                header = record
    except csv.Error as error:
        issues.add("data.invalid-csv", f"invalid CSV: {error}.", f"{path}:{next_line}")


def _read_parquet(path: Path, issues: IssueCollector) -> Iterator[tuple[int, Fields]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for fields in batch.to_pylist():
                    number += 1
                    yield number, fields
    except (pyarrow.ArrowException, OSError) as error:
        message = f"invalid Parquet file: {format_exception(error).rstrip('.')}."
        issues.add("data.invalid-parquet", message, str(path))


def _read_txt(path: Path, issues: IssueCollector) -> Iterator[tuple[int, Fields]]:
    """Yield each paragraph as a row `text`. Blank lines separate paragraphs."""
    text = _decode_file(path, issues)
    paragraph: list[str] = []
    for number, line in enumerate([*(text or "").splitlines(), ""], 1):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield number - len(paragraph), {"text": "\n".join(paragraph)}
            paragraph = []


def _decode_file(path: Path, issues: IssueCollector) -> str | None:
    """Return the file's text, or None if it is not UTF-8, with an issue for each line that is not."""
    data = path.read_bytes()
    if _is_utf16(data):
        _add_utf16_issue(str(path), issues)
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        for number, line in enumerate(data.split(b"\n"), 1):
            _decode_line(line, f"{path}:{number}", issues)
        return None


def _decode_line(line: bytes, location: str, issues: IssueCollector) -> str | None:
    """Return the line's text, or None, with an issue, if it is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        message = f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}."
        issues.add("data.not-utf8", message, location, ENCODING_HINT)
        return None


def _is_utf16(data: bytes) -> bool:
    """Return whether a file that starts with `data` looks like UTF-16."""
    return data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data[:64]


def _add_utf16_issue(location: str, issues: IssueCollector) -> None:
    issues.add("data.not-utf8", "not UTF-8: looks like UTF-16.", location, ENCODING_HINT)


_READERS: dict[str, Callable[[Path, IssueCollector], Iterator[tuple[int, Fields]]]] = {
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_txt,
}
SUFFIXES = (".jsonl", *_READERS)
