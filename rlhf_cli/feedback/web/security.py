"""Protection of the page: headers, the origin of requests, tokens against forged requests, and limited log-ins."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from urllib.parse import urlsplit

from itsdangerous import BadSignature, Signer
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SESSION_COOKIE = "rlhf_session"
VISITOR_COOKIE = "rlhf_visitor"  # random, before log-in: the key of the log-in form's CSRF token
CSRF_HEADER = "x-csrf-token"
MAX_BODY = 2_000_000  # bytes of a request
SAFE_METHODS = ("GET", "HEAD")
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class ProtectionMiddleware:
    """Set security headers, and refuse requests that change something unless they come from this page.

    A request other than GET needs an `Origin` equal to its `Host`, a CSRF token that belongs to the session's cookie,
    and at most `MAX_BODY` bytes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        problem = None if scope["method"] in SAFE_METHODS else _problem(HTTPConnection(scope))
        if problem is not None:
            await PlainTextResponse(problem, status_code=403)(scope, receive, send_with_headers)
        elif _content_length(Headers(scope=scope)) > MAX_BODY:
            await PlainTextResponse("The request is too long.", status_code=413)(scope, receive, send_with_headers)
        else:
            await self.app(scope, receive, send_with_headers)


def _problem(request: HTTPConnection) -> str | None:
    """Return why a request that changes something is refused, or None if it comes from this page."""
    origin = _host_of(request.headers.get("origin", ""))
    if not origin or origin != request.headers.get("host", "").lower():
        return "The request does not come from this page."
    key = request.cookies.get(SESSION_COOKIE) or request.cookies.get(VISITOR_COOKIE)
    if not key or not is_csrf_token(key, request.headers.get(CSRF_HEADER, "")):
        return "The page is out of date. Reload it."
    return None


def _host_of(origin: str) -> str:
    """Return the host and port of an origin, or "" if it has none or is malformed."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # such as http://[
        return ""


def _content_length(headers: Headers) -> int:
    """Return the announced length of a request in bytes. A request without a length is refused as too long."""
    text = headers.get("content-length", "0" if "transfer-encoding" not in headers else "")
    return int(text) if text.isdecimal() else MAX_BODY + 1


def csrf_token(key: str) -> str:
    """Return the token that belongs to a cookie's value. Knowing the token does not tell the cookie."""
    return Signer(key, salt="csrf").sign(b"page").decode()


def is_csrf_token(key: str, token: str) -> bool:
    """Return whether `token` belongs to the cookie's value `key`."""
    try:
        return Signer(key, salt="csrf").unsign(token) == b"page"
    except BadSignature:
        return False


class AttemptLimit:
    """Limits failed attempts by client address.

    Args:
        attempts: Number of failed attempts after which a client must wait.
        seconds: Length of the window in which they are counted.
        clock: Returns the time in seconds.
    """

    MAX_CLIENTS = 10_000

    def __init__(self, attempts: int = 10, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._attempts = attempts
        self._seconds = seconds
        self._clock = clock
        self._failures: dict[str, deque[float]] = {}

    def wait_seconds(self, client: str) -> float:
        """Return how long the client must wait before its next attempt; 0 if it need not."""
        times = self._failures.get(client)
        if times is None:
            return 0.0
        now = self._clock()
        while times and times[0] <= now - self._seconds:
            times.popleft()
        if not times:
            del self._failures[client]
            return 0.0
        return times[0] + self._seconds - now if len(times) >= self._attempts else 0.0

    def add_failure(self, client: str) -> None:
        """Count a failed attempt. If too many clients are known, the one that has been known longest is forgotten."""
        while len(self._failures) >= self.MAX_CLIENTS and client not in self._failures:
            self._failures.pop(next(iter(self._failures)))
        self._failures.setdefault(client, deque(maxlen=self._attempts)).append(self._clock())
