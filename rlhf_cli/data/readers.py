"""Files to raw rows, each with its place (`file:line`), and every issue of a file told, not the first alone.

JSON is parsed here, line by line, because `datasets` turns a missing field into null, a big integer into a float, and
a truncated last line into a position without a line. orjson reads the lines; where it fails, or may have kept silent
about a issue, a slow and exact decoder has the word.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import orjson

from rlhf_cli.errors import DataError, Issue

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")
MAX_SHOWN_ISSUES = 20
BATCH_BYTES = 2**16  # about a hundred rows: one that needs a second look slows down few others
BATCH_ROWS = 100
CSV_CELL = 2**31 - 1  # characters; the most that a C long holds everywhere. The csv module stops at 131,072
LINE_MEND = 'Write one object a line, such as {"prompt": "…"}.'
AS_TEXT = 'Write it as text, in "quotes".'
ENCODING_MEND = "Save the file as UTF-8, e.g. with `iconv -f latin1 -t utf-8`."


Fields = dict[str, Any]


class Batch(NamedTuple):
    """Some rows of a file as it has them, and where each stands: `before` and its number."""

    before: str  # rows.jsonl:
    numbers: range | list[int]
    rows: list[Fields]


class IssueCollector:
    """All that is wrong with the data, the first twenty kept and the others counted."""

    def __init__(self) -> None:
        self.shown: list[Issue] = []
        self.count = 0

    def add(self, message: str, location: str, hint: str = "") -> None:
        self.count += 1
        if len(self.shown) < MAX_SHOWN_ISSUES:
            self.shown.append(Issue(message, location, hint))

    def extend(self, error: DataError) -> None:
        for issue in error.issues:
            self.add(issue.message, issue.location, issue.hint)

    def merge(self, later: IssueCollector) -> None:
        self.count += later.count
        self.shown += later.shown[: MAX_SHOWN_ISSUES - len(self.shown)]

    def raise_if_any(self) -> None:
        if self.count > len(self.shown):
            more = self.count - len(self.shown)
            self.shown.append(Issue(f"… and {more} more issue{'s' if more > 1 else ''} like these in the data."))
        if self.shown:
            raise DataError(self.shown)


def read_file(path: Path, issues: IssueCollector, *, row_by_row: bool = False) -> Iterator[Batch]:
    """The rows of one file, by its suffix. What is wrong goes into `issues`, and the row is left out.

    `row_by_row`: who stops after a row is told no issues behind it.
    """
    assert path.suffix in SUFFIXES, path
    if path.stat().st_size == 0:
        issues.add("the file is empty.", str(path), "Name another one, or leave it out.")
        return
    before, rows = issues.count, 0
    size = 1 if row_by_row else BATCH_BYTES if path.suffix == ".jsonl" else BATCH_ROWS
    for batch in _jsonl(path, issues, size) if path.suffix == ".jsonl" else _batches(path, issues, size):
        rows += len(batch.rows)
        yield batch
    if not rows and issues.count == before:
        issues.add("the file holds no rows.", str(path), "Name another one, or leave it out.")


def cut(batches: Iterable[Batch], start: int, stop: int | None) -> Iterator[Batch]:
    """The rows from `start` to before `stop`, as of a list."""
    at = 0
    for batch in batches:
        inside = slice(max(start - at, 0), None if stop is None else stop - at)
        at += len(batch.rows)
        if at > start:
            yield Batch(batch.before, batch.numbers[inside], batch.rows[inside])
        if stop is not None and at >= stop:
            return


def _batches(path: Path, issues: IssueCollector, size: int) -> Iterator[Batch]:
    readers = {".json": _json, ".csv": _csv, ".parquet": _parquet, ".txt": _txt}
    numbered = readers[path.suffix](path, issues)
    while chunk := list(itertools.islice(numbered, size)):
        yield Batch(f"{path} row " if path.suffix == ".parquet" else f"{path}:", *map(list, zip(*chunk, strict=True)))


def _jsonl(path: Path, issues: IssueCollector, size: int) -> Iterator[Batch]:
    before, number = f"{path}:", 1
    with path.open("rb") as file:
        while lines := file.readlines(size):
            if number == 1:
                if issue := _wrong_encoding(lines[0]):
                    issues.add(issue, f"{before}{number}", ENCODING_MEND)
                    return
                lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
            numbers = range(number, number + len(lines))
            number += len(lines)
            rows = _quickly(lines)
            if rows is not None:
                yield Batch(before, numbers, rows)
                continue
            kept: list[int] = []
            sound = Batch(before, kept, [])
            for n, line in zip(numbers, lines, strict=True):
                one = _quickly([line])
                fields = one[0] if one else _exact(line, f"{before}{n}", issues)
                if fields is not None:
                    kept.append(n)
                    sound.rows.append(fields)
            yield sound


def _quickly(lines: list[bytes]) -> list[Fields] | None:
    """The rows of the lines; None where orjson does not take one, or may not have told all of it."""
    try:
        rows = [*map(orjson.loads, lines)]
        return rows if all(map(_is_what_it_says, rows, lines)) else None
    except (orjson.JSONDecodeError, RecursionError):
        return None


def _is_what_it_says(fields: Any, line: bytes) -> bool:
    """Whether orjson's `fields` are all that a line holds that it took.

    It is silent about two issues alone: of two equal keys it keeps the last, and of an integer beyond 64 bits it makes
    a float. Every string has two quotes, so that a line with more of them had a key that is gone.
    """
    if type(fields) is not dict or not fields:
        return False
    strings = _strings(fields)
    quotes = line.count(b'"')
    return quotes == 2 * strings or quotes - line.replace(rb"\\", b"").count(rb"\"") == 2 * strings


def _strings(value: Any) -> float:
    """How many strings a value holds, its keys among them; infinite where a number may once have been another one."""
    kind = type(value)
    if kind is dict or kind is list:
        strings: float = len(value) if kind is dict else 0
        for item in value.values() if kind is dict else value:
            strings += 1 if type(item) is str else _strings(item)
        return strings
    if kind is bool or value is None:
        return 0
    return 0 if -(2**63) < value < 2**63 else math.inf


def _exact(line: bytes, location: str, issues: IssueCollector) -> Fields | None:
    """The row of a line, by the decoder that tells all; None where the line is blank or faulty."""
    text = _decode(line, location, issues)
    if text is None or not text.strip():
        return None
    try:
        value = _DECODER.decode(text.rstrip())
    except json.JSONDecodeError as error:
        inside = error.pos >= len(text.rstrip()) or not text.rstrip().endswith("}")
        if inside and not line.endswith(b"\n"):
            issues.add("the last line is truncated: the file ends inside a row.", location, "Was a copy cut off?")
        else:
            issues.add(f"broken JSON at column {error.colno}: {error.msg}.", location, LINE_MEND)
        return None
    except (_Refused, RecursionError) as error:
        issues.add(*_reason(error, location))
        return None
    return _object(value, text, location, issues)


def _json(path: Path, issues: IssueCollector) -> Iterator[tuple[int, Fields]]:
    """A list of objects. It is read element by element, so that each has its line."""
    text = _decode_file(path, issues)
    if text is None:
        return
    position = _skip_blanks(text, 0)
    if text[position : position + 1] != "[":
        lines = text.strip().count("\n}") == 0 and text.strip().count("\n{") > 0
        hint = "It looks like JSON lines: name it .jsonl." if lines else "Or write JSON lines, one object a line."
        issues.add("a .json file must hold a list of objects: [{…}, …].", str(path), hint)
        return
    line, counted = 1, 0
    position = _skip_blanks(text, position + 1)
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        location = f"{path}:{line}"
        try:
            value, end = _DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            ends = error.pos >= len(text.rstrip()) - 1
            message = "the file ends inside a row." if ends else f"broken JSON: {error.msg}."
            issues.add(message, f"{path}:{error.lineno}", f"The row begins in line {line}.")
            return
        except (_Refused, RecursionError) as error:
            message, _, hint = _reason(error, location)
            issues.add(f"{message} The rows behind it were not read.", location, hint)
            return
        if fields := _object(value, text[position:end], location, issues):
            yield line, fields
        position = _skip_blanks(text, end)
        if text[position : position + 1] == ",":
            position = _skip_blanks(text, position + 1)
        elif text[position : position + 1] != "]":
            line += text.count("\n", counted, position)
            issues.add("broken JSON: expected ',' or ']' behind a row.", f"{path}:{line}")
            return
    if text[position + 1 :].strip():
        issues.add("there is more text behind the closing ']' of the list.", str(path))


def _csv(path: Path, issues: IssueCollector) -> Iterator[tuple[int, Fields]]:
    text = _decode_file(path, issues)
    if text is None:
        return
    csv.field_size_limit(CSV_CELL)  # one for the process: the module knows no other
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    line = 1
    try:
        for record in reader:
            begin, line = line, reader.line_num + 1
            location = f"{path}:{begin}"
            if not record:
                continue
            if not header:
                header = record
                if len(set(header)) < len(header):
                    issues.add(f"a column name stands twice in the header: {', '.join(header)}.", location)
                    return
            elif len(record) != len(header):
                issues.add(
                    f"the row has {len(record)} fields, the header {len(header)}.",
                    location,
                    'Put a field that holds a comma, a quote or a line break in "quotes".',
                )
            else:
                yield begin, dict(zip(header, record, strict=True))
    except csv.Error as error:
        issues.add(f"broken CSV: {error}.", f"{path}:{line}")


def _parquet(path: Path, issues: IssueCollector) -> Iterator[tuple[int, Fields]]:
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
        issues.add(f"not a readable parquet file: {str(error).splitlines()[0]}", str(path))


def _txt(path: Path, issues: IssueCollector) -> Iterator[tuple[int, Fields]]:
    """Paragraphs separated by blank lines, a row each."""
    text = _decode_file(path, issues)
    paragraph: list[str] = []
    for number, line in enumerate([*(text or "").splitlines(), ""], 1):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield number - len(paragraph), {"text": "\n".join(paragraph)}
            paragraph = []


def _object(value: Any, text: str, location: str, issues: IssueCollector) -> Fields | None:
    if not isinstance(value, dict):
        issues.add(f"a row must be an object {{…}}, found {type_name(value)}.", location, LINE_MEND)
        return None
    if not value:
        issues.add("the row has no fields.", location, "Take it out.")
        return None
    if "\\u" in text and _has_lone_surrogate(value):
        issues.add(
            "half a character: a lone surrogate such as \\ud800.",
            location,
            "It cannot be written as UTF-8: take it out.",
        )
        return None
    return value


def type_name(value: Any) -> str:
    """How an error names what it found."""
    if value is None:
        return "null"
    names = {str: "text", bool: "true/false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def _has_lone_surrogate(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _decode_file(path: Path, issues: IssueCollector) -> str | None:
    """The file's text; None, and the issues told, where it is not UTF-8."""
    data = path.read_bytes()
    if issue := _wrong_encoding(data[:64]):
        issues.add(issue, str(path), ENCODING_MEND)
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        for number, line in enumerate(data.split(b"\n"), 1):
            _decode(line, f"{path}:{number}", issues)
        return None


def _decode(line: bytes, location: str, issues: IssueCollector) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        issues.add(f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}.", location, ENCODING_MEND)
        return None


def _wrong_encoding(start: bytes) -> str:
    """What is wrong with a file that begins so, or ""."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start[:64]:
        return "the file is not UTF-8, it looks like UTF-16."
    return ""


def _skip_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


class _Refused(Exception):
    """What is JSON, or nearly, and not what was meant; and how to hint it."""


def _reason(error: Exception, location: str) -> tuple[str, str, str]:
    if isinstance(error, RecursionError):
        return "nested too deeply.", location, "Write what is inside as text."
    return error.args[0], location, error.args[1]


def _refuse_constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not a number that JSON knows.", "Write a number, or null.")


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise _Refused(f"the integer {digits[:25]} is beyond 64 bits.", AS_TEXT)
    return int(digits)


def _float(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise _Refused(f"the number {digits[:25]} is beyond what 64 bits hold.", AS_TEXT)
    return number


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Refused(f"the key {twice!r} stands twice in one object.", "Keep one of them.")
    return fields


_DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_int=_integer, parse_float=_float, object_pairs_hook=_unique_keys
)
