"""The Starlette application: addresses, middleware, and what errors look like."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from rlhf_cli.errors import RlhfError
from rlhf_cli.feedback.store import NotFoundError, Store
from rlhf_cli.feedback.web import accounts, annotation, overview
from rlhf_cli.feedback.web.security import ProtectionMiddleware
from rlhf_cli.feedback.web.site import EXPERTS, OWNERS, STATIC, Site, logged_in, site_of

LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
logger = logging.getLogger(__name__)


def create_app(store: Store, allowed_hosts: Sequence[str] = LOOPBACK) -> Starlette:
    """Return the application for the project of `store`.

    Args:
        store: The store, which the caller closes.
        allowed_hosts: Names by which the page may be addressed. Another `Host` is refused, so that a page of another
            site cannot reach this one by a name that it controls.
    """
    routes = [
        Route("/", accounts.home),
        Route("/login", accounts.login_page),
        Route("/login", accounts.log_in, methods=["POST"]),
        Route("/logout", logged_in(accounts.log_out), methods=["POST"]),
        Route("/annotate", logged_in(annotation.annotate)),
        Route("/guideline", logged_in(annotation.guideline)),
        Route("/items/next", logged_in(annotation.next_item)),
        Route("/items/{id:int}", logged_in(annotation.item)),
        Route("/items/{id:int}/answer", logged_in(annotation.answer), methods=["POST"]),
        Route("/judgments/{id:int}/reopen", logged_in(annotation.reopen), methods=["POST"]),
        Route("/overview", logged_in(overview.overview, OWNERS)),
        Route("/disagreements", logged_in(overview.disagreements, EXPERTS)),
        Route("/disagreements/{id:int}", logged_in(overview.disagreement, EXPERTS)),
        Route("/disagreements/{id:int}/decision", logged_in(overview.decide, EXPERTS), methods=["POST"]),
        Mount("/static", CachedFiles(directory=STATIC)),
    ]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(ProtectionMiddleware),
            Middleware(TrustedHostMiddleware, allowed_hosts=[*allowed_hosts], www_redirect=False),
        ],
        exception_handlers={HTTPException: _http_error, NotFoundError: _not_found, RlhfError: _failed},
    )
    app.state.site = Site(store=store, project=store.name)
    return app


class CachedFiles(StaticFiles):
    """Static files, which browsers keep: the address of a file changes with its content."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        """Return a file."""
        response: Response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(request, error.status_code, str(error.detail))


def _not_found(request: Request, _: Exception) -> Response:
    return _error(request, 404, "Not found")


def _failed(request: Request, error: Exception) -> Response:
    """Answer that the store failed. The page keeps the answer, and sends it again."""
    logger.error("%s %s: %s", request.method, request.url.path, error)
    return _error(request, 503, "The store cannot be used at the moment")


def _error(request: Request, status: int, text: str) -> Response:
    if "text/html" in request.headers.get("accept", "") and request.method == "GET":
        detail = "Try again in a moment." if status >= 500 else "It does not exist, or belongs to someone else."
        return site_of(request).message(request, text, detail, status)
    return JSONResponse({"message": f"{text}."}, status)
