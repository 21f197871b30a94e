"""Ask an OpenAI-compatible endpoint: one chat completion per question, several at a time.

    POST <url>/chat/completions {"model": …, "messages": [{"role": "user", "content": …}], "temperature": 0, …}

If RLHF_JUDGE_TOKEN is set in the environment, it is sent as a Bearer token. A reply counts only if it is one of the two
answers and nothing else.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from rlhf_cli.ai_feedback.questions import Answers
from rlhf_cli.errors import DivergedError
from rlhf_cli.http_client import JsonClient, RequestError, Service

TOKEN_VARIABLE = "RLHF_JUDGE_TOKEN"
RETRIES = 4
MAX_TOKENS = 16  # of a reply, which is one word
LOCATION = "feedback.judge.http"
SERVICE = Service(
    token_variable=TOKEN_VARIABLE,
    connection_code="training.judge-server",
    response_code="training.judge-reply",
    connection_hint="Check that the server is running and can be reached; see also feedback.judge.timeout.",
    response_hint="Use an endpoint that returns chat completions in the form of OpenAI's API.",
    status_hints={
        400: "Check feedback.judge.http_model.",
        401: f"Set {TOKEN_VARIABLE} in the environment.",
        403: f"Set {TOKEN_VARIABLE} in the environment to a token that the server accepts.",
        404: "Check the path of the URL, which usually ends with /v1, and feedback.judge.http_model.",
    },
)

logger = logging.getLogger(__name__)


class ChatEndpoint:
    """A model behind an endpoint.

    Args:
        url: URL without `/chat/completions`, such as http://localhost:8000/v1.
        model: Name of the model at the endpoint.
        timeout: Seconds for one request with its complete response.
        concurrency: Requests at a time.
    """

    has_weights = False

    def __init__(self, url: str, model: str, *, timeout: float, concurrency: int) -> None:
        self.client = JsonClient(f"{url.rstrip('/')}/chat/completions", SERVICE, timeout=timeout, retries=RETRIES)
        self.model, self.concurrency = model, concurrency

    def load(self, *, smoke: bool) -> None:
        """Do nothing: the server has the weights."""

    def log_odds(self, asked: Sequence[str], answers: Answers) -> list[float | None]:
        """Return 1 for the first answer, -1 for the second, and 0 for a reply that is neither of them.

        Raises:
            DivergedError: The server cannot be reached or refuses, or none of the replies is one of the answers.
        """
        with ThreadPoolExecutor(self.concurrency) as pool:
            replies = list(pool.map(self._ask, asked))
        values = {answers.first: 1.0, answers.second: -1.0}
        invalid = [reply for reply in replies if reply not in values]
        if invalid:
            found = self.client.excerpt(invalid[0].encode())
            expected = f"{answers.first} or {answers.second}"
            if len(invalid) == len(replies):
                message = f"{self.client.display_url}: unexpected replies; found {found}, expected {expected}."
                hint = "Use a model that follows instructions."
                raise DivergedError("training.judge-reply", message, location=LOCATION, hint=hint)
            share = f"{len(invalid)} of {len(replies)} replies"
            logger.warning(f"judge: {share} counted as ties; found {found}, expected {expected}")
        return [values.get(reply, 0.0) for reply in replies]

    def _ask(self, question: str) -> str:
        """Return the reply to one question."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        try:
            return self.client.post(json.dumps(body).encode(), partial(_parse_reply, self.client))
        except RequestError as error:
            raise DivergedError(error.code, str(error), location=LOCATION, hint=error.hint) from None


def _parse_reply(client: JsonClient, data: bytes) -> str:
    """Return the text of a chat completion, without white space around it.

    Raises:
        RequestError: The response is not a chat completion.
    """
    try:
        text = json.loads(data)["choices"][0]["message"]["content"]
    except (ValueError, RecursionError, LookupError, TypeError):
        raise client.invalid_response(f"not a chat completion; found {client.excerpt(data)}") from None
    if text is None:  # the model refused, or called a tool
        return ""
    if not isinstance(text, str):
        raise client.invalid_response(f"not a chat completion; found {client.excerpt(data)}")
    return text.strip()
