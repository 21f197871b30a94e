"""Annotators, one-time invites and sessions; no token is stored."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from rlhf_cli.errors import DataError
from rlhf_cli.feedback.store import NotFoundError
from tests.support.feedback_store import Stores, judge, new_item
from tests.support.issues import raises_issue

DAY = 24 * 3600.0


def test_invite_is_redeemed_once(stores: Stores) -> None:
    store = stores()
    invite = store.add_annotator("Ann", languages=["de"], fields=["law"])
    session = store.redeem(invite.token)
    assert session.annotator == invite.annotator == store.annotator_of(session.token)
    with pytest.raises(NotFoundError):
        store.redeem(invite.token)
    with pytest.raises(NotFoundError):
        store.redeem("unknown")


def test_renewed_invite_replaces_the_earlier_one_and_keeps_sessions(stores: Stores) -> None:
    store = stores()
    first = store.add_annotator("Ann")
    session = store.redeem(store.renew_invite("Ann").token)
    with pytest.raises(NotFoundError):
        store.redeem(first.token)
    store.renew_invite("Ann")
    assert store.annotator_of(session.token) is not None


def test_session_ends_by_log_out_by_time_and_by_deactivation(stores: Stores) -> None:
    store = stores()
    store.add_annotator("Ann")
    tokens = [store.redeem(store.renew_invite("Ann").token).token for _ in range(3)]
    store.end_session(tokens[0])
    store.end_session("unknown")
    assert [store.annotator_of(token) is not None for token in tokens] == [False, True, True]
    stores.clock.now += 31 * DAY
    assert [store.annotator_of(token) for token in tokens] == [None] * 3
    invite = store.renew_invite("Ann")
    session = store.redeem(invite.token)
    unused = store.renew_invite("Ann")
    store.deactivate("Ann")
    assert store.annotator_of(session.token) is None
    with pytest.raises(NotFoundError):
        store.redeem(unused.token)


def test_deactivated_annotator_cannot_work_and_becomes_active_by_a_new_invite(stores: Stores) -> None:
    store = stores()
    store.add_items([new_item(0), new_item(1)])
    annotator = store.add_annotator("Ann").annotator.id
    judge(store, annotator)
    store.deactivate("Ann")
    with pytest.raises(NotFoundError):
        store.assign(annotator)
    assert [found.is_active for found in store.annotators()] == [False]
    assert len(store.snapshot().judgments) == 1
    assert store.renew_invite("Ann").annotator.is_active
    judge(store, annotator)


def test_deactivated_annotator_frees_the_leased_items(stores: Stores) -> None:
    store = stores(overlap=1)
    store.add_items([new_item()])
    ann, bob = (store.add_annotator(name).annotator.id for name in ("Ann", "Bob"))
    (lease,) = store.assign(ann)
    assert store.assign(bob) == []
    store.deactivate("Ann")
    assert [assignment.item.id for assignment in store.assign(bob)] == [lease.item.id]


def test_session_of_another_project_is_unknown(stores: Stores) -> None:
    first, second = stores(project="first"), stores(project="second")
    invite = first.add_annotator("Ann")
    with pytest.raises(NotFoundError):
        second.redeem(invite.token)
    session = first.redeem(invite.token)
    assert second.annotator_of(session.token) is None


def test_annotator_of_taken_or_invalid_name_is_refused(stores: Stores) -> None:
    store = stores()
    store.add_annotator("Ann")
    with raises_issue("feedback.duplicate-annotator", error=DataError):
        store.add_annotator("Ann")
    for name in ("", "  ", "x" * 101):
        with raises_issue("feedback.invalid-annotator", error=DataError):
            store.add_annotator(name)
    for action in (store.renew_invite, store.deactivate):
        with pytest.raises(NotFoundError):
            action("Eve")
    assert [annotator.name for annotator in store.annotators()] == ["Ann"]


def test_pseudonyms_do_not_hold_names_of_people(stores: Stores) -> None:
    store = stores()
    made = [store.add_annotator(name, source="human").annotator for name in ("Ann", "Bob")]
    model = store.add_annotator("model-1", source="ai").annotator
    assert [annotator.pseudonym for annotator in made] == ["annotator-001", "annotator-002"]
    assert model.pseudonym == "model-1"


def test_tokens_are_not_in_the_database(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with Stores(str(path)).closing() as stores:
        store = stores()
        used, unused = store.add_annotator("Ann").token, store.add_annotator("Bob").token
        session = store.redeem(used).token
    with sqlite3.connect(path) as connection:
        dump = "\n".join(connection.iterdump())
    assert "Ann" in dump
    assert not any(token in dump for token in (used, unused, session))
    assert not any(token.encode() in path.read_bytes() for token in (used, unused, session))
