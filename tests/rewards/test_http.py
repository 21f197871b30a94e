"""Rewards over HTTP, from a real server on the loopback: batches, tries, and what is told when it gives no numbers."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from rlhf_cli.data.rows import PromptRow
from rlhf_cli.errors import DataError, DivergedError, RecipeError
from rlhf_cli.recipe.schema import RewardSource
from rlhf_cli.rewards import build, http
from rlhf_cli.rewards.http import HttpScorer
from tests.support.reward_server import Server, ok

TOKEN = "s3cret-token"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which are not waited for."""
    waited: list[float] = []
    monkeypatch.setattr(http.time, "sleep", waited.append)
    return waited


def answered(*completions: str, **columns: list[Any]) -> build.Completions:
    rows = [PromptRow(f"p{i}", {name: values[i] for name, values in columns.items()}) for i in range(len(completions))]
    return build.Completions(rows, [[4]] * len(rows), [[5, 2]] * len(rows), list(completions))


def ask(server: Server, *completions: str, told: list[str] | None = None, url: str = "", **fields: Any) -> list[float]:
    source = RewardSource(http=url or server.url, **fields)
    tell = [].append if told is None else told.append
    return HttpScorer.of(source, tell).score(answered(*completions or ("one", "three")), max_tokens=0)


def test_batches_are_sent_with_prompts_completions_and_columns(server: Server) -> None:
    source = RewardSource(http=server.url, batch_size=2)
    given = answered("a", "bb", "ccc", level=[1, 2, None], prompts=["not", "these", "!"])
    assert HttpScorer.of(source, print).score(given, max_tokens=0) == [1.0, 2.0, 3.0]
    assert server.asked == [
        {"level": [1, 2], "prompts": ["p0", "p1"], "completions": ["a", "bb"]},
        {"level": [None], "prompts": ["p2"], "completions": ["ccc"]},
    ]
    assert {server.headers[0][name] for name in ("Content-Type", "Accept")} == {"application/json"}
    assert "Authorization" not in server.headers[0]


def test_a_conversation_is_sent_as_messages(server: Server) -> None:
    prompt, said = [{"role": "user", "content": "hí?"}], [{"role": "assistant", "content": "yes"}]
    given = build.Completions([PromptRow(prompt, {})], [[4]], [[5]], [said])
    HttpScorer.of(RewardSource(http=server.url), print).score(given, max_tokens=0)
    assert server.asked == [{"prompts": [prompt], "completions": [said]}]


def test_scores_may_stand_under_their_name(server: Server) -> None:
    server.replies = [ok({"scores": [0.5, -2], "model": "x"})]
    assert ask(server) == [0.5, -2.0]


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
def test_what_may_be_gone_is_asked_again(server: Server, pauses: list[float], status: int) -> None:
    server.replies = [(status, b"busy", {})] * 3
    told: list[str] = []
    assert ask(server, told=told) == [3.0, 5.0]
    assert pauses == [1.0, 2.0, 4.0]
    assert told[0] == f"{server.url} answered {status}: 'busy'; again in 1 s (1 of 4)"
    assert len(server.asked) == 4


def test_the_server_says_how_long_to_wait(server: Server, pauses: list[float]) -> None:
    for value in ("7", "Wed, 21 Oct 2026 07:28:00 GMT", "99999"):
        server.replies += [(429, b"", {"Retry-After": value})]
    assert ask(server) == [3.0, 5.0]
    assert pauses == [7.0, 2.0, 60.0]


def test_a_server_that_stays_broken_ends_the_run(server: Server, pauses: list[float]) -> None:
    server.replies = [(500, b"no\x1b[2J memory", {})] * 3
    with pytest.raises(DivergedError) as raised:
        ask(server, retries=2)
    (issue,) = raised.value.issues
    assert issue.message == f"{server.url} answered 500: 'no\\x1b[2J memory' (3 tries)."
    assert (raised.value.exit_code, issue.location) == (7, "ppo.reward http")
    assert pauses == [1.0, 2.0]


@pytest.mark.usefixtures("pauses")
def test_one_that_does_not_answer_in_time_is_asked_again(server: Server) -> None:
    done = threading.Event()
    server.replies = [lambda handler: done.wait(30)]
    try:
        assert ask(server, timeout=0.2) == [3.0, 5.0]
        server.replies = [lambda handler: done.wait(30)]
        with pytest.raises(DivergedError, match=r"did not answer within 0.2 s\. Check that it runs"):
            ask(server, timeout=0.2, retries=0)
    finally:
        done.set()


def test_one_that_sends_a_byte_now_and_then_is_not_waited_for(server: Server) -> None:
    done = threading.Event()

    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        while not done.wait(0.05):
            handler.wfile.write(b" ")

    server.replies = [drip]
    try:
        with pytest.raises(DivergedError, match=r"did not answer within 0.3 s"):
            ask(server, timeout=0.3, retries=0)
    finally:
        done.set()


def test_one_that_hangs_up_is_asked_again(server: Server, pauses: list[float]) -> None:
    def half(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "9")
        handler.end_headers()
        handler.wfile.write(b"[1, 2]")  # which would be JSON

    server.replies = [half, lambda handler: handler.connection.close()]
    assert ask(server) == [3.0, 5.0]
    assert pauses == [1.0, 2.0]


def test_one_that_is_not_there_is_told_with_its_address(server: Server, pauses: list[float]) -> None:
    with pytest.raises(DivergedError, match=r"http://127.0.0.1:9/x cannot be reached: .*refused \(2 tries\)"):
        ask(server, url="http://127.0.0.1:9/x", retries=1)  # the discard port, where nothing listens
    assert pauses == [1.0]


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (400, "It must take"),
        (401, "Set RLHF_REWARD_TOKEN"),
        (404, "Check the path"),
        (405, "It must take POST"),
        (413, "Lower"),
        (301, "Write the address"),
    ],
)
def test_what_another_try_cannot_mend_is_told_at_once(
    server: Server, pauses: list[float], status: int, hint: str
) -> None:
    server.replies = [(status, b"detail", {"Location": "http://127.0.0.1/elsewhere"})]
    with pytest.raises(DivergedError) as raised:
        ask(server)
    assert raised.value.issues[0].message == f"{server.url} answered {status}: 'detail'."
    assert raised.value.issues[0].hint.startswith(hint)
    assert (len(server.asked), pauses) == (1, [])


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (b"<html>hello</html>", "answered what is not JSON: '<html>hello</html>'"),
        (b"\xff\xfe", "answered what is not JSON"),
        (b"[" * 100_000, "answered what is not JSON"),
        (b"", "answered what is not JSON: ''"),
        (b"3.5", "answered '3.5', expected a list of numbers"),
        (b'{"score": [1, 2]}', "expected a list of numbers"),
        (b"[1.0]", "answered 1 numbers for 2 completions"),
        (b"[1.0, 2.0, 3.0]", "answered 3 numbers for 2 completions"),
        (b'[1.0, "2.0"]', "answered '\"2.0\"' for completion 1, which is not a number"),
        (b"[1.0, null]", "answered 'null' for completion 1, which is not a number"),
        (b"[true, 1.0]", "answered 'true' for completion 0, which is not a number"),
        (b"[1.0, NaN]", "a number for completion 1 that is not finite"),
        (b"[Infinity, 1]", "a number for completion 0 that is not finite"),
        (b"[1e39, 1]", "a number for completion 0 that is not finite"),  # in float32
        (b"[1" + b"0" * 400 + b", 1]", "a number for completion 0 that is not finite"),
    ],
)
def test_rubbish_is_told_and_not_asked_for_again(server: Server, reply: bytes, told: str) -> None:
    server.replies = [(200, reply, {})]
    with pytest.raises(DivergedError) as raised:
        ask(server)
    assert told in str(raised.value)
    assert "Answer a list of numbers, one for each completion" in str(raised.value)
    assert raised.value.exit_code == 7
    assert len(server.asked) == 1


def test_an_endless_answer_is_not_read_to_its_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_BYTES", 100_000)
    server.replies = [(200, b" " * 1_000_000, {})]
    with pytest.raises(DivergedError, match="answered more than 100,000 bytes"):
        ask(server)


def test_the_token_is_sent_and_never_shown(
    server: Server, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(http.TOKEN, f" {TOKEN}\n")
    told: list[str] = []
    server.replies = [(500, f"bad header Bearer {TOKEN}".encode(), {}), (403, f"who is {TOKEN}?".encode(), {})]
    with pytest.raises(DivergedError) as raised:
        ask(server, told=told, url=f"{server.url}?model=a%20b")
    assert server.headers[0]["Authorization"] == f"Bearer {TOKEN}"
    assert server.paths[0] == "/score?model=a%20b"
    assert "who is …?" in str(raised.value)
    assert not [text for text in (*told, str(raised.value)) if TOKEN in text or "model=" in text]
    assert len(pauses) == 1


def test_a_redirect_does_not_get_the_token(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(http.TOKEN, TOKEN)
    server.replies = [(307, b"", {"Location": f"{server.url}/other"})]
    with pytest.raises(DivergedError, match="answered 307"):
        ask(server)
    assert len(server.asked) == 1


def test_a_token_that_no_header_takes_is_told_but_not_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(http.TOKEN, f"{TOKEN}\nX: y")
    with pytest.raises(RecipeError, match="RLHF_REWARD_TOKEN holds characters") as raised:
        ask(server)
    assert TOKEN not in str(raised.value)


def test_an_address_that_holds_a_password_after_all_is_told_without_it() -> None:
    made = HttpScorer.of(RewardSource(http="https://ann:pw@host:8000/a?b=c#d"), print)
    assert made.shown == "https://host:8000/a"


def test_columns_that_json_cannot_hold_are_told_and_odd_ones_become_text(server: Server) -> None:
    import datetime

    made = HttpScorer.of(RewardSource(http=server.url), print)
    made.score(answered("a", day=[datetime.date(2026, 1, 2)], odd=["\ud800"]), max_tokens=0)
    assert (server.asked[0]["day"], server.asked[0]["odd"]) == (["2026-01-02"], ["\ud800"])
    with pytest.raises(DataError, match="a column holds NaN"):
        made.score(answered("a", level=[float("nan")]), max_tokens=0)


def test_it_is_asked_once_before_anything_is_loaded(server: Server) -> None:
    made = HttpScorer.of(RewardSource(http=server.url), print)
    made.check([PromptRow("p", {"key": 3}), PromptRow("q", {"key": 4})])
    assert server.asked == [{"key": [3], "prompts": ["p"], "completions": [""]}]
    server.replies = [(404, b"", {})]
    with pytest.raises(DivergedError, match="answered 404"):
        made.check([PromptRow([{"role": "user", "content": "?"}], {})])
    assert server.asked[1]["completions"] == [[{"role": "assistant", "content": ""}]]
