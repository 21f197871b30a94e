"""`rlhf annotate serve` as a process that can be killed, and annotators who work with it over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
RECIPE = """
name: project
base: {{model: org/model}}
feedback: {{overlap: {overlap}, max_overlap: {overlap}, repeats: 0.0}}
"""
TIMEOUT = 60.0  # seconds for one request


class AnnotationServer:
    """A server of the project `project` in a store. A restarted server has the address of the first one.

    Args:
        folder: Folder for the recipe.
        url: The store.
        overlap: Judgments per item.
        prefix: Words before the command, such as `taskset -c 0`.
    """

    def __init__(self, folder: Path, url: str, *, overlap: int = 2, prefix: Sequence[str] = ()) -> None:
        self._folder = folder
        self._url = url
        self._prefix = prefix
        self._process: subprocess.Popen[str] | None = None
        self.port = 0
        (folder / "recipe.yaml").write_text(RECIPE.format(overlap=overlap))

    def start(self) -> None:
        """Start the server, and return when it listens."""
        command = [
            *self._prefix,
            sys.executable,
            "-m",
            "rlhf_cli",
            "annotate",
            "serve",
            "--json",
            "--port",
            str(self.port),
        ]
        environment = {**os.environ, "RLHF_FEEDBACK_STORE": self._url, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            command, cwd=self._folder, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the server ended before it listened"
        self.port = urlsplit(json.loads(line)["address"]).port or 0

    @property
    def pid(self) -> int:
        """Return the id of the running process."""
        assert self._process is not None
        return self._process.pid

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send the server a signal and wait until it has ended. No-op if it does not run."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.communicate()
            self._process = None


class Task(NamedTuple):
    """An item on the page: the id of its assignment, and the number of its completions."""

    id: int
    completions: int


class HttpAnnotator:
    """An annotator who sends what the page's script sends, over one connection that is opened again after an error."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: http.client.HTTPConnection | None = None
        self._cookies: dict[str, str] = {}
        self._csrf = ""

    def log_in(self, token: str) -> None:
        """Redeem an invite."""
        self._open_page("/login")
        self._request("POST", "/login", {"token": token})
        self._open_page("/annotate")

    def next_task(self, after: int | None = None) -> Task | None:
        """Return the next item, other than `after`; None if nothing is left."""
        page = self._request("GET", f"/items/next?after={after}" if after else "/items/next")
        found = re.search(r'class="item" data-id="(\d+)".*data-count="(\d+)"', page)
        return None if found is None else Task(int(found[1]), int(found[2]))

    def answer(self, task: Task, key: str, tiers: Sequence[Sequence[int]]) -> int:
        """Submit tiers of shown positions, and return the id of the judgment."""
        reply = self._request("POST", f"/items/{task.id}/answer", {"key": key, "tiers": tiers, "seconds": 1.0})
        judgment: int = json.loads(reply)["judgment"]
        return judgment

    def _open_page(self, path: str) -> None:
        found = re.search(r'data-csrf="([^"]*)"', self._request("GET", path))
        assert found is not None
        self._csrf = found[1]

    def _request(self, method: str, path: str, values: object = None) -> str:
        """Return the text of a reply.

        Raises:
            ConnectionError: The server cannot be reached, or ended before it replied.
        """
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in self._cookies.items())}
        body = None
        if values is not None:
            body = json.dumps(values)
            headers |= {"Origin": f"http://127.0.0.1:{self._port}", "X-CSRF-Token": self._csrf}
        is_reused = self._connection is not None
        try:
            reply, text = self._exchange(method, path, body, headers)
        except ConnectionError:
            if not is_reused:
                raise
            reply, text = self._exchange(method, path, body, headers)  # the server had closed the idle connection
        for cookie in reply.headers.get_all("set-cookie", []):
            name, _, value = cookie.partition(";")[0].partition("=")
            self._cookies[name] = value
        assert reply.status == 200, f"{method} {path}: {reply.status} {text[:500]}"
        return text

    def _exchange(
        self, method: str, path: str, body: str | None, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, str]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT)
        try:
            self._connection.request(method, path, body, headers)
            reply = self._connection.getresponse()
            return reply, reply.read().decode()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            self._connection = None
            raise ConnectionError(str(error)) from error
