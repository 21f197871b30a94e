"""Format bytes, durations, paths, exceptions and suggestions, in one way for all messages."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

# Characters that control a terminal or reorder the text around them, and halves of surrogate pairs. Line feeds and tabs
# are kept.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
SMALLEST_SHOWN = 1e-12  # a smaller metric is rounding error, so its digits mean nothing


def escape_control(text: str) -> str:
    """Return `text` with control characters escaped as in Python: data must not control the terminal that shows it."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def format_bytes(count: float) -> str:
    """Return a number of bytes as `4.2 GB`, `310 MB`, `12 kB` (decimal units) or `512 bytes`."""
    if count >= 1e9:
        return f"{count / 1e9:,.1f} GB"
    if count >= 1e6:
        return f"{count / 1e6:,.0f} MB"
    return f"{count / 1e3:,.0f} kB" if count >= 1e3 else format_count(int(count), "byte")


def format_count(count: int, noun: str) -> str:
    """Return `1 row` or `1,234 rows` for the noun `row`, which may follow an adjective."""
    return f"{count:,} {noun if count == 1 else pluralize(noun)}"


def pluralize(noun: str) -> str:
    """Return the plural of a regular noun, such as `row` or `process`."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def format_number(value: float | None) -> str:
    """Return a number with three significant digits, or with thousands separators from 1,000 on."""
    if value is None:
        return "not finite"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) < SMALLEST_SHOWN:
        return f"{'<' if value > 0 else '>'} {'' if value > 0 else '-'}{SMALLEST_SHOWN:g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def format_metric(name: str, value: float | None) -> str:
    """Return the value of a metric as `format_number` does; a size in bytes as `format_bytes` does."""
    return format_bytes(value) if value is not None and name.endswith("bytes") else format_number(value)


def format_duration(seconds: float) -> str:
    """Return seconds as `0:05`, `12:05` or `1:12:05`."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_path(path: Path) -> str:
    """Return an absolute `path` relative to the working directory if it is below it; otherwise unchanged."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") or not path.is_absolute() else relative


def format_exception(error: BaseException) -> str:
    """Return `<type>: <first line of the message>`, or the type's name if the message is empty."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def did_you_mean(name: str, options: Iterable[str], *, otherwise: str = "", cutoff: float = 0.6) -> str:
    """Return `Did you mean <option>?` for the option closest to `name`, or `otherwise` if none is close."""
    close = difflib.get_close_matches(name, list(options), n=1, cutoff=cutoff)
    return f"Did you mean {close[0]}?" if close else otherwise


def format_alternatives(names: Sequence[str]) -> str:
    """Return one or more names as `a`, `a or b`, or `a, b or c`."""
    return " or ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, without a line break at its end."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
