"""Assert which issues an error holds: by code and location, not by wording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rlhf_cli.errors import Issue, RlhfError


@contextmanager
def raises_issue(
    code: str, *, error: type[RlhfError] = RlhfError, location: str | None = None
) -> Iterator[list[Issue]]:
    """Expect an error whose issues all have `code`, and the first one `location` if given. Yields the issues.

    Args:
        code: The expected code of every issue.
        error: The expected class, which decides the exit code.
        location: The expected location of the first issue.
    """
    issues: list[Issue] = []
    with pytest.raises(error) as raised:
        yield issues
    issues += raised.value.issues
    assert {issue.code for issue in issues} == {code}, raised.value
    if location is not None:
        assert issues[0].location == location
