"""Validate the section `feedback`: the store, its files, and numbers that must fit each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from rlhf_cli.recipe.schema import Feedback, Key, Recipe
from rlhf_cli.recipe.validation.keyed_issue import KeyedIssue, keyed_issue
from rlhf_cli.recipe.validation.paths import not_found_issue
from rlhf_cli.redaction import SECRET_PARAMETER

STORE_KEY: Key = ("feedback", "store")
STORE_HINT = "Use a file, or a URL such as postgresql://user@host/database."
SCHEMES = ("postgresql", "postgres")
PAIR = 2  # completions that the task pair compares


def feedback_issues(recipe: Recipe) -> Iterator[KeyedIssue]:
    """Yield issues of the section `feedback`."""
    feedback = recipe.feedback
    yield from _store_issues(feedback.store)
    yield from _file_issues(feedback)
    yield from _number_issues(feedback)
    for name, count in Counter(feedback.criteria).items():
        if count > 1 or not name.strip():
            problem = f"found {name!r} {count} times, expected different names."
            yield keyed_issue("recipe.invalid-value", ("feedback", "criteria"), problem, "Remove all but one.")
    completions = recipe.sample.samples_per_prompt
    if feedback.task == "pair" and "sample" in recipe.model_fields_set and completions != PAIR:
        problem = f"pair compares {PAIR} completions; found sample.samples_per_prompt {completions}."
        hint = f"Set sample.samples_per_prompt to {PAIR}, or task to rank or best-worst."
        yield keyed_issue("recipe.conflicting-keys", ("feedback", "task"), problem, hint)


def _store_issues(store: str) -> Iterator[KeyedIssue]:
    """Yield issues of the store's URL. They do not repeat it, because a password may be anywhere in it."""
    if "://" not in store:
        return
    try:
        parts = urlsplit(store)
        has_password = parts.password is not None
        _ = parts.port  # raises ValueError if it is invalid
    except ValueError:
        yield keyed_issue("recipe.invalid-value", STORE_KEY, "invalid URL.", STORE_HINT)
        return
    if has_password or any(SECRET_PARAMETER.search(name) for name, _ in parse_qsl(parts.query)):
        problem = "contains a password, which would be visible in the run's recipe.yaml."
        hint = "Remove it, and set the environment variable PGPASSWORD or RLHF_FEEDBACK_STORE, or write ~/.pgpass."
        yield keyed_issue("recipe.contains-secret", STORE_KEY, problem, hint)
    elif parts.scheme not in SCHEMES:
        problem = f"unsupported database; found {parts.scheme}://, expected a file or postgresql://."
        yield keyed_issue("recipe.invalid-value", STORE_KEY, problem, STORE_HINT)


def _file_issues(feedback: Feedback) -> Iterator[KeyedIssue]:
    paths: dict[Key, str | None] = {
        ("feedback", "guideline"): feedback.guideline,
        ("feedback", "gold", "path"): feedback.gold.path if feedback.gold else None,
        ("feedback", "qualification", "path"): feedback.qualification.path if feedback.qualification else None,
    }
    for key, path in paths.items():
        if path is not None and not Path(path).is_file():
            yield not_found_issue("file", Path(path), key)


def _number_issues(feedback: Feedback) -> Iterator[KeyedIssue]:
    if feedback.max_overlap < feedback.overlap:
        problem = f"below overlap; found {feedback.max_overlap}, expected at least {feedback.overlap}."
        yield keyed_issue("recipe.invalid-value", ("feedback", "max_overlap"), problem, "Raise it to overlap or more.")
    share = feedback.gold.share if feedback.gold else 0.0
    if share + feedback.repeats >= 1:
        problem = f"gold.share and repeats leave no other items; found {share:g} + {feedback.repeats:g}, expected "
        problem += "less than 1."
        yield keyed_issue("recipe.invalid-value", ("feedback", "repeats"), problem, "Lower one of them.")
