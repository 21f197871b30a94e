"""A browser without a screen: logs in by an invite, and sends what the page's script would send."""

from __future__ import annotations

import json
import re
from typing import Any

from httpx2 import Response
from starlette.testclient import TestClient

from rlhf_cli.feedback.store import Invite, Store
from rlhf_cli.feedback.web.app import create_app

ADDRESS = "http://127.0.0.1:8000"


class PageClient:
    """One browser on the page of a store.

    Args:
        store: The store.
        invite: The invite with which it logs in, or None to stay logged out.
    """

    def __init__(self, store: Store, invite: Invite | None = None) -> None:
        self.http = TestClient(create_app(store), base_url=ADDRESS, follow_redirects=False)
        self.csrf = ""
        if invite is not None:
            assert self.log_in(invite.token).status_code == 200

    def log_in(self, token: str) -> Response:
        """Redeem an invite."""
        self.load("/login")
        reply = self.post("/login", {"token": token})
        if reply.status_code == 200:
            self.load("/annotate")
        return reply

    def load(self, path: str) -> Response:
        """Open a page, and remember its CSRF token."""
        reply = self.get(path)
        token = re.search(r'data-csrf="([^"]*)"', reply.text)
        if token:
            self.csrf = token[1]
        return reply

    def get(self, path: str, **headers: str) -> Response:
        """Request a page as a browser does."""
        return self.http.get(path, headers={"accept": "text/html", **headers})

    def post(self, path: str, values: Any = None, **headers: str) -> Response:
        """Send what the page's script would send."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {"origin": ADDRESS, "x-csrf-token": self.csrf, "content-type": "application/json", **given}
        return self.http.post(path, content=json.dumps({} if values is None else values), headers=sent)

    def item_id(self) -> int:
        """Return the id of the assignment on the page."""
        found = re.search(r'class="item" data-id="(\d+)"', self.load("/annotate").text)
        assert found is not None
        return int(found[1])

    def answer(self, item: int, *tiers: list[int], key: str = "key", **values: Any) -> Response:
        """Answer an item by tiers of shown positions."""
        return self.post(f"/items/{item}/answer", {"key": key, "tiers": list(tiers), **values})
