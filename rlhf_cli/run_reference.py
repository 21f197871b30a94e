"""Parse references to runs: `stage`, `stage@latest`, `stage@v0003` and `name/stage@v0003`. Standard library only."""

from __future__ import annotations

import re
from typing import NamedTuple

_FOLDER = r"[A-Za-z0-9][\w.-]*"  # one folder name: neither `..` nor a path with `/`
_PATTERN = re.compile(rf"(?:(?P<name>{_FOLDER})/)?(?P<stage>{_FOLDER})(?:@(?P<version>latest|v\d{{4,}}))?")


class RunReference(NamedTuple):
    """A reference to a run, as written.

    Attributes:
        name: The recipe whose run is meant, or None for the recipe that has the reference.
        stage: The stage that wrote the run. It is not checked against the stage table.
        version: `latest`, a version such as `v0003`, or None if none is written, which means the latest.
    """

    name: str | None
    stage: str
    version: str | None


def parse_run_reference(text: str) -> RunReference | None:
    """Parse a reference to a run. Return None if `text` is not one, for example a path or an invalid version."""
    match = _PATTERN.fullmatch(text)
    return None if match is None else RunReference(match["name"], match["stage"], match["version"])
