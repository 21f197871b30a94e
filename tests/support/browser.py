"""A person at a real browser: chromium without a screen, on a page that is served in this process."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_core_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from rlhf_cli.feedback.store import Invite, Store
from rlhf_cli.feedback.web.app import create_app
from rlhf_cli.feedback.web.server import address_of, listen, make_server

CHROMIUM = Path("/usr/bin/chromium")
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}


@contextmanager
def running_chromium() -> Iterator[Browser]:
    """Yield a browser. If it is not installed, skip the test, or fail it if RLHF_STRICT is 1."""
    if not CHROMIUM.exists():
        missing = f"{CHROMIUM} is missing"
        if os.environ.get("RLHF_STRICT") == "1":
            pytest.fail(f"{missing}, and RLHF_STRICT is set")
        pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def served(store: Store) -> Iterator[str]:
    """Serve the page of a store, and yield its address."""
    with listen("127.0.0.1", 0) as listening:
        server = make_server(create_app(store))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield address_of(listening, "127.0.0.1")
        finally:
            server.should_exit = True
            thread.join()


class Person:
    """Someone who works on the page, in a browser profile of their own.

    Args:
        browser: The browser.
        address: Address of the page.
        options: Options of the profile, such as `has_touch` and `color_scheme`.
    """

    def __init__(self, browser: Browser, address: str, **options: Any) -> None:
        self.address = address
        self.context = browser.new_context(**{"viewport": DESKTOP, **options})
        self.problems: list[str] = []  # errors of the script, and requests to elsewhere
        self.page = self.open_tab()

    def open_tab(self) -> Page:
        """Return a new tab, whose errors are collected."""
        page = self.context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda message: self.problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: self._note(request.url))
        return page

    def _note(self, url: str) -> None:
        if not url.startswith(self.address):
            self.problems.append(f"request to {url}")

    def log_in(self, invite: Invite, *, then: str = "**/annotate") -> None:
        """Open an invite link and begin."""
        self.page.goto(f"{self.address}/login#{invite.token}")
        self.page.get_by_role("button", name="Begin").press("Enter")
        self.page.wait_for_url(then)

    def press(self, *keys: str) -> None:
        """Press keys on the page."""
        for key in keys:
            self.page.keyboard.press(key)

    def item_id(self) -> str:
        """Return the id of the item on the page."""
        return self.page.locator(".item").get_attribute("data-id") or ""

    @contextmanager
    def until_next(self) -> Iterator[None]:
        """Wait after the body until another item, or the end, is on the page."""
        shown = self.item_id()
        yield
        expect(self.page.locator(f'.item[data-id="{shown}"]')).to_have_count(0, timeout=20_000)

    def read_guideline(self) -> None:
        """Close the guideline, which opens by itself."""
        expect(self.page.locator("#guideline")).to_be_visible()
        self.press("Enter")
        expect(self.page.locator("#guideline")).to_be_hidden()

    def violations(self) -> list[str]:
        """Return what axe-core reports about the page."""
        found = Axe().run(self.page)["violations"]
        return [f"{entry['id']}: {node['html'][:200]}" for entry in found for node in entry["nodes"]]
