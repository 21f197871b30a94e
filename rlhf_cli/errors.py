"""Exceptions for errors that the user can fix.

Each holds one or more issues (code, location, message, hint) and defines an exit code. All issues of a recipe or a
data file are reported at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from rlhf_cli.error_codes import CODES
from rlhf_cli.formatting import escape_control
from rlhf_cli.redaction import redact


@dataclass(frozen=True)
class Issue:
    """One problem that the user can fix. Secrets are removed from its texts, and control characters escaped.

    Attributes:
        code: Stable identifier from `error_codes.CODES`, such as `recipe.unknown-key`.
        message: What is wrong: what was found and what is allowed.
        location: `file:line:column`, `file:line`, a recipe key or a path; empty if unknown.
        hint: What to do, as an imperative sentence; may be empty.
    """

    code: str
    message: str
    location: str = ""
    hint: str = ""

    def __post_init__(self) -> None:
        assert self.code in CODES, f"unregistered error code: {self.code}"
        for name in ("message", "location", "hint"):
            object.__setattr__(self, name, escape_control(redact(getattr(self, name))))

    def __str__(self) -> str:
        text = f"{self.location}  {self.message}" if self.location else self.message
        return f"{text} {self.hint}" if self.hint else text


class RlhfError(Exception):
    """Base class for errors that the user can fix.

    Args:
        code: The code of a single issue, or the issues themselves.
        message: The message of a single issue.
        location: The location of a single issue.
        hint: The hint of a single issue.
    """

    exit_code: ClassVar[int] = 1
    result: Mapping[str, Any] = MappingProxyType({})  # further keys of the JSON object that `--json` prints

    def __init__(self, code: str | Sequence[Issue], message: str = "", *, location: str = "", hint: str = "") -> None:
        self.issues: tuple[Issue, ...] = (
            (Issue(code, message, location, hint),) if isinstance(code, str) else tuple(code)
        )
        super().__init__("\n".join(map(str, self.issues)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the issues: an error of the main process is sent to the others."""
        return type(self), (self.issues,)


class RecipeError(RlhfError):
    """Raised when the recipe or a command-line option is invalid."""

    exit_code = 2


class DataError(RlhfError):
    """Raised when rows cannot be read or used."""

    exit_code = 3


class ModelError(RlhfError):
    """Raised when a model, an adapter or an artifact of a run is missing, damaged or incompatible."""

    exit_code = 4


class HardwareError(RlhfError):
    """Raised when the machine lacks what the recipe needs."""

    exit_code = 5


class DiskError(RlhfError):
    """Raised on a full disk, a missing permission, a held lock, or a path outside the runs directory."""

    exit_code = 6


class DivergedError(RlhfError):
    """Raised when training reaches non-finite values or exceeds a limit set by the recipe, or when a reward fails."""

    exit_code = 7


class GateError(RlhfError):
    """Raised after a run completed if one of its gates failed. `result` holds the run's metrics."""

    exit_code = 8

    def __init__(self, issues: Sequence[Issue], result: Mapping[str, Any]) -> None:
        self.result = result
        super().__init__(issues)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the issues and the result."""
        return type(self), (self.issues, self.result)


class StoppedError(RlhfError):
    """Raised when a signal ended the run before it completed."""

    exit_code = 75


class ErrorCollector:
    """Collects RlhfErrors, so that all issues are raised at once."""

    def __init__(self) -> None:
        self.errors: list[RlhfError] = []

    @contextlib.contextmanager
    def collect(self) -> Iterator[None]:
        """Collect an RlhfError raised inside."""
        try:
            yield
        except RlhfError as error:
            self.errors.append(error)

    def raise_all(self) -> None:
        """Raise the collected issues as one error, a RecipeError if one was collected. No-op if there are none."""
        if self.errors:
            issues = [issue for error in self.errors for issue in error.issues]
            kind = next((type(e) for e in self.errors if isinstance(e, RecipeError)), type(self.errors[0]))
            raise kind(list(dict.fromkeys(issues)))
