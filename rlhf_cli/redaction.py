"""Remove secrets from text: environment secrets, URL passwords and keys, Hub tokens."""

from __future__ import annotations

import os
import re

SECRET_VARIABLE = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)$")  # names of environment variables that hold a secret
SECRET_PARAMETER = re.compile("token|key|secret|passw|auth|sig|cred", re.IGNORECASE)  # names of URL parameters
MIN_SECRET_LENGTH = 8  # characters; a shorter value may occur anywhere by chance
_SECRET_TEXT = re.compile(
    rf"""(?P<scheme>\b[a-z][a-z0-9+.-]*:/{{1,2}})[^/\s]*@  # user and password of a URL, also one parsed as a path
    | (?P<parameter>[?&][^=&\s]*(?:{SECRET_PARAMETER.pattern})[^=&\s]*=)[^&\s]+
    | \b(?P<token>hf_)[A-Za-z0-9]{{20,}}""",
    re.VERBOSE | re.IGNORECASE,
)
_URL_WITH_CREDENTIALS = re.compile(r"://\S*[@?]\S*")


def redact(text: str) -> str:
    """Return `text` without environment secrets, URL passwords and keys, and Hub tokens."""
    for name, value in os.environ.items():
        if len(value) >= MIN_SECRET_LENGTH and value in text and SECRET_VARIABLE.search(name):
            text = text.replace(value, "…")
    return _SECRET_TEXT.sub(lambda match: f"{match[match.lastgroup or 0]}…{'@' if match['scheme'] else ''}", text)


def redact_urls(text: str) -> str:
    """Return `text` with everything after `://` removed from each URL that has a user, a password or a query."""
    return _URL_WITH_CREDENTIALS.sub("://…", text)
