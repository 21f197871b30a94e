"""Parse JSON rows strictly: a duplicate key, an integer beyond 64 bits and a lone surrogate are errors.

orjson parses almost all lines. A line that it rejects, or of which it may have lost a part, goes to a slower decoder.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import orjson

from rlhf_cli.data.batches import Fields
from rlhf_cli.data.issues import IssueCollector, RowError, type_name

LINE_HINT = 'Write one object per line, such as {"prompt": "…"}.'
TEXT_HINT = 'Write it as text, in "quotes".'

T = TypeVar("T")


def parse_fast(lines: list[bytes]) -> list[Fields] | None:
    """Return the rows of `lines`, or None if orjson rejects a line or may have lost a part of one."""
    try:
        rows = [*map(orjson.loads, lines)]
    except (orjson.JSONDecodeError, RecursionError):
        return None
    return rows if _is_lossless(rows, lines) else None


def _is_lossless(rows: list[Any], lines: list[bytes]) -> bool:
    """Return whether `rows` are objects that certainly hold everything in `lines`.

    orjson silently accepts duplicate keys (keeps the last) and integers beyond 64 bits (converts them to float). Every
    string has two quotes, so lines with more quotes than that had a key that is lost.
    """
    if set(map(type, rows)) != {dict} or not all(rows):
        return False
    strings = _count_strings(rows)
    return 2 * strings == _count_quotes(b"".join(lines))


def _count_quotes(text: bytes) -> int:
    """Return the number of quotes without a backslash, which escapes them."""
    characters = np.frombuffer(text, np.uint8)
    is_quote = characters == ord('"')
    is_backslash = characters == ord("\\")
    is_escaped = is_backslash[:-1]
    if (is_backslash[1:] & is_escaped).any():  # an escaped backslash escapes nothing
        return text.replace(rb"\\", b"").replace(rb"\"", b"").count(b'"')
    return int(np.count_nonzero(is_quote)) - int(np.count_nonzero(is_quote[1:] & is_escaped))


def _count_strings(values: list[Any]) -> float:
    """Return the number of strings in `values`, keys included, or infinity if a number may not be the original one.

    The values are counted level by level and not one by one: most levels hold values of one type only.
    """
    strings: float = 0
    while values:
        types = set(map(type, values))
        inner: list[Any] = []
        for kind in types:
            same: list[Any] = values if len(types) == 1 else [value for value in values if type(value) is kind]
            if kind is str:
                strings += len(same)
            elif kind is dict:
                strings += sum(map(len, same))
                inner += itertools.chain.from_iterable(map(dict.values, same))
            elif kind is list:
                inner += itertools.chain.from_iterable(same)
            elif kind is int or kind is float:
                strings += 0 if min(same) > -(2**63) and max(same) < 2**63 else math.inf
        values = inner
    return strings


def parse_strict(text: str, *, is_terminated: bool, keep_surrogates: bool = False) -> Fields | None:
    """Return the row of a line, or None if the line is blank.

    Args:
        text: The line.
        is_terminated: Whether the line ends with a line break, so that it cannot be truncated.
        keep_surrogates: Whether text may contain lone surrogates.

    Raises:
        RowError: The line is not a valid row.
    """
    text = text.rstrip()
    if not text:
        return None
    try:
        value = _decode(_DECODER.decode, text)
    except json.JSONDecodeError as error:
        ends_inside = error.pos >= len(text) or not text.endswith("}")
        if ends_inside and not is_terminated:
            raise RowError(
                "data.truncated-file",
                "last line: truncated; the file ends inside a row.",
                "Check whether the file was copied or downloaded completely.",
            ) from None
        message = f"invalid JSON at column {error.colno}: {error.msg}."
        raise RowError("data.invalid-json", message, LINE_HINT) from None
    return _check_row(value, text, keep_surrogates=keep_surrogates)


def parse_list(
    text: str, path: Path, issues: IssueCollector, *, keep_surrogates: bool = False
) -> Iterator[tuple[int, Fields]]:
    """Yield the objects of a JSON list, each with its line. Elements are parsed one by one, so that each has a line."""
    position = _skip_whitespace(text, 0)
    if text[position : position + 1] != "[":
        issues.add("data.invalid-json", "file: expected a list of objects [{…}, …].", str(path), _list_hint(text))
        return
    line, counted = 1, 0
    position = _skip_whitespace(text, position + 1)
    while text[position : position + 1] != "]":
        line += text.count("\n", counted, position)
        counted = position
        try:
            value, end = _decode(_DECODER.raw_decode, text, position)
        except json.JSONDecodeError as error:
            _add_syntax_error(error, text, line, path, issues)
            return
        except RowError as error:
            message = f"{error} The remaining rows were not read."
            issues.add(error.code, message, f"{path}:{line}", error.hint)
            return
        try:
            fields = _check_row(value, text[position:end], keep_surrogates=keep_surrogates)
        except RowError as error:
            issues.add_row_error(error, f"{path}:{line}")
        else:
            yield line, fields
        following = _find_following(text, end, path, issues)
        if following is None:
            return
        position = following
    if text[position + 1 :].strip():
        message = "unexpected text after the closing ']' of the list."
        issues.add("data.invalid-json", message, str(path), "Remove it.")


def _find_following(text: str, end: int, path: Path, issues: IssueCollector) -> int | None:
    """Return where the next row or the closing bracket is after a row that ends at `end`, or None if there is neither.

    An issue is added then.
    """
    position = _skip_whitespace(text, end)
    if text[position : position + 1] == "]":
        return position
    if text[position : position + 1] == ",":
        following = _skip_whitespace(text, position + 1)
        if text[following : following + 1] != "]":
            return following
        problem, hint = "found ',' after the last row", "Remove the comma."
    else:
        problem, hint = "expected ',' or ']' after a row", ""
    line = 1 + text.count("\n", 0, position)
    column = position - text.rfind("\n", 0, position)
    issues.add("data.invalid-json", f"invalid JSON at column {column}: {problem}.", f"{path}:{line}", hint)
    return None


def _list_hint(text: str) -> str:
    """Return a hint for the text of a .json file that is not a list."""
    stripped = text.strip()
    if stripped.count("\n{") > 0 and stripped.count("\n}") == 0:
        return "Rename it to .jsonl; it looks like JSON Lines."
    return "Write a list, or one object per line in a .jsonl file."


def _add_syntax_error(error: json.JSONDecodeError, text: str, line: int, path: Path, issues: IssueCollector) -> None:
    """Add the syntax error of the list element that starts in `line`."""
    location = f"{path}:{error.lineno}"
    if error.pos >= len(text.rstrip()) - 1:
        hint = f"Check whether the file was cut off; the row starts on line {line}."
        issues.add("data.truncated-file", "the file ends inside a row.", location, hint)
    else:
        message = f"invalid JSON at column {error.colno}: {error.msg}."
        issues.add("data.invalid-json", message, location, f"Fix the row that starts on line {line}.")


def _skip_whitespace(text: str, position: int) -> int:
    """Return the position of the first character from `position` on that is not JSON white space."""
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _check_row(value: Any, text: str, *, keep_surrogates: bool) -> Fields:
    """Return `value`, parsed from `text`, if it is a row. Raise RowError otherwise."""
    if not isinstance(value, dict):
        raise RowError("data.invalid-row", f"row: found {type_name(value)}, expected an object {{…}}.", LINE_HINT)
    if not value:
        raise RowError("data.invalid-row", "row: found an empty object, expected fields.", "Remove the row.")
    if not keep_surrogates and "\\u" in text and _has_lone_surrogate(value):
        message = "row: contains a lone surrogate, such as \\ud800, which cannot be encoded as UTF-8."
        raise RowError("data.lone-surrogate", message, "Remove it.")
    return value


def _has_lone_surrogate(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _decode(decode: Callable[..., T], *arguments: Any) -> T:
    """Return `decode(*arguments)`. Raise RowError if the value is nested too deeply for the interpreter."""
    try:
        return decode(*arguments)
    except RecursionError:
        message = "row: nested too deeply to be parsed."
        raise RowError("data.nested-too-deeply", message, "Write the inner values as text.") from None


def _refuse_constant(name: str) -> NoReturn:
    raise RowError("data.invalid-number", f"{name} is not a JSON number.", "Write a number, or null.")


def _parse_integer(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:  # int() refuses more than 4,300 digits
        raise RowError("data.invalid-number", f"integer {digits[:25]}: does not fit in 64 bits.", TEXT_HINT)
    return int(digits)


def _parse_float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise RowError("data.invalid-number", f"number {digits[:25]}: does not fit in 64 bits.", TEXT_HINT)
    return number


def _check_unique_keys(pairs: list[tuple[str, Any]]) -> Fields:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise RowError("data.duplicate-key", f"duplicate key {duplicate!r} in an object.", "Keep one of them.")
    return fields


_DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant,
    parse_int=_parse_integer,
    parse_float=_parse_float,
    object_pairs_hook=_check_unique_keys,
)
