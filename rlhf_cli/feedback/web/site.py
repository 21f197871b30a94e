"""What all handlers of the page share: the store, templates, static files, and who is logged in."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field as with_default
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from rlhf_cli.feedback.store import Store
from rlhf_cli.feedback.types import Annotator, Role
from rlhf_cli.feedback.web.figures import Overview, format_pace
from rlhf_cli.feedback.web.markdown import direction
from rlhf_cli.feedback.web.security import MAX_BODY, SAFE_METHODS, SESSION_COOKIE, AttemptLimit, csrf_token

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"
OWNERS: tuple[Role, ...] = ("owner",)
EXPERTS: tuple[Role, ...] = ("expert", "owner")
ANYONE: tuple[Role, ...] = ("annotator", "expert", "owner")

Handler = Callable[[Request, Annotator, Any], Response]


@dataclass(frozen=True)
class Site:
    """The page of one project.

    Attributes:
        store: The store of the project.
        project: Name of the project.
        attempts: Limits log-ins.
        overview: The metrics of the owner's overview.
    """

    store: Store
    project: str
    attempts: AttemptLimit = with_default(default_factory=AttemptLimit)
    overview: Overview = with_default(default_factory=Overview)

    def annotator(self, request: Request) -> Annotator | None:
        """Return who is logged in, or None if nobody is."""
        token = request.cookies.get(SESSION_COOKIE, "")
        return self.store.annotator_of(token) if token else None

    def render(self, name: str, request: Request, annotator: Annotator | None = None, **values: Any) -> str:
        """Return a template as HTML."""
        token = request.cookies.get(SESSION_COOKIE, "")
        shared = {
            "project": self.project,
            "csrf": csrf_token(token) if token else "",
            "role": annotator.role if annotator else "",
            "pseudonym": annotator.pseudonym if annotator else "",
            "static": static_url,
        }
        return _templates().get_template(name).render({**shared, **values})

    def message(self, request: Request, heading: str, text: str, status: int) -> Response:
        """Return a page with a message."""
        return HTMLResponse(self.render("message.html", request, heading=heading, text=text), status)


def site_of(request: Request) -> Site:
    """Return the site of a request."""
    site: Site = request.app.state.site
    return site


def logged_in(handler: Handler, roles: tuple[Role, ...] = ANYONE) -> Callable[[Request], Any]:
    """Return the endpoint of `handler`, which gets the annotator and the JSON of the request.

    Without a session, a page redirects to the log-in, and everything else is answered with 401. For other roles, the
    address does not exist.
    """

    @functools.wraps(handler)
    async def endpoint(request: Request) -> Response:
        try:
            values = None if request.method in SAFE_METHODS else await read_json(request)
        except ValueError as error:
            return JSONResponse({"message": str(error)}, 400)
        return await run_in_threadpool(handle, request, values)

    def handle(request: Request, values: Any) -> Response:
        annotator = site_of(request).annotator(request)
        if annotator is None:
            is_page = request.method in SAFE_METHODS and "text/html" in request.headers.get("accept", "")
            return RedirectResponse("/login", 303) if is_page else JSONResponse({"message": "You are logged out."}, 401)
        if annotator.role not in roles:
            return JSONResponse({"message": "Not found."}, 404)
        return handler(request, annotator, values)

    return endpoint


async def read_json(request: Request) -> Any:
    """Return the JSON object of a request.

    Raises:
        ValueError: The body is too long, or not a JSON object.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise ValueError("The request is too long.")
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("The request is not JSON.") from None
    if not isinstance(values, dict):
        raise ValueError("The request is not a JSON object.")
    return values


@functools.cache
def static_url(name: str) -> str:
    """Return the address of a static file. It changes with the content, so that browsers can keep the file."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"/static/{name}?v={digest}"


@functools.cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["direction"] = direction
    environment.filters["duration"] = format_pace
    environment.filters["percent"] = lambda value: f"{value:.0%}"
    return environment
