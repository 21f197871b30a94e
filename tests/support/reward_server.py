"""A reward server on the loopback interface, in a thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, bytes, dict[str, str]]  # status, body, headers
Handle = Callable[[Any], object]  # answers a request by itself


def ok(value: object) -> Reply:
    """Return a successful reply with `value` as JSON."""
    return 200, json.dumps(value).encode(), {}


def lengths(body: dict[str, Any]) -> Reply:
    """Return the lengths of the completions, as a reward."""
    return ok([len(c) for c in body["completions"]])


class Server:
    """Replies with what `respond` returns, or with `replies` in turn, and records the requests.

    Args:
        respond: Returns the reply to a request; the lengths of the completions if not given.

    Attributes:
        requests: The JSON body of each request.
        headers: The headers of each request.
        paths: The path of each request, with its parameters.
        replies: The next replies.
        url: The server's URL.
    """

    def __init__(self, respond: Callable[[dict[str, Any]], Reply] = lengths) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.replies: list[Reply | Handle] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                """Record the request and reply."""
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(body)
                outer.headers.append(dict(self.headers))
                outer.paths.append(self.path)
                reply = outer.replies.pop(0) if outer.replies else respond(body)
                if callable(reply):
                    reply(self)
                    return
                status, data, headers = reply
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                """Write no log."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/score"

    @contextmanager
    def running(self) -> Iterator[Server]:
        """Serve in a thread."""
        thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self.http.shutdown()
            thread.join()
            self.http.server_close()
