"""The store of a project: every method is one transaction on its database."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Self, TypeVar

from sqlalchemy import Connection

from rlhf_cli.errors import RlhfError
from rlhf_cli.feedback.formats.gold import read_known_items
from rlhf_cli.feedback.guideline import read_guideline
from rlhf_cli.feedback.store import (
    adjudication,
    annotators,
    assignment,
    items,
    judgments,
    projects,
    recording,
    snapshot,
    status,
)
from rlhf_cli.feedback.store.engine import RETRIES, Database, is_conflict
from rlhf_cli.feedback.store.records import (
    AddResult,
    Assignment,
    DisputedItem,
    Guideline,
    Invite,
    Progress,
    Receipt,
    RecordResult,
    Session,
    Status,
)
from rlhf_cli.feedback.store_input import store_url
from rlhf_cli.feedback.types import (
    Annotator,
    Answer,
    Decision,
    Item,
    NewItem,
    NewJudgment,
    Role,
    Snapshot,
    Source,
    Tiers,
)
from rlhf_cli.recipe.schema import Feedback, Recipe

T = TypeVar("T")


class Store:
    """The feedback of one project. Threads and processes may use it at the same time.

    Args:
        url: Path of an SQLite file, or a PostgreSQL URL. The tables are created if needed.
        project: Name of the project.
        settings: The section `feedback` of the recipe.
        clock: Returns the time in seconds since 1970.
    """

    def __init__(self, url: str, project: str, settings: Feedback, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._database = Database(url)
        try:
            self._project = self._write(lambda connection: projects.open_project(connection, project, settings))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    @property
    def location(self) -> str:
        """Return where the store is, for messages: a path, or a URL without a password."""
        return self._database.location

    @property
    def name(self) -> str:
        """Return the name of the project."""
        return self._project.name

    @property
    def settings(self) -> Feedback:
        """Return the section `feedback` of the recipe."""
        return self._project.settings

    def _write(self, action: Callable[[Connection], T]) -> T:
        """Return the result of an action in a transaction, which is repeated if PostgreSQL aborts it."""
        for attempt in range(RETRIES + 1):
            try:
                with self._database.write() as connection:
                    return action(connection)
            except RlhfError as error:
                if attempt == RETRIES or not is_conflict(error):
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _read(self, action: Callable[[Connection], T]) -> T:
        with self._database.read() as connection:
            return action(connection)

    # --- the owner's side -------------------------------------------------------------------------------------------

    def set_guideline(self, text: str) -> str:
        """Make a text the current guideline and return its SHA-256. No-op if it is current already."""
        return self._write(lambda c: projects.set_guideline(c, self._project, text, self._clock()))

    def guideline(self, sha256: str | None = None) -> Guideline | None:
        """Return a version of the guideline, by default the current one; None if there is no current one."""

        def find(connection: Connection) -> Guideline | None:
            digest = projects.current_guideline(connection, self._project) if sha256 is None else sha256
            return projects.find_guideline(connection, self._project, digest) if digest else None

        return self._read(find)

    def add_items(self, new: Iterable[NewItem]) -> AddResult:
        """Add items, and return how many are new. An item with the same kind, prompt and completions is added once.

        Items are added in chunks, each in a transaction of its own, so that annotators do not wait for a long import.
        """
        added, existing = 0, 0
        ids: list[int] = []
        for chunk in items.chunks(new):
            result = self._write(lambda c, chunk=chunk: items.add_items(c, self._project, chunk))  # type: ignore[misc]
            added, existing = added + result.added, existing + result.existing
            ids += result.ids
        return AddResult(added, existing, tuple(ids))

    def item(self, item_id: int) -> Item:
        """Return one item, with its answer and the sources of its completions."""
        return self._read(lambda c: items.find_item(c, self._project, item_id))

    def add_annotator(
        self,
        name: str,
        *,
        role: Role = "annotator",
        languages: Sequence[str] = (),
        fields: Sequence[str] = (),
        source: Source = "human",
    ) -> Invite:
        """Add an annotator and return a one-time invite."""

        def add(connection: Connection) -> Invite:
            annotators.add_annotator(
                connection, self._project, name, role=role, languages=languages, fields=fields, source=source
            )
            return annotators.new_invite(connection, self._project, name, self._clock())

        return self._write(add)

    def renew_invite(self, name: str) -> Invite:
        """Return a new one-time invite. Earlier invites become invalid; a deactivated annotator becomes active."""
        return self._write(lambda c: annotators.new_invite(c, self._project, name, self._clock()))

    def deactivate(self, name: str) -> None:
        """Deactivate an annotator: invites and sessions become invalid, and judgments are kept."""
        self._write(lambda c: annotators.deactivate(c, self._project, name))

    def annotators(self) -> list[Annotator]:
        """Return all annotators in the order of ids."""
        return self._read(lambda c: annotators.all_annotators(c, self._project))

    def record(self, new: Iterable[NewJudgment]) -> RecordResult:
        """Store judgments that were made elsewhere, in chunks, and return how many are new.

        The items must exist; annotators are added if needed.
        """
        added, existing = 0, 0
        for chunk in items.chunks(new):
            result = self._write(lambda c, chunk=chunk: recording.record(c, self._project, chunk, self._clock()))  # type: ignore[misc]
            added, existing = added + result.added, existing + result.existing
        return RecordResult(added, existing)

    def import_batch(self, new: Sequence[NewItem], judged: Sequence[NewJudgment]) -> tuple[AddResult, RecordResult]:
        """Add items and judgments of them in one transaction, and return how many are new."""

        def add(connection: Connection) -> tuple[AddResult, RecordResult]:
            added = items.add_items(connection, self._project, new)
            return added, recording.record(connection, self._project, judged, self._clock())

        return self._write(add)

    def status(self) -> Status:
        """Return the numbers of the project."""
        return self._read(lambda c: status.status(c, self._project))

    def disputed(self) -> list[DisputedItem]:
        """Return the items on which annotators disagree and about which no expert has decided, with their judgments."""
        return self._read(lambda c: adjudication.disputed(c, self._project))

    def decide(self, expert_id: int, item_id: int, tiers: Tiers, rationale: str = "") -> Decision:
        """Store an expert's decision, which outranks the judgments and never replaces them."""
        return self._write(
            lambda c: adjudication.decide(
                c, self._project, expert_id, item_id, tiers, rationale=rationale, now=self._clock()
            )
        )

    def snapshot(self) -> Snapshot:
        """Return all feedback of the project at one moment."""
        return self._read(lambda c: snapshot.snapshot(c, self._project))

    def digest(self) -> str:
        """Return the SHA-256 of the snapshot's content. Times do not change it."""
        return snapshot.digest(self.snapshot())

    # --- the annotator's side ---------------------------------------------------------------------------------------

    def redeem(self, token: str) -> Session:
        """Return a new session for an invite, which becomes invalid. Raise NotFoundError if it is invalid."""
        return self._write(lambda c: annotators.redeem(c, self._project, token, self._clock()))

    def annotator_of(self, session_token: str) -> Annotator | None:
        """Return the annotator of a session, or None if it is unknown, expired or ended."""
        return self._read(lambda c: annotators.annotator_of(c, self._project, session_token, self._clock()))

    def end_session(self, session_token: str) -> None:
        """End a session. No-op if it is unknown."""
        self._write(lambda c: annotators.end_session(c, session_token))

    def assign(self, annotator_id: int, count: int = 1) -> list[Assignment]:
        """Return up to `count` assignments: the annotator's live leases first, then new ones; [] if nothing is left."""
        now = self._clock()
        while True:
            assigned = self._write(lambda c: assignment.assign(c, self._project, annotator_id, count, now))
            if assigned is not None:
                return assigned
            self._write(lambda c: assignment.expire_leases(c, now))

    def assignment(self, annotator_id: int, assignment_id: int) -> Assignment:
        """Return an assignment. Raise NotFoundError if it is unknown or another annotator's."""
        return self._read(lambda c: assignment.find_assignment(c, self._project, annotator_id, assignment_id))

    def submit(self, annotator_id: int, assignment_id: int, answer: Answer, key: str) -> Receipt:
        """Store the answer to an assignment and return its acknowledgment.

        The same key returns the same receipt. If the assignment was answered by another key, as in a second tab, the
        earlier judgment is kept, and the receipt says so.

        Raises:
            LeaseExpiredError: The lease expired, and the item got enough judgments since.
            NotFoundError: The assignment is unknown or another annotator's, or the annotator is not active.
        """
        return self._write(
            lambda c: judgments.submit(
                c, self._project, annotator_id, assignment_id, answer, key=key, now=self._clock()
            )
        )

    def skip(self, annotator_id: int, assignment_id: int, reason: str, key: str) -> Receipt:
        """Skip an assignment: its slot is free again, and the annotator does not get the item again."""
        return self.submit(annotator_id, assignment_id, Answer(tiers=(), skip_reason=reason or "skipped"), key)

    def reopen(self, annotator_id: int, judgment_id: int) -> Assignment:
        """Lease an annotator's own judgment again. The new answer supersedes it."""
        return self._write(lambda c: assignment.reopen(c, self._project, annotator_id, judgment_id, self._clock()))

    def progress(self, annotator_id: int) -> Progress:
        """Return how far an annotator is."""
        return self._read(
            lambda c: status.progress(
                c, self._project, annotators.find_row(c, self._project, annotator_id), self._clock()
            )
        )


def open_store(recipe: Recipe) -> Store:
    """Open the store of a recipe, by RLHF_FEEDBACK_STORE or `feedback.store`.

    The guideline, the gold items and the qualification test of the recipe are put into it.

    Raises:
        RecipeError: The guideline cannot be read, or the URL is invalid.
        DataError: The database cannot be used, or gold items or the qualification test are invalid.
    """
    settings = recipe.feedback
    guideline = None if settings.guideline is None else read_guideline(Path(settings.guideline))
    known = read_known_items(settings)
    store = Store(store_url(recipe), recipe.name, settings)
    try:
        if guideline is not None:
            store.set_guideline(guideline)
        store.add_items(known)
    except BaseException:
        store.close()
        raise
    return store
