"""Log-in by a one-time invite, and log-out."""

from __future__ import annotations

import secrets
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from rlhf_cli.feedback.store import NotFoundError
from rlhf_cli.feedback.types import Annotator
from rlhf_cli.feedback.web.security import SESSION_COOKIE, VISITOR_COOKIE, csrf_token
from rlhf_cli.feedback.web.site import read_json, site_of

MAX_TOKEN = 200  # characters
SESSION_DAYS = 30


def home(request: Request) -> Response:
    """Redirect to the page of whoever is logged in, else to the log-in."""
    annotator = site_of(request).annotator(request)
    if annotator is None:
        return RedirectResponse("/login", 303)
    return RedirectResponse("/overview" if annotator.role == "owner" else "/annotate", 303)


def login_page(request: Request) -> Response:
    """Return the page that redeems an invite."""
    site, visitor = site_of(request), request.cookies.get(VISITOR_COOKIE) or secrets.token_urlsafe(32)
    key = request.cookies.get(SESSION_COOKIE) or visitor  # the middleware checks against the session if there is one
    response = HTMLResponse(site.render("login.html", request, csrf=csrf_token(key)))
    _set_cookie(response, request, VISITOR_COOKIE, visitor)
    return response


async def log_in(request: Request) -> Response:
    """Redeem an invite, and start a session."""
    site, client = site_of(request), request.client.host if request.client else ""
    wait = site.attempts.wait_seconds(client)
    if wait > 0:
        headers = {"retry-after": str(int(wait) + 1)}
        return JSONResponse({"message": "Too many attempts. Try again in a minute."}, 429, headers)
    try:
        values = await read_json(request)
    except ValueError as error:
        return JSONResponse({"message": str(error)}, 400)
    return await run_in_threadpool(_redeem, request, values.get("token"), client)


def _redeem(request: Request, token: Any, client: str) -> Response:
    site = site_of(request)
    try:
        if not isinstance(token, str) or not 0 < len(token) <= MAX_TOKEN:
            raise NotFoundError("invite", "invalid")
        session = site.store.redeem(token)
    except NotFoundError:
        site.attempts.add_failure(client)
        return JSONResponse({"message": "This code is unknown or was used already. Ask for a new invite link."}, 403)
    old = request.cookies.get(SESSION_COOKIE)
    if old:
        site.store.end_session(old)
    response = JSONResponse({"location": "/"})
    _set_cookie(response, request, SESSION_COOKIE, session.token)
    response.delete_cookie(VISITOR_COOKIE)
    return response


def log_out(request: Request, _annotator: Annotator, _values: Any) -> Response:
    """End the session."""
    site_of(request).store.end_session(request.cookies[SESSION_COOKIE])
    response = JSONResponse({"location": "/"})
    response.delete_cookie(SESSION_COOKIE)
    return response


def _set_cookie(response: Response, request: Request, name: str, value: str) -> None:
    response.set_cookie(
        name,
        value,
        max_age=SESSION_DAYS * 24 * 3600,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
