"""HTTP rewards, with a real server on the loopback interface: batches, retries, limits, and errors without secrets."""

from __future__ import annotations

import datetime
import logging
import threading
import time
from typing import Any

import pytest

from rlhf_cli import http_client
from rlhf_cli.data.rows import Message, PromptRow, Text
from rlhf_cli.errors import DataError, DivergedError, RecipeError
from rlhf_cli.recipe.schema import RewardSource
from rlhf_cli.rewards import http
from rlhf_cli.rewards.base import Completions
from rlhf_cli.rewards.http import HttpScorer
from tests.support.issues import raises_issue
from tests.support.reward_server import Server, ok

TOKEN = "s3cret-token"


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the list of delays between attempts, which are not waited for."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


def make_completions(*texts: str, **columns: list[Any]) -> Completions:
    """Return completions of text prompts with further columns."""
    rows = [PromptRow(f"p{i}", {name: values[i] for name, values in columns.items()}) for i in range(len(texts))]
    return Completions(rows, [[4]] * len(rows), [[5, 2]] * len(rows), list(texts))


def make_scorer(server: Server, url: str = "", **fields: Any) -> HttpScorer:
    """Return the scorer of a source with these fields."""
    return HttpScorer.from_source(RewardSource(http=url or server.url, **fields))


def request_scores(server: Server, url: str = "", **fields: Any) -> list[float | None]:
    """Score two completions."""
    return list(make_scorer(server, url, **fields).score(make_completions("one", "three"), max_tokens=0).values)


def test_source_fields_override_defaults() -> None:
    source = RewardSource(http="https://host/x", timeout=3.0, batch_size=2, retries=0)
    scorer = HttpScorer.from_source(source)
    client = scorer.client
    assert (client.url, client.timeout, scorer.batch_size, client.retries) == ("https://host/x", 3.0, 2, 0)
    scorer = HttpScorer.from_source(RewardSource(http="https://host/x"))
    client = scorer.client
    assert (client.timeout, scorer.batch_size, client.retries, scorer.name) == (60.0, 64, 4, "http")


def test_batches_are_sent_with_prompts_completions_and_columns(server: Server) -> None:
    completions = make_completions("a", "bb", "ccc", level=[1, 2, None], prompts=["not", "these", "!"])
    assert make_scorer(server, batch_size=2).score(completions, max_tokens=0) == ([1.0, 2.0, 3.0], {})
    assert server.requests == [
        {"level": [1, 2], "prompts": ["p0", "p1"], "completions": ["a", "bb"]},
        {"level": [None], "prompts": ["p2"], "completions": ["ccc"]},
    ]
    assert {server.headers[0][name] for name in ("Content-Type", "Accept")} == {"application/json"}
    assert "Authorization" not in server.headers[0]


def test_conversation_is_sent_as_messages(server: Server) -> None:
    prompt: Text = [Message(role="user", content="hí?")]
    completion: Text = [Message(role="assistant", content="yes")]
    make_scorer(server).score(Completions([PromptRow(prompt, {})], [[4]], [[5]], [completion]), max_tokens=0)
    assert server.requests == [{"prompts": [prompt], "completions": [completion]}]


def test_scores_may_be_in_an_object(server: Server) -> None:
    server.replies = [ok({"scores": [0.5, -2], "model": "x"})]
    assert request_scores(server) == [0.5, -2.0]


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
def test_temporary_status_is_retried(
    server: Server, delays: list[float], caplog: pytest.LogCaptureFixture, status: int
) -> None:
    caplog.set_level(logging.INFO, logger="rlhf_cli")
    server.replies = [(status, b"busy", {})] * 3
    assert request_scores(server) == [3.0, 5.0]
    assert delays == [1.0, 2.0, 4.0]
    assert caplog.messages[0] == f"{server.url}: status {status}; found 'busy'; retry 1 of 4 in 1 s"
    assert len(server.requests) == 4


def test_retry_after_extends_the_delay_up_to_a_limit(server: Server, delays: list[float]) -> None:
    for value in ("7", "Wed, 21 Oct 2026 07:28:00 GMT", "99999"):
        server.replies += [(429, b"", {"Retry-After": value})]
    assert request_scores(server) == [3.0, 5.0]
    assert delays == [7.0, 2.0, 60.0]


def test_server_that_keeps_failing_raises_after_retries(server: Server, delays: list[float]) -> None:
    server.replies = [(500, b"no\x1b[2J memory", {})] * 3
    with raises_issue("training.reward-server", error=DivergedError, location="ppo.reward") as issues:
        request_scores(server, retries=2)
    assert issues[0].message == f"{server.url}: status 500; found 'no\\x1b[2J memory' (3 attempts)."
    assert DivergedError.exit_code == 7
    assert delays == [1.0, 2.0]


@pytest.mark.usefixtures("delays")
def test_request_without_response_times_out_and_is_retried(server: Server) -> None:
    done = threading.Event()
    server.replies = [lambda _handler: done.wait(30)]
    try:
        assert request_scores(server, timeout=0.2) == [3.0, 5.0]
        server.replies = [lambda _handler: done.wait(30)]
        with raises_issue("training.reward-server") as issues:
            request_scores(server, timeout=0.2, retries=0)
        assert issues[0].message == f"{server.url}: no complete response within 0.2 s."
        assert issues[0].hint.startswith("Check that the server is running")
    finally:
        done.set()


@pytest.mark.parametrize("part", ["headers", "body"])
def test_timeout_limits_the_complete_response(server: Server, part: str) -> None:
    """A server that sends a byte now and then never exceeds a limit on single reads."""
    done = threading.Event()

    def drip(handler: Any) -> None:
        if part == "body":
            handler.send_response(200)
            handler.send_header("Content-Length", "1000000")
            handler.end_headers()
        else:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
        while not done.wait(0.05):
            handler.wfile.write(b" ")

    server.replies = [drip]
    try:
        with raises_issue("training.reward-server") as issues:
            request_scores(server, timeout=0.3, retries=0)
        assert "within 0.3 s" in issues[0].message
    finally:
        done.set()


def test_connection_closed_early_is_retried(server: Server, delays: list[float]) -> None:
    def send_half(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "9")
        handler.end_headers()
        handler.wfile.write(b"[1, 2]")  # which is valid JSON

    server.replies = [send_half, lambda handler: handler.connection.close()]
    assert request_scores(server) == [3.0, 5.0]
    assert delays == [1.0, 2.0]


@pytest.mark.usefixtures("server")
def test_refused_connection_raises_with_address(server: Server, delays: list[float]) -> None:
    with raises_issue("training.reward-server") as issues:
        request_scores(server, url="http://127.0.0.1:9/x", retries=1)  # the discard port, where nothing listens
    assert issues[0].message == "http://127.0.0.1:9/x: cannot be reached: Connection refused (2 attempts)."
    assert delays == [1.0]


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (400, "The server must accept {"),
        (401, "Set RLHF_REWARD_TOKEN"),
        (404, "Check the path"),
        (405, "The server must accept POST"),
        (413, "Lower"),
        (301, "Use the URL"),
    ],
)
def test_permanent_status_raises_without_retry(server: Server, delays: list[float], status: int, hint: str) -> None:
    server.replies = [(status, b"detail", {"Location": "http://127.0.0.1/elsewhere"})]
    with raises_issue("training.reward-server") as issues:
        request_scores(server)
    assert issues[0].message == f"{server.url}: status {status}; found 'detail'."
    assert issues[0].hint.startswith(hint)
    assert (len(server.requests), delays) == (1, [])


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"<html>hello</html>", "the response is not JSON; found '<html>hello</html>'"),
        (b"\xff\xfe", "the response is not JSON"),
        (b"[" * 100_000, "the response is not JSON"),
        (b"", "the response is not JSON; found ''"),
        (b"3.5", "invalid response; found '3.5', expected a list of numbers"),
        (b'{"score": [1, 2]}', "expected a list of numbers"),
        (b"[1.0]", "wrong number of scores; found 1, expected 2"),
        (b"[1.0, 2.0, 3.0]", "wrong number of scores; found 3, expected 2"),
        (b'[1.0, "2.0"]', "the score of completion 1 is not a number; found '\"2.0\"'"),
        (b"[1.0, null]", "the score of completion 1 is not a number; found 'null'"),
        (b"[true, 1.0]", "the score of completion 0 is not a number; found 'true'"),
    ],
)
def test_invalid_response_raises_without_retry(server: Server, reply: bytes, message: str) -> None:
    server.replies = [(200, reply, {})]
    with raises_issue("training.invalid-reward", error=DivergedError, location="ppo.reward") as issues:
        request_scores(server)
    assert message in issues[0].message
    assert issues[0].hint == 'Return a list of numbers, one per completion, or {"scores": […]}.'
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("reply", "index"),
    [
        (b"[1.0, NaN]", 1),
        (b"[Infinity, 1]", 0),
        (b"[1e39, 1]", 0),  # infinite in float32
        (b"[1" + b"0" * 400 + b", 1]", 0),
    ],
)
def test_non_finite_score_raises_without_retry(server: Server, reply: bytes, index: int) -> None:
    server.replies = [(200, reply, {})]
    with raises_issue("training.non-finite", error=DivergedError, location="ppo.reward") as issues:
        request_scores(server)
    assert f"the score of completion {index} is not a finite float32 number" in issues[0].message
    assert len(server.requests) == 1


def test_response_beyond_the_byte_limit_is_not_read(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "MAX_RESPONSE_BYTES", 100_000)
    server.replies = [(200, b" " * 1_000_000, {})]
    with raises_issue("training.invalid-reward") as issues:
        request_scores(server)
    assert "expected at most 100 kB" in issues[0].message


def test_token_is_sent_and_never_shown(
    server: Server, delays: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)  # of httpx2 too, which would log the URL
    monkeypatch.setenv(http.TOKEN_VARIABLE, f" {TOKEN}\n")
    server.replies = [(500, f"bad header Bearer {TOKEN}".encode(), {}), (403, f"who is {TOKEN}?".encode(), {})]
    with raises_issue("training.reward-server") as issues:
        request_scores(server, url=f"{server.url}?model=a%20b")
    assert server.headers[0]["Authorization"] == f"Bearer {TOKEN}"
    assert server.paths[0] == "/score?model=a%20b"
    assert "who is …?" in issues[0].message
    assert len(caplog.messages) == 1
    assert not [text for text in (*caplog.messages, str(issues[0])) if TOKEN in text or "model=" in text]
    assert len(delays) == 1


def test_redirect_is_not_followed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would send the token to another server."""
    monkeypatch.setenv(http.TOKEN_VARIABLE, TOKEN)
    server.replies = [(307, b"", {"Location": f"{server.url}/other"})]
    with raises_issue("training.reward-server"):
        request_scores(server)
    assert len(server.requests) == 1


def test_token_that_no_header_can_hold_raises_without_showing_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(http.TOKEN_VARIABLE, f"{TOKEN}\nX: y")
    with raises_issue("recipe.invalid-token", error=RecipeError, location="environment") as issues:
        request_scores(server)
    assert issues[0].message == "RLHF_REWARD_TOKEN: contains characters that are not allowed in an HTTP header."
    assert TOKEN not in str(issues[0])
    assert server.requests == []


def test_display_url_has_no_credentials_and_parameters() -> None:
    assert HttpScorer("https://ann:pw@host:8000/a?b=c#d").client.display_url == "https://host:8000/a"


def test_columns_are_sent_as_json_or_text_but_nan_raises(server: Server) -> None:
    scorer = make_scorer(server)
    scorer.score(make_completions("a", day=[datetime.date(2026, 1, 2)], odd=["\ud800"]), max_tokens=0)
    assert (server.requests[0]["day"], server.requests[0]["odd"]) == (["2026-01-02"], ["\ud800"])
    with raises_issue("data.non-finite", error=DataError, location="data.prompts"):
        scorer.score(make_completions("a", level=[float("nan")]), max_tokens=0)


def test_check_sends_one_request_with_an_empty_completion(server: Server) -> None:
    scorer = make_scorer(server)
    scorer.check([PromptRow("p", {"key": 3}), PromptRow("q", {"key": 4})])
    assert server.requests == [{"key": [3], "prompts": ["p"], "completions": [""]}]
    server.replies = [(404, b"", {})]
    with raises_issue("training.reward-server"):
        scorer.check([PromptRow([Message(role="user", content="?")], {})])
    assert server.requests[1]["completions"] == [[{"role": "assistant", "content": ""}]]
