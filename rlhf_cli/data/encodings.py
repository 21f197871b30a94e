"""Recognize files that are not UTF-8, and say how to convert them."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from pathlib import Path

from rlhf_cli.data.issues import IssueCollector

HEAD_BYTES = 64  # of a file, which tell its encoding
_BYTE_ORDER_MARKS = (  # UTF-32's first, which starts with UTF-16's
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def encoding_hint(encoding: str) -> str:
    """Return how to convert a file from `encoding`, in words."""
    return f"Save the file as UTF-8, for example with `iconv -f {encoding.lower()} -t utf-8`."


BYTE_HINT = encoding_hint("cp1252")  # of Windows: Latin-1 and the quotes and dashes that it lacks


def is_wide(head: bytes, path: Path, issues: IssueCollector) -> bool:
    """Return whether a file that starts with `head` is UTF-16 or UTF-32, which is an issue."""
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), "")
    if not encoding and b"\0" in head:
        encoding = "UTF-16LE" if head.find(b"\0") % 2 else "UTF-16BE"
    if encoding:
        message = f"not UTF-8: looks like {encoding}."
        issues.add("data.not-utf8", message, str(path), encoding_hint(encoding))
    return bool(encoding)


def decode_line(line: bytes, location: str, issues: IssueCollector) -> str | None:
    """Return the line's text, or None, with an issue, if it is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        message = f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}."
        issues.add("data.not-utf8", message, location, BYTE_HINT)
        return None


def add_encoding_issues(lines: Iterable[bytes], path: Path, issues: IssueCollector) -> None:
    """Add an issue for each line that is not UTF-8."""
    for number, line in enumerate(lines, 1):
        decode_line(line, f"{path}:{number}", issues)
