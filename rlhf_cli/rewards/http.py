"""Rewards from a server: batches of answers as JSON over HTTP, tried again where that may help.

    POST {"prompts": […], "completions": […], "<column>": […]}  ->  [0.5, …]  or  {"scores": [0.5, …]}

Text prompts come with text completions, conversations with `[{"role": "assistant", "content": …}]`, the data's further
columns as they are. RLHF_REWARD_TOKEN of the environment, where it is set, is sent as a Bearer token, and shown
nowhere; nor is what a URL holds beyond its path. Redirects are not followed: they would take the token elsewhere.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from rlhf_cli.data.rows import PromptRow
from rlhf_cli.errors import DataError, DivergedError, RecipeError
from rlhf_cli.recipe.schema import RewardSource
from rlhf_cli.rewards.base import Completions, as_completion, short

TOKEN = "RLHF_REWARD_TOKEN"
TIMEOUT, BATCH_SIZE, RETRIES = 60.0, 64, 4  # seconds, answers, further tries: where the recipe says nothing
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds; the pause doubles from try to try
MAX_BYTES = 1 << 24  # of an answer
LARGEST = 3.4028234663852886e38  # float32's, in which rewards are summed
AGAIN = (408, 425, 429)  # besides 5xx: statuses that may be gone at the next try
ANSWER = 'Answer a list of numbers, one for each completion, or {"scores": […]}.'
MENDS = {
    400: "It must take {prompts, completions, …columns} as JSON.",
    401: f"Set {TOKEN} in the environment.",
    403: f"Set {TOKEN} in the environment to a token that it takes.",
    404: "Check the path of the URL.",
    405: "It must take POST.",
    413: "Lower the source's batch_size.",
    422: "It must take {prompts, completions, …columns} as JSON.",
}


class _Failed(Exception):
    """One try that failed. `pause`: seconds that the server asks to wait; None where another try cannot help."""

    def __init__(self, message: str, hint: str, pause: float | None) -> None:
        super().__init__(message)
        self.hint, self.pause = hint, pause


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirects)


class HttpScorer(NamedTuple):
    """A server that judges answers."""

    url: str
    timeout: float  # seconds for one answer
    batch_size: int  # answers in one request
    retries: int  # further tries
    tell: Callable[[str], None]

    @staticmethod
    def of(source: RewardSource, tell: Callable[[str], None]) -> HttpScorer:
        """The endpoint that the recipe describes."""
        assert source.http is not None
        return HttpScorer(
            source.http,
            TIMEOUT if source.timeout is None else source.timeout,
            BATCH_SIZE if source.batch_size is None else source.batch_size,
            RETRIES if source.retries is None else source.retries,
            tell,
        )

    @property
    def shown(self) -> str:
        """The URL as it may be told: no user, no password, no parameters."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def check(self, rows: Sequence[PromptRow]) -> None:
        """Ask once, with an empty answer to the first prompt: a wrong address is told before a model is loaded."""
        self.score(Completions(rows[:1], [[]], [[]], [as_completion(rows[0].prompt, "")]), max_tokens=0)

    def score(self, answered: Completions, *, max_tokens: int) -> list[float]:
        """A number a response.

        Raises:
            DivergedError: it cannot be reached, refuses, or answers something other than one finite number each.
        """
        columns = {**answered.columns, "prompts": answered.prompts, "completions": answered.completions}
        scores: list[float] = []
        for start in range(0, len(answered.completions), self.batch_size):
            part = {name: values[start : start + self.batch_size] for name, values in columns.items()}
            scores += self._ask(_json(part), len(part["completions"]))
        return scores

    def _ask(self, body: bytes, count: int) -> list[float]:
        tried = 0
        while True:
            try:
                return _numbers(self._post(body), count)
            except _Failed as failure:
                told = f"{self.shown} {failure}"
                if failure.pause is None or tried == self.retries:
                    tries = f" ({tried + 1} tries)" if tried else ""
                    raise DivergedError(f"{told}{tries}.", location="ppo.reward http", hint=failure.hint) from None
                pause = min(max(FIRST_PAUSE * 2**tried, failure.pause), LONGEST_PAUSE)
                tried += 1
                self.tell(f"{told}; again in {pause:g} s ({tried} of {self.retries})")
                time.sleep(pause)

    def _post(self, body: bytes) -> bytes:
        request = urllib.request.Request(self.url, body, {**_headers(), "Content-Type": "application/json"})
        deadline = time.monotonic() + self.timeout
        hint = "Check that it runs and is reached from here; ppo.reward's timeout and retries say how long to wait."
        try:
            with _opener.open(request, timeout=self.timeout) as response:
                return _read(response, deadline)
        except HTTPError as error:
            with error:
                said = _excerpt(_start_of(error))
            again = error.code >= 500 or error.code in AGAIN
            pause = _seconds(error.headers.get("Retry-After", "")) if again else None
            if error.code < 400:
                hint = "Write the address that it redirects to."
            raise _Failed(f"answered {error.code}: {said}", MENDS.get(error.code, hint), pause) from None
        except TimeoutError:
            raise _Failed(f"did not answer within {self.timeout:g} s", hint, 0.0) from None
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            reason = error.reason if isinstance(error, URLError) else error
            if isinstance(reason, TimeoutError):
                raise _Failed(f"did not answer within {self.timeout:g} s", hint, 0.0) from None
            told = reason if str(reason) else type(reason).__name__
            raise _Failed(f"cannot be reached: {told}", hint, 0.0) from None


def _headers() -> dict[str, str]:
    token = os.environ.get(TOKEN, "").strip()
    if not token.isascii() or not token.isprintable():
        raise RecipeError(
            f"{TOKEN} holds characters that no header takes.", location="environment", hint="Set it again."
        )
    accepted = {"Accept": "application/json", "User-Agent": "rlhf"}
    return {**accepted, "Authorization": f"Bearer {token}"} if token else accepted


def _json(part: dict[str, Any]) -> bytes:
    try:
        return json.dumps(part, default=str, allow_nan=False).encode()
    except ValueError:
        message = "a column holds NaN or infinity, which JSON cannot hold; an HTTP reward is sent all columns."
        raise DataError(message, location="data.prompts", hint="Take it out of the data.") from None


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """The whole answer. A server that sends a byte now and then keeps within each read's timeout, not the deadline."""
    data = b""
    while chunk := response.read1(1 << 16):
        data += chunk
        if len(data) > MAX_BYTES:
            raise _Failed(f"answered more than {MAX_BYTES:,} bytes", ANSWER, None)
        if time.monotonic() > deadline:
            raise TimeoutError
    if response.length:
        raise ConnectionError("it hung up in the middle of its answer")
    return data


def _start_of(error: HTTPError) -> bytes:
    try:
        return error.read(1000)
    except (OSError, http.client.HTTPException):
        return b""


def _seconds(text: str) -> float:
    """Of a Retry-After header; 0 where it is a date, or absent."""
    return float(text) if text.isdecimal() else 0.0


def _numbers(data: bytes, count: int) -> list[float]:
    """The numbers of an answer; _Failed where it is not `count` finite ones."""
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        raise _Failed(f"answered what is not JSON: {_excerpt(data)}", ANSWER, None) from None
    scores = answer.get("scores") if isinstance(answer, dict) else answer
    if not isinstance(scores, list):
        raise _Failed(f"answered {_excerpt(data)}, expected a list of numbers", ANSWER, None)
    if len(scores) != count:
        raise _Failed(f"answered {len(scores)} numbers for {count} completions", ANSWER, None)
    for index, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, int | float):
            found = _excerpt(json.dumps(score).encode())
            raise _Failed(f"answered {found} for completion {index}, which is not a number", ANSWER, None)
        # null, which many servers write for NaN, is no number either: nothing is to diverge unseen
        if not abs(score) <= LARGEST:
            raise _Failed(f"answered a number for completion {index} that is not finite", ANSWER, None)
    return [float(score) for score in scores]


def _excerpt(data: bytes) -> str:
    """The beginning of what a server said, without the token, which it may repeat."""
    text = data[:1000].decode("utf-8", "replace")
    token = os.environ.get(TOKEN, "").strip()
    return short(text.replace(token, "…") if token else text, 200)
