"""Format bytes, durations, paths, exceptions and suggestions, in one way for all messages."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path


def format_bytes(count: float) -> str:
    """Return a number of bytes as `4.2 GB` or `310 MB` (decimal units)."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


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
