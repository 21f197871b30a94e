"""Who may do what: origin, host, tokens, log-in, and what is never sent."""

from __future__ import annotations

import logging
import re

import pytest

from rlhf_cli.feedback.web.security import MAX_BODY, SESSION_COOKIE, AttemptLimit
from tests.support.feedback_store import Stores, new_item, new_items
from tests.support.page_client import ADDRESS, PageClient

PAGES = ["/", "/login", "/annotate", "/overview", "/static/page.js", "/missing"]


@pytest.mark.parametrize("path", PAGES)
def test_response_of_page_has_security_headers(page_stores: Stores, path: str) -> None:
    headers = PageClient(page_stores()).get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert policy["frame-ancestors"] == "'none'"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"


def test_page_names_no_other_host_and_has_no_inline_code(page_stores: Stores) -> None:
    store = page_stores()
    store.add_items([new_item()])
    client = PageClient(store, store.add_annotator("Ann"))
    for path in ("/login", "/annotate"):
        html = client.get(path).text
        assert "//" not in html.replace("<!doctype", "")
        assert " style=" not in html
        assert re.findall(r"\son\w+=", html) == []
        assert html.count("<script") == html.count("<script src=") == 1


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1.example.org", "", "[::2]"])
def test_request_with_unknown_host_is_refused(page_stores: Stores, host: str) -> None:
    assert PageClient(page_stores()).get("/login", host=host).status_code == 400


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:1", "[::1]:8000", "LOCALHOST"])
def test_request_with_loopback_host_is_accepted(page_stores: Stores, host: str) -> None:
    assert PageClient(page_stores()).get("/login", host=host).status_code == 200


POSTS = ["/login", "/logout", "/items/1/answer", "/judgments/1/reopen", "/disagreements/1/decision"]


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://example.org"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://["},
        {"origin": "http://127.0.0.1:8001"},
        {"x_csrf_token": ""},
        {"x_csrf_token": "page.invalid"},
    ],
    ids=str,
)
def test_post_from_elsewhere_is_refused(page_stores: Stores, path: str, headers: dict[str, str]) -> None:
    store = page_stores()
    client = PageClient(store, store.add_annotator("Ann"))
    assert client.post(path, {}, **headers).status_code == 403


def test_post_without_cookie_is_refused(page_stores: Stores) -> None:
    client = PageClient(page_stores())
    client.load("/login")
    client.http.cookies.clear()
    assert client.post("/login", {"token": "x"}).status_code == 403


def test_post_with_csrf_token_of_another_session_is_refused(page_stores: Stores) -> None:
    store = page_stores()
    ann, bob = (PageClient(store, store.add_annotator(name)) for name in ("Ann", "Bob"))
    assert ann.post("/logout", x_csrf_token=bob.csrf).status_code == 403
    assert ann.post("/logout").status_code == 200


def test_post_that_is_too_long_is_refused(page_stores: Stores) -> None:
    store = page_stores()
    client = PageClient(store, store.add_annotator("Ann"))
    assert client.post("/logout", {"text": "x" * MAX_BODY}).status_code == 413


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_post_that_is_no_json_object_is_refused(page_stores: Stores, body: bytes) -> None:
    store = page_stores()
    client = PageClient(store, store.add_annotator("Ann"))
    reply = client.http.post("/logout", content=body, headers={"origin": ADDRESS, "x-csrf-token": client.csrf})
    assert reply.status_code == 400


def test_invite_is_redeemed_once(page_stores: Stores) -> None:
    store = page_stores()
    invite = store.add_annotator("Ann")
    assert PageClient(store).log_in(invite.token).status_code == 200
    assert PageClient(store).log_in(invite.token).status_code == 403


@pytest.mark.parametrize("token", ["", "x" * 10_000, None, 3, ["x"]])
def test_log_in_with_invalid_token_is_refused(page_stores: Stores, token: object) -> None:
    client = PageClient(page_stores())
    client.load("/login")
    assert client.post("/login", {"token": token}).status_code == 403


def test_log_in_fails_too_often_must_wait(page_stores: Stores) -> None:
    store = page_stores()
    invite, client = store.add_annotator("Ann"), PageClient(store)
    statuses = [client.log_in(f"guess {number}").status_code for number in range(11)]
    assert statuses == [403] * 10 + [429]
    reply = client.log_in(invite.token)
    assert (reply.status_code, int(reply.headers["retry-after"]) > 0) == (429, True)


def test_attempt_limit_after_its_window_allows_again() -> None:
    now = 0.0
    limit = AttemptLimit(attempts=2, seconds=60, clock=lambda: now)
    for _ in range(2):
        assert limit.wait_seconds("a") == 0
        limit.add_failure("a")
    assert limit.wait_seconds("a") == 60
    assert limit.wait_seconds("b") == 0
    now = 60.0
    assert limit.wait_seconds("a") == 0


def test_attempt_limit_of_many_clients_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AttemptLimit, "MAX_CLIENTS", 2)
    limit = AttemptLimit(attempts=1, clock=lambda: 0.0)
    for client in "abc":
        limit.add_failure(client)
    assert [limit.wait_seconds(client) > 0 for client in "abc"] == [False, True, True]


def test_session_cookie_is_for_this_page_only(page_stores: Stores) -> None:
    store = page_stores()
    client = PageClient(store)
    cookie = client.log_in(store.add_annotator("Ann").token).headers["set-cookie"]
    assert SESSION_COOKIE in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Secure" not in cookie  # loopback without TLS


def test_session_cookie_behind_tls_is_secure(page_stores: Stores) -> None:
    client = PageClient(page_stores())
    client.http.base_url = client.http.base_url.copy_with(scheme="https")
    assert "Secure" in client.get("/login").headers["set-cookie"]


def test_log_out_ends_the_session(page_stores: Stores) -> None:
    store = page_stores()
    client = PageClient(store, store.add_annotator("Ann"))
    session = client.http.cookies[SESSION_COOKIE]
    assert client.post("/logout").status_code == 200
    assert store.annotator_of(session) is None
    client.http.cookies.set(SESSION_COOKIE, session)
    assert client.get("/annotate").headers["location"] == "/login"


def test_page_of_deactivated_annotator_redirects_to_log_in(page_stores: Stores) -> None:
    store = page_stores()
    client = PageClient(store, store.add_annotator("Ann"))
    store.deactivate("Ann")
    assert client.get("/annotate").headers["location"] == "/login"
    assert client.post("/items/1/answer").status_code == 401


@pytest.mark.parametrize(
    ("role", "path", "status"),
    [
        ("annotator", "/overview", 404),
        ("annotator", "/disagreements", 404),
        ("expert", "/overview", 404),
        ("expert", "/disagreements", 200),
        ("owner", "/overview", 200),
        ("owner", "/disagreements", 200),
    ],
)
def test_pages_of_owner_for_role(page_stores: Stores, role: str, path: str, status: int) -> None:
    store = page_stores()
    client = PageClient(store, store.add_annotator("Ann", role=role))  # type: ignore[arg-type]
    assert client.get(path).status_code == status


def test_items_of_another_annotator_are_not_found(page_stores: Stores) -> None:
    store = page_stores()
    store.add_items(new_items(2))
    ann, bob = (PageClient(store, store.add_annotator(name)) for name in ("Ann", "Bob"))
    item = ann.item_id()
    assert bob.get(f"/items/{item}").status_code == 404
    assert bob.answer(item, [1], [2], [3], [4]).status_code == 404
    judgment = ann.answer(item, [1], [2], [3], [4]).json()["judgment"]
    assert bob.post(f"/judgments/{judgment}/reopen").status_code == 404
    assert ann.post(f"/judgments/{judgment}/reopen").status_code == 200


def test_tokens_are_in_no_log_address_or_page(page_stores: Stores, caplog: pytest.LogCaptureFixture) -> None:
    store = page_stores()
    store.add_items([new_item()])
    invite, client = store.add_annotator("Ann"), PageClient(store)
    with caplog.at_level(logging.DEBUG):
        client.log_in(invite.token)
        client.get("/missing")
    session = client.http.cookies[SESSION_COOKIE]
    pages = client.get("/annotate").text + client.get("/login").text
    for token in (invite.token, session):
        assert token not in caplog.text.replace("set-cookie", "")
        assert token not in pages
