"""Refuse passwords and tokens in a recipe: every run keeps a copy of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from rlhf_cli.recipe.schema import Key, Recipe
from rlhf_cli.recipe.validation.keyed_issue import KeyedIssue, keyed_issue
from rlhf_cli.redaction import SECRET_PARAMETER, redact

URL_FIELDS = ("http", "store")  # a URL with a user or a key is not always a secret
URL_HINT = "Use a URL such as https://host:port/path."


def secret_issues(recipe: Recipe) -> Iterator[KeyedIssue]:
    """Yield an issue, which does not repeat the secret, for each text with a password or token.

    URLs of rewards and judges are validated by `url_issues`.
    """
    yield from _secret_issues(recipe.model_dump(), ())


def _secret_issues(value: Any, key: Key) -> Iterator[KeyedIssue]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _secret_issues(item, (*key, name))
    elif isinstance(value, list):
        is_single_source = key[0] == "data" and len(value) == 1  # a list of one item, whose index is not in the file
        for index, item in enumerate(value):
            yield from _secret_issues(item, key if is_single_source else (*key, index))
    elif isinstance(value, str) and redact(value) != value and key[-1] not in URL_FIELDS:
        problem = "contains a password or a token, which would be visible in the run's recipe.yaml."
        hint = "Remove it, and set the token as an environment variable, such as HF_TOKEN."
        yield keyed_issue("recipe.contains-secret", key, problem, hint)


def url_issues(url: str, key: Key, token_variable: str = "RLHF_REWARD_TOKEN") -> Iterator[KeyedIssue]:
    """Yield issues of a server's URL. They do not repeat it, because a password may be anywhere in it.

    Args:
        url: The URL.
        key: Its key.
        token_variable: The environment variable whose token the server gets.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # raises ValueError for an invalid port
    except ValueError:
        yield keyed_issue("recipe.invalid-value", key, "invalid URL.", URL_HINT)
        return
    names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    if "@" in parts.netloc or redact(url) != url or any(map(SECRET_PARAMETER.search, names)):
        problem = "contains a password or a key, which would be visible in the run's recipe.yaml and logs."
        hint = f"Remove it, and set the environment variable {token_variable}, which is sent as a Bearer token."
        yield keyed_issue("recipe.contains-secret", key, problem, hint)
        return
    is_http = parts.scheme in ("http", "https") and host
    if not is_http or not url.isascii() or re.search(r"[\s\x00-\x20\x7f]", url):
        yield keyed_issue("recipe.invalid-value", key, "invalid URL; expected http or https.", URL_HINT)
