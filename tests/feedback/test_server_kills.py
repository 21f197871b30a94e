"""SIGKILL of the server under load: no acknowledged judgment is lost, none is doubled, and overlaps are exact.

RLHF_TEST_KILLS sets how often each server is killed: CI does it a few times, a release 50 times.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Condition
from typing import TypeVar

import pytest

from tests.support.annotation_server import AnnotationServer, HttpAnnotator
from tests.support.feedback_store import Stores, new_items

T = TypeVar("T")
KILLS = int(os.environ.get("RLHF_TEST_KILLS", "5"))
ANNOTATORS = 20
OVERLAP = 2
MAX_BETWEEN = 20  # acknowledged judgments between two kills; up to 20 more are in flight
ITEMS_PER_KILL = (MAX_BETWEEN + ANNOTATORS) // OVERLAP


class Load:
    """Annotators who judge until nothing is left, and who repeat a request that failed once the server is back."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._starts = 0
        self._stopped = 0
        self.acknowledged: dict[tuple[str, int], int] = {}  # annotator and assignment: judgment
        self.failed_requests = 0

    def work(self, name: str, client: HttpAnnotator) -> None:
        """Let one annotator judge until nothing is left."""
        try:
            while (task := self._persist(client.next_task)) is not None:
                tiers = [[position] for position in range(1, task.completions + 1)]
                judgment = self._persist(client.answer, task, f"key {task.id}", tiers)
                with self._changed:
                    assert (name, task.id) not in self.acknowledged
                    self.acknowledged[name, task.id] = judgment
                    self._changed.notify_all()
        finally:
            with self._changed:
                self._stopped += 1
                self._changed.notify_all()

    def _persist(self, request: Callable[..., T], *arguments: object) -> T:
        """Return the reply to a request, which is sent again after each restart of the server."""
        while True:
            starts = self._starts
            try:
                return request(*arguments)
            except ConnectionError:
                with self._changed:
                    self.failed_requests += 1
                    while self._starts == starts:
                        self._changed.wait()

    def wait_for(self, count: int) -> None:
        """Wait until this many further judgments are acknowledged, or an annotator stopped."""
        with self._changed:
            wanted = len(self.acknowledged) + count
            self._changed.wait_for(lambda: len(self.acknowledged) >= wanted or self._stopped)

    def server_is_back(self) -> None:
        """Let the annotators continue."""
        with self._changed:
            self._starts += 1
            self._changed.notify_all()


@pytest.mark.slow
@pytest.mark.subprocess
def test_killed_server_loses_and_doubles_no_judgment(stores: Stores, store_url: str, tmp_path: Path) -> None:
    store = stores(overlap=OVERLAP, max_overlap=OVERLAP)
    store.add_items(new_items(KILLS * ITEMS_PER_KILL))
    invites = [store.add_annotator(f"annotator {number}") for number in range(ANNOTATORS)]
    names = {invite.annotator.id: invite.annotator.name for invite in invites}
    server, load, generator = AnnotationServer(tmp_path, store_url, overlap=OVERLAP), Load(), random.Random(0)
    server.start()
    try:
        clients = {invite.annotator.name: HttpAnnotator(server.port) for invite in invites}
        for invite in invites:
            clients[invite.annotator.name].log_in(invite.token)
        with ThreadPoolExecutor(ANNOTATORS) as pool:
            running = [pool.submit(load.work, name, client) for name, client in clients.items()]
            for _ in range(KILLS):
                load.wait_for(generator.randint(1, MAX_BETWEEN))
                server.kill()
                server.start()
                load.server_is_back()
            for annotator in running:
                annotator.result()
    finally:
        server.kill(signal.SIGTERM)
    assert load.failed_requests >= KILLS
    judgments = store.snapshot().judgments
    stored = {judgment.id: names[judgment.annotator_id] for judgment in judgments}
    assert stored == {judgment: name for (name, _), judgment in load.acknowledged.items()}
    assert len({(judgment.item_id, judgment.annotator_id) for judgment in judgments}) == len(judgments)
    per_item = Counter(judgment.item_id for judgment in judgments)
    assert Counter(per_item.values()) == {OVERLAP: KILLS * ITEMS_PER_KILL}
    assert all(judgment.answer.tiers == tuple((number,) for number in judgment.order) for judgment in judgments)
    assert (store.status().open, store.status().judgments) == (0, len(judgments))
