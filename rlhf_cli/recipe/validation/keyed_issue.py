"""Issues with the recipe key that they belong to. The loader adds the key's location in the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rlhf_cli.errors import Issue
from rlhf_cli.recipe.schema import Key, Section
from rlhf_cli.recipe.yaml_document import dotted

KeyedIssue = tuple[Key, Issue]


def keyed_issue(code: str, key: Key, problem: str, hint: str = "") -> KeyedIssue:
    """Return an issue with the message `<key>: <problem>`."""
    return with_key(key, Issue(code, problem, hint=hint))


def with_key(key: Key, issue: Issue) -> KeyedIssue:
    """Return `issue` with the key at the start of its message."""
    return key, replace(issue, message=f"{dotted(key)}: {issue.message}")


def exactly_one_issues(section: Section, names: Sequence[str], key: Key) -> Iterator[KeyedIssue]:
    """Yield an issue unless exactly one of the fields `names` is set."""
    found = [name for name in names if getattr(section, name) is not None]
    expected = f"expected exactly one of {', '.join(names[:-1])} and {names[-1]}"
    if not found:
        yield keyed_issue("recipe.missing-key", key, f"missing key; found none, {expected}.", "Set one of them.")
    elif len(found) > 1:
        problem = f"conflicting keys; found {' and '.join(found)}, {expected}."
        yield keyed_issue("recipe.conflicting-keys", key, problem, "Keep one of them.")


def dependent_issues(section: Section, owners: Sequence[tuple[str, str]], key: Key) -> Iterator[KeyedIssue]:
    """Yield an issue for each field that is set without the field that it belongs to.

    Args:
        section: The section with the fields.
        owners: Pairs of a field and the field that it belongs to.
        key: Key of the section.
    """
    for name, owner in owners:
        if getattr(section, name) is not None and getattr(section, owner) is None:
            problem = f"only allowed together with {owner}."
            yield keyed_issue("recipe.conflicting-keys", (*key, name), problem, f"Remove {name}, or set {owner}.")
