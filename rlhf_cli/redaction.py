"""Remove secrets from text: environment secrets, URL passwords and keys, and tokens of known services."""

from __future__ import annotations

import json
import os
import re
from urllib.parse import quote

SECRET_VARIABLE = re.compile(  # names of environment variables that hold a secret
    r"pass|pwd|token|secret|cred|webhook|(^|_)(\w*key|auth|pat|jwt|dsn|conn|connection)(_|\d|$)", re.IGNORECASE
)
_NO_SECRET = re.compile(r"[/~.].*|[\d.,:]+|true|false", re.IGNORECASE)  # values that are paths, numbers or switches
SECRET_PARAMETER = re.compile("token|key|secret|passw|auth|sig|cred", re.IGNORECASE)  # names of URL parameters
MIN_SECRET_LENGTH = 8  # characters; a shorter value may occur anywhere by chance
_SECRET_TEXT = re.compile(
    rf"""(?P<scheme>\b[a-z][a-z0-9+.-]*:/{{1,2}})[^/\s]*@  # user and password of a URL, also one parsed as a path
    | (?P<parameter>[?&][^=&\s]*(?:{SECRET_PARAMETER.pattern})[^=&\s]*=)[^&\s]+
    | \b(?P<token>hf_|sk-|gh[opsu]_|github_pat_|glpat-|xox[abprs]-)[A-Za-z0-9_-]{{20,}}
    | \b(?P<aws>AKIA)[A-Z0-9]{{16}}\b
    | \b(?P<jwt>eyJ)[\w-]{{8,}}\.[\w-]{{8,}}\.[\w-]+
    | \b(?P<bearer>Bearer\s+)[\w.~+/-]{{8,}}=*""",
    re.VERBOSE | re.IGNORECASE,
)
_URL_WITH_CREDENTIALS = re.compile(r"://\S*[@?]\S*")


def redact(text: str) -> str:
    """Return `text` without environment secrets, URL passwords and keys, and tokens of known services.

    A secret is also found as Python, JSON and URLs quote it.
    """
    for name, value in os.environ.items():
        if len(value) < MIN_SECRET_LENGTH or not SECRET_VARIABLE.search(name) or _NO_SECRET.fullmatch(value):
            continue
        for form in {value, repr(value)[1:-1], json.dumps(value)[1:-1], quote(value, safe="")}:
            text = text.replace(form, "…")
    return _SECRET_TEXT.sub(lambda match: f"{match[match.lastgroup or 0]}…{'@' if match['scheme'] else ''}", text)


def redact_urls(text: str) -> str:
    """Return `text` with everything after `://` removed from each URL that has a user, a password or a query."""
    return _URL_WITH_CREDENTIALS.sub("://…", text)
