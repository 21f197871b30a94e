"""Send JSON to a server over HTTP, with a deadline, retries, a byte limit and a token that no message repeats.

The token is read from an environment variable and sent as a Bearer token. It is never shown, nor is any part of a URL
besides scheme, host and path. Redirects are not followed, because they would send the token to another server.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import ssl
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

import httpx2

from rlhf_cli.errors import RecipeError
from rlhf_cli.formatting import format_bytes

T = TypeVar("T")
FIRST_DELAY = 1.0  # seconds before the first retry; doubled for each further one
MAX_DELAY = 60.0  # seconds
MAX_RESPONSE_BYTES = 1 << 24
MAX_EXCERPT_BYTES = 1000  # of a response in an error message
MAX_QUOTED_CHARACTERS = 200
RETRYABLE_STATUSES = (408, 425, 429)  # besides 5xx

logger = logging.getLogger(__name__)
logging.getLogger("httpx2").setLevel(logging.WARNING)  # at INFO it logs each URL with its parameters


class Service(NamedTuple):
    """What differs between kinds of servers.

    Attributes:
        token_variable: Environment variable that holds the token.
        connection_code: Code of the issue if the server cannot be reached or refuses the request.
        response_code: Code of the issue if the content of a response is invalid.
        connection_hint: Hint if the server cannot be reached.
        response_hint: Hint if the content of a response is invalid.
        status_hints: Hint for an HTTP status.
    """

    token_variable: str
    connection_code: str
    response_code: str
    connection_hint: str
    response_hint: str
    status_hints: Mapping[int, str]


class RequestError(Exception):
    """A request that failed.

    Attributes:
        code: Code of the issue.
        hint: Hint of the issue.
        delay: Seconds that the server asks to wait before a retry, or None if a retry cannot help.
    """

    def __init__(self, message: str, code: str, hint: str, delay: float | None = None) -> None:
        super().__init__(message)
        self.code, self.hint, self.delay = code, hint, delay


class _Response(NamedTuple):
    """A response, of an error only its beginning."""

    status: int
    retry_after: str
    data: bytes


class JsonClient:
    """Posts JSON to one URL. Several threads may use it at once.

    Args:
        url: The URL.
        service: The kind of server.
        timeout: Seconds for one request with its complete response.
        retries: Retries of a failed request.
    """

    def __init__(self, url: str, service: Service, *, timeout: float, retries: int) -> None:
        self.url, self.service, self.timeout, self.retries = url, service, timeout, retries

    @property
    def display_url(self) -> str:
        """The URL without user, password and parameters."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def post(self, body: bytes, parse: Callable[[bytes], T]) -> T:
        """Send one request, after retries if needed, and return its parsed response.

        Args:
            body: The JSON.
            parse: Parses the content of a response; raises the error of `invalid_response` if it is invalid.

        Raises:
            RequestError: The server cannot be reached, refuses, or its response is invalid. Its message starts with
                the URL.
            RecipeError: The token cannot be sent in an HTTP header.
        """
        attempt = 0
        while True:
            try:
                return parse(self._post(body))
            except RequestError as error:
                if error.delay is None or attempt == self.retries:
                    attempts = f" ({attempt + 1} attempts)" if attempt else ""
                    message = f"{self.display_url}: {error}{attempts}."
                    raise RequestError(message, error.code, error.hint) from None
                delay = min(max(FIRST_DELAY * 2**attempt, error.delay), MAX_DELAY)
                attempt += 1
                logger.info(f"{self.display_url}: {error}; retry {attempt} of {self.retries} in {delay:g} s")
                time.sleep(delay)

    def invalid_response(self, message: str, code: str = "") -> RequestError:
        """Return the error of a response with invalid content; a retry would not help."""
        return RequestError(message, code or self.service.response_code, self.service.response_hint)

    def excerpt(self, data: bytes) -> str:
        """Return the beginning of a response without the token, which the server may repeat, quoted for a message."""
        text = data[:MAX_EXCERPT_BYTES].decode("utf-8", "replace")
        token = self._token()
        text = text.replace(token, "…") if token else text
        return repr(text if len(text) <= MAX_QUOTED_CHARACTERS else text[:MAX_QUOTED_CHARACTERS] + "…")

    def _post(self, body: bytes) -> bytes:
        """Send one request, and return the response of a success."""
        service = self.service
        try:
            response = asyncio.run(self._exchange(body))
        except TimeoutError:
            message = f"no complete response within {self.timeout:g} s"
            raise RequestError(message, service.connection_code, service.connection_hint, 0.0) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            message = f"cannot be reached: {_root_cause(error)}"
            raise RequestError(message, service.connection_code, service.connection_hint, 0.0) from None
        if response.status < 300:
            return response.data
        hint = service.status_hints.get(response.status, service.connection_hint)
        if response.status < 400:
            hint = "Use the URL that it redirects to."
        may_recover = response.status >= 500 or response.status in RETRYABLE_STATUSES
        delay = _parse_retry_after(response.retry_after) if may_recover else None
        message = f"status {response.status}; found {self.excerpt(response.data)}"
        raise RequestError(message, service.connection_code, hint, delay)

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
            client.stream("POST", self.url, content=body, headers=self._headers()) as response,
        ):
            is_error = response.status_code >= 300
            data = b""
            async for chunk in response.aiter_raw():
                data += chunk
                if is_error and len(data) >= MAX_EXCERPT_BYTES:
                    break
                if len(data) > MAX_RESPONSE_BYTES:
                    limit = format_bytes(MAX_RESPONSE_BYTES)
                    raise self.invalid_response(f"the response is too large; expected at most {limit}")
            return _Response(response.status_code, response.headers.get("Retry-After", ""), data)

    def _token(self) -> str:
        return os.environ.get(self.service.token_variable, "").strip()

    def _headers(self) -> dict[str, str]:
        token = self._token()
        if not token.isascii() or not token.isprintable():
            message = f"{self.service.token_variable}: contains characters that are not allowed in an HTTP header."
            hint = "Set it again, without line breaks."
            raise RecipeError("recipe.invalid-token", message, location="environment", hint=hint)
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # a compressed response could exceed the byte limit when it is expanded
            "Content-Type": "application/json",
            "User-Agent": "rlhf",
        }
        return {**headers, "Authorization": f"Bearer {token}"} if token else headers


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    return httpx2.create_ssl_context()


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
