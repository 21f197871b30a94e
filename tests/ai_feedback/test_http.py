"""A judge behind a server in the form of OpenAI's API, on the loopback interface."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from rlhf_cli.ai_feedback.http import TOKEN_VARIABLE, ChatEndpoint
from rlhf_cli.ai_feedback.questions import COMPARE_ANSWERS
from rlhf_cli.errors import DivergedError
from tests.support.issues import raises_issue
from tests.support.judges import chat_reply, chat_server
from tests.support.reward_server import Server, ok


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Start a server whose model replies with A if the question contains `yes`, and else with B."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("time.sleep", lambda _: None)
    with chat_server(lambda question: 1.0 if "yes" in question else -1.0).running() as made:
        yield made


def make_endpoint(server: Server, **options: Any) -> ChatEndpoint:
    """Return the endpoint of a server."""
    url = server.url.removesuffix("/score") + "/v1"
    return ChatEndpoint(url, "org/m", **{"timeout": 30.0, "concurrency": 2, **options})


def test_questions_are_sent_as_chat_completions_and_answered_in_order(chat: Server) -> None:
    asked = [f"[Response A] {'yes' if index % 3 == 0 else 'no'} {index}" for index in range(7)]
    assert make_endpoint(chat).log_odds(asked, COMPARE_ANSWERS) == [1.0, -1.0, -1.0, 1.0, -1.0, -1.0, 1.0]
    assert set(chat.paths) == {"/v1/chat/completions"}
    body = next(body for body in chat.requests if body["messages"][0]["content"] == asked[0])
    assert body == {
        "model": "org/m",
        "messages": [{"role": "user", "content": asked[0]}],
        "temperature": 0,
        "max_tokens": 16,
    }
    assert "Authorization" not in chat.headers[0]


def test_token_of_the_environment_is_sent_and_not_repeated(chat: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "s3cret-token")
    chat.replies = [(401, b"invalid s3cret-token", {})]
    with raises_issue("training.judge-server", error=DivergedError, location="feedback.judge.http") as issues:
        make_endpoint(chat, concurrency=1).log_odds(["q"], COMPARE_ANSWERS)
    assert chat.headers[0]["Authorization"] == "Bearer s3cret-token"
    assert "s3cret" not in str(issues)


def test_busy_server_is_asked_again(chat: Server) -> None:
    chat.replies = [(429, b"", {"Retry-After": "1"}), (503, b"", {})]
    assert make_endpoint(chat, concurrency=1).log_odds(["[Response A] yes"], COMPARE_ANSWERS) == [1.0]
    assert len(chat.requests) == 3


@pytest.mark.parametrize("reply", ["A or B", "a", "A.", "Answer: A", "", None, "C"])
def test_reply_that_is_no_answer_counts_as_a_tie(
    chat: Server, caplog: pytest.LogCaptureFixture, reply: str | None
) -> None:
    caplog.set_level(logging.WARNING)
    chat.replies = [chat_reply(reply)]
    assert make_endpoint(chat, concurrency=1).log_odds(["q", "[Response A] yes"], COMPARE_ANSWERS) == [0.0, 1.0]
    assert "1 of 2 replies counted as ties" in caplog.text


def test_white_space_around_a_reply_is_ignored(chat: Server) -> None:
    chat.replies = [chat_reply(" B\n")]
    assert make_endpoint(chat, concurrency=1).log_odds(["q"], COMPARE_ANSWERS) == [-1.0]


def test_replies_that_are_all_invalid_are_refused(chat: Server) -> None:
    chat.replies = [chat_reply("I cannot say."), chat_reply("As a model, …")]
    with raises_issue("training.judge-reply", error=DivergedError):
        make_endpoint(chat).log_odds(["q", "r"], COMPARE_ANSWERS)


@pytest.mark.parametrize("content", [{}, {"choices": []}, [1], {"choices": [{"message": {"content": 3}}]}])
def test_response_that_is_no_chat_completion_is_refused(chat: Server, content: object) -> None:
    chat.replies = [ok(content)]
    with raises_issue("training.judge-reply", error=DivergedError):
        make_endpoint(chat, concurrency=1).log_odds(["q"], COMPARE_ANSWERS)
