"""Score completions with a server: batches as JSON over HTTP, retried if that may help.

    POST {"prompts": […], "completions": […], "<column>": […]}  ->  [0.5, …]  or  {"scores": [0.5, …]}

Text prompts are sent with text completions, conversations with `[{"role": "assistant", "content": …}]`, and the
dataset's other columns unchanged. If RLHF_REWARD_TOKEN is set in the environment, it is sent as a Bearer token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from rlhf_cli.data.rows import PromptRow
from rlhf_cli.errors import DataError, DivergedError
from rlhf_cli.http_client import JsonClient, RequestError, Service
from rlhf_cli.recipe.schema import Base, RewardSource
from rlhf_cli.rewards.base import Completions, SourceScores, as_completion

TOKEN_VARIABLE = "RLHF_REWARD_TOKEN"
DEFAULT_TIMEOUT = 60.0  # seconds
DEFAULT_BATCH_SIZE = 64  # completions
DEFAULT_RETRIES = 4
MAX_FLOAT32 = 3.4028234663852886e38  # scores are summed in float32
SERVICE = Service(
    token_variable=TOKEN_VARIABLE,
    connection_code="training.reward-server",
    response_code="training.invalid-reward",
    connection_hint="Check that the server is running and can be reached; see also timeout and retries in ppo.reward.",
    response_hint='Return a list of numbers, one per completion, or {"scores": […]}.',
    status_hints={
        400: "The server must accept {prompts, completions, …columns} as JSON.",
        401: f"Set {TOKEN_VARIABLE} in the environment.",
        403: f"Set {TOKEN_VARIABLE} in the environment to a token that the server accepts.",
        404: "Check the path of the URL.",
        405: "The server must accept POST.",
        413: "Lower the batch_size of the source.",
        422: "The server must accept {prompts, completions, …columns} as JSON.",
    },
)


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
        self.client = JsonClient(url, SERVICE, timeout=timeout, retries=retries)
        self.batch_size = batch_size

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
        try:
            return self.client.post(body, partial(_parse_scores, self.client, count))
        except RequestError as error:
            raise DivergedError(error.code, str(error), location="ppo.reward", hint=error.hint) from None


def _to_json(batch: dict[str, Any]) -> bytes:
    try:
        return json.dumps(batch, default=str, allow_nan=False).encode()
    except ValueError:
        message = "a column contains NaN or infinity, which cannot be sent to an HTTP reward as JSON."
        hint = "Replace these values or drop the column."
        raise DataError("data.non-finite", message, location="data.prompts", hint=hint) from None


def _parse_scores(client: JsonClient, count: int, data: bytes) -> list[float]:
    """Return the numbers in a response. Raise RequestError unless it holds `count` finite numbers."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise client.invalid_response(f"the response is not JSON; found {client.excerpt(data)}") from None
    scores = content.get("scores") if isinstance(content, dict) else content
    if not isinstance(scores, list):
        raise client.invalid_response(f"invalid response; found {client.excerpt(data)}, expected a list of numbers")
    if len(scores) != count:
        raise client.invalid_response(f"wrong number of scores; found {len(scores)}, expected {count}")
    for index, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, int | float):
            # null, which many servers write for NaN, is refused too, so that no divergence is hidden
            found = client.excerpt(json.dumps(score).encode())
            raise client.invalid_response(f"the score of completion {index} is not a number; found {found}")
        if not abs(score) <= MAX_FLOAT32:
            message = f"the score of completion {index} is not a finite float32 number"
            raise client.invalid_response(message, "training.non-finite")
    return [float(score) for score in scores]
