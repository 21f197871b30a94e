"""Score completions with a server: batches as JSON over HTTP, retried if that may help.

    POST {"prompts": […], "completions": […], "<column>": […]}  ->  [0.5, …]  or  {"scores": [0.5, …]}

Text prompts are sent with text completions, conversations with `[{"role": "assistant", "content": …}]`, and the
dataset's other columns unchanged. If RLHF_REWARD_TOKEN is set in the environment, it is sent as a Bearer token. It is
never shown, nor is any part of a URL besides scheme, host and path. Redirects are not followed, because they would send
the token to another server.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import ssl
import time
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2

from rlhf_cli.data.rows import PromptRow
from rlhf_cli.errors import DataError, DivergedError, RecipeError
from rlhf_cli.formatting import format_bytes
from rlhf_cli.recipe.schema import Base, RewardSource
from rlhf_cli.rewards.base import Completions, SourceScores, as_completion, quote

TOKEN_VARIABLE = "RLHF_REWARD_TOKEN"
DEFAULT_TIMEOUT = 60.0  # seconds
DEFAULT_BATCH_SIZE = 64  # completions
DEFAULT_RETRIES = 4
FIRST_DELAY = 1.0  # seconds before the first retry; doubled for each further one
MAX_DELAY = 60.0  # seconds
MAX_RESPONSE_BYTES = 1 << 24
MAX_EXCERPT_BYTES = 1000  # of a response in an error message
MAX_FLOAT32 = 3.4028234663852886e38  # scores are summed in float32
RETRYABLE_STATUSES = (408, 425, 429)  # besides 5xx
RESPONSE_HINT = 'Return a list of numbers, one per completion, or {"scores": […]}.'
CONNECTION_HINT = "Check that the server is running and can be reached; see also timeout and retries in ppo.reward."
STATUS_HINTS = {
    400: "The server must accept {prompts, completions, …columns} as JSON.",
    401: f"Set {TOKEN_VARIABLE} in the environment.",
    403: f"Set {TOKEN_VARIABLE} in the environment to a token that the server accepts.",
    404: "Check the path of the URL.",
    405: "The server must accept POST.",
    413: "Lower the batch_size of the source.",
    422: "The server must accept {prompts, completions, …columns} as JSON.",
}

logger = logging.getLogger(__name__)
logging.getLogger("httpx2").setLevel(logging.WARNING)  # at INFO it logs each URL with its parameters


class _RequestError(Exception):
    """A failed attempt.

    Attributes:
        code: Code of the issue.
        hint: Hint of the issue.
        delay: Seconds that the server asks to wait before a retry, or None if a retry cannot help.
    """

    def __init__(self, message: str, hint: str, delay: float | None, code: str = "training.reward-server") -> None:
        super().__init__(message)
        self.code, self.hint, self.delay = code, hint, delay


class _Response(NamedTuple):
    """A response, of an error only its beginning."""

    status: int
    retry_after: str
    data: bytes


class HttpScorer:
    """Scores with a server.

    Args:
        url: The server's URL.
        timeout: Seconds for one request with its complete response.
        batch_size: Completions per request.
        retries: Retries of a failed request.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        batch_size: int = DEFAULT_BATCH_SIZE,
        retries: int = DEFAULT_RETRIES,
    ) -> None:
        self.url, self.timeout, self.batch_size, self.retries = url, timeout, batch_size, retries

    @classmethod
    def from_source(cls, source: RewardSource) -> HttpScorer:
        """Return the scorer of the source's server."""
        assert source.http is not None
        given = {"timeout": source.timeout, "batch_size": source.batch_size, "retries": source.retries}
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return cls(source.http, **options)

    @property
    def name(self) -> str:
        """Always `http`."""
        return "http"

    @property
    def display_url(self) -> str:
        """The URL without user, password and parameters."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def check(self, rows: Sequence[PromptRow]) -> None:
        """Send one request with an empty completion of the first prompt, so that a wrong URL is found early.

        Raises:
            DivergedError: As `score`.
        """
        self.score(Completions(rows[:1], [[]], [[]], [as_completion(rows[0].prompt, "")]), max_tokens=0)

    def load(self, base: Base, *, smoke: bool) -> None:
        """Do nothing: the server has the weights."""

    def score(self, completions: Completions, *, max_tokens: int) -> SourceScores:  # noqa: ARG002
        """Send the completions in batches.

        Raises:
            DivergedError: The server cannot be reached, refuses, or does not return one finite number per completion.
            RecipeError: The token cannot be sent in an HTTP header.
            DataError: A column holds NaN or infinity.
        """
        columns = {**completions.columns, "prompts": completions.prompts, "completions": completions.completions}
        scores: list[float] = []
        for start in range(0, len(completions.completions), self.batch_size):
            batch = {name: values[start : start + self.batch_size] for name, values in columns.items()}
            scores += self._request_scores(_to_json(batch), len(batch["completions"]))
        return SourceScores(scores)

    def _request_scores(self, body: bytes, count: int) -> list[float]:
        """Return the scores of one batch, after retries if needed."""
        attempt = 0
        while True:
            try:
                return _parse_scores(self._post(body), count)
            except _RequestError as error:
                if error.delay is None or attempt == self.retries:
                    attempts = f" ({attempt + 1} attempts)" if attempt else ""
                    message = f"{self.display_url}: {error}{attempts}."
                    raise DivergedError(error.code, message, location="ppo.reward", hint=error.hint) from None
                delay = min(max(FIRST_DELAY * 2**attempt, error.delay), MAX_DELAY)
                attempt += 1
                logger.info(f"{self.display_url}: {error}; retry {attempt} of {self.retries} in {delay:g} s")
                time.sleep(delay)

    def _post(self, body: bytes) -> bytes:
        """Send one request, and return the response of a success."""
        try:
            response = asyncio.run(self._exchange(body))
        except TimeoutError:
            raise _RequestError(f"no complete response within {self.timeout:g} s", CONNECTION_HINT, 0.0) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise _RequestError(f"cannot be reached: {_root_cause(error)}", CONNECTION_HINT, 0.0) from None
        if response.status < 300:
            return response.data
        hint = STATUS_HINTS.get(response.status, CONNECTION_HINT)
        if response.status < 400:
            hint = "Use the URL that it redirects to."
        may_recover = response.status >= 500 or response.status in RETRYABLE_STATUSES
        delay = _parse_retry_after(response.retry_after) if may_recover else None
        raise _RequestError(f"status {response.status}; found {_excerpt(response.data)}", hint, delay)

    async def _exchange(self, body: bytes) -> _Response:
        """Send one request.

        The timeouts of an HTTP client limit single reads, so a server that sends a byte now and then could take
        forever. This deadline includes everything from the connection to the last byte.

        Raises:
            TimeoutError: The deadline has passed.
        """
        async with (
            asyncio.timeout(self.timeout),
            httpx2.AsyncClient(timeout=None, follow_redirects=False, verify=_ssl_context()) as client,
            client.stream("POST", self.url, content=body, headers=_headers()) as response,
        ):
            is_error = response.status_code >= 300
            data = b""
            async for chunk in response.aiter_raw():
                data += chunk
                if is_error and len(data) >= MAX_EXCERPT_BYTES:
                    break
                if len(data) > MAX_RESPONSE_BYTES:
                    message = f"the response is too large; expected at most {format_bytes(MAX_RESPONSE_BYTES)}"
                    raise _RequestError(message, RESPONSE_HINT, None, "training.invalid-reward")
            return _Response(response.status_code, response.headers.get("Retry-After", ""), data)


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    return httpx2.create_ssl_context()


def _headers() -> dict[str, str]:
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token.isascii() or not token.isprintable():
        message = f"{TOKEN_VARIABLE}: contains characters that are not allowed in an HTTP header."
        hint = "Set it again, without line breaks."
        raise RecipeError("recipe.invalid-token", message, location="environment", hint=hint)
    headers = {
        "Accept": "application/json",
        "Accept-Encoding": "identity",  # a compressed response could exceed the byte limit when it is expanded
        "Content-Type": "application/json",
        "User-Agent": "rlhf",
    }
    return {**headers, "Authorization": f"Bearer {token}"} if token else headers


def _to_json(batch: dict[str, Any]) -> bytes:
    try:
        return json.dumps(batch, default=str, allow_nan=False).encode()
    except ValueError:
        message = "a column contains NaN or infinity, which cannot be sent to an HTTP reward as JSON."
        hint = "Replace these values or drop the column."
        raise DataError("data.non-finite", message, location="data.prompts", hint=hint) from None


def _root_cause(error: BaseException) -> str:
    """Return the operating system's description of the error behind `error`, or the message of `error`."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            # asyncio replaces the description, which would repeat the address; a failed name look-up has errno < 0
            return os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror)
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__


def _parse_retry_after(text: str) -> float:
    """Return the seconds of a Retry-After header; 0 if it is a date or missing."""
    return float(text) if text.isdecimal() else 0.0


def _parse_scores(data: bytes, count: int) -> list[float]:
    """Return the numbers in a response. Raise _RequestError unless it holds `count` finite numbers."""

    def invalid(message: str, code: str = "training.invalid-reward") -> _RequestError:
        return _RequestError(message, RESPONSE_HINT, None, code)

    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise invalid(f"the response is not JSON; found {_excerpt(data)}") from None
    scores = content.get("scores") if isinstance(content, dict) else content
    if not isinstance(scores, list):
        raise invalid(f"invalid response; found {_excerpt(data)}, expected a list of numbers")
    if len(scores) != count:
        raise invalid(f"wrong number of scores; found {len(scores)}, expected {count}")
    for index, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, int | float):
            # null, which many servers write for NaN, is refused too, so that no divergence is hidden
            found = _excerpt(json.dumps(score).encode())
            raise invalid(f"the score of completion {index} is not a number; found {found}")
        if not abs(score) <= MAX_FLOAT32:
            raise invalid(f"the score of completion {index} is not a finite float32 number", "training.non-finite")
    return [float(score) for score in scores]


def _excerpt(data: bytes) -> str:
    """Return the beginning of a response without the token, which the server may repeat."""
    text = data[:MAX_EXCERPT_BYTES].decode("utf-8", "replace")
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    return quote(text.replace(token, "…") if token else text, 200)
