"""The one error family: where, what, what is allowed, how to mend it, and the exit code that says its kind.

An error holds one fault or many, because everything that is wrong with a recipe or a data file is told in one go.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

SECRETS = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)$")  # in the environment, variables of these names hold one
SHORTEST = 8  # characters of a secret; a shorter value may stand anywhere by chance
_SECRET_TEXT = re.compile(
    r"""(?P<scheme>\b[a-z][a-z0-9+.-]*:/{1,2})[^/\s]*@  # user and password of a URL, also one that was read as a path
    | (?P<parameter>[?&][^=&\s]*(?:token|key|secret|passw|auth|sig|cred)[^=&\s]*=)[^&\s]+
    | \b(?P<token>hf_)[A-Za-z0-9]{20,}""",
    re.VERBOSE | re.IGNORECASE,
)


def redacted(text: str) -> str:
    """`text` without secrets: those of the environment, passwords and keys of URLs, tokens of the hub."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and value in text and SECRETS.search(name):
            text = text.replace(value, "…")
    return _SECRET_TEXT.sub(lambda match: f"{match[match.lastgroup or 0]}…{'@' if match['scheme'] else ''}", text)


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    `where` is `file:line:column`, `file:line` or a name, as near as it is known; `message` says what was found and
    what is allowed; `mend` says what to do. What a library said, or a recipe held, may hold a secret: it is taken out.
    """

    message: str
    where: str = ""
    mend: str = ""

    def __post_init__(self) -> None:
        for name in ("message", "where", "mend"):
            object.__setattr__(self, name, redacted(getattr(self, name)))

    def __str__(self) -> str:
        text = f"{self.where}  {self.message}" if self.where else self.message
        return f"{text} {self.mend}" if self.mend else text


class RlhfError(Exception):
    """What a user can cause and mend. Raise one of the kinds below; each has its exit code."""

    code: ClassVar[int] = 1
    result: Mapping[str, Any] = MappingProxyType({})  # what `--json` tells beside the faults

    def __init__(self, fault: str | Sequence[Fault], *, where: str = "", mend: str = "") -> None:
        self.faults: tuple[Fault, ...] = (Fault(fault, where, mend),) if isinstance(fault, str) else tuple(fault)
        super().__init__("\n".join(map(str, self.faults)))


class RecipeError(RlhfError):
    """A recipe or a command line that cannot be followed."""

    code = 2


class DataError(RlhfError):
    """Rows that cannot be read or used."""

    code = 3


class ModelError(RlhfError):
    """A model, an adapter or a run's artifact that is absent, damaged or does not fit."""

    code = 4


class HardwareError(RlhfError):
    """This machine lacks what the recipe asks for."""

    code = 5


class DiskError(RlhfError):
    """No space, no permission, or a path outside the runs folder."""

    code = 6


class DivergedError(RlhfError):
    """Training left the finite numbers, or the limits that the recipe sets."""

    code = 7


class GateError(RlhfError):
    """The run is complete, and a gate says that it is not good enough. `result` tells of it."""

    code = 8

    def __init__(self, faults: Sequence[Fault], result: Mapping[str, Any]) -> None:
        self.result = result
        super().__init__(faults)


class StoppedError(RlhfError):
    """A signal ended the run before it was complete."""

    code = 75
