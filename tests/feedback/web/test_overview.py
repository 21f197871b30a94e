"""The owner's overview, and decisions about disagreements."""

from __future__ import annotations

import html
import json
import re

import pytest

from rlhf_cli.feedback.store import Store
from rlhf_cli.feedback.types import Answer, NewJudgment
from rlhf_cli.feedback.web.figures import Overview
from tests.support.feedback_store import Stores, agreeing, contradicting, judge, new_items
from tests.support.page_client import PageClient


def disputed_store(stores: Stores, items: int = 2) -> Store:
    """Return a store in which two annotators contradict each other about each item."""
    store = stores(overlap=2, max_overlap=2)
    store.add_items(new_items(items))
    for name, answer in (("Ann", agreeing), ("Bob", contradicting)):
        annotator = store.add_annotator(name).annotator.id
        for number in range(items):
            (assignment,) = store.assign(annotator)
            given = answer(assignment)
            flags = {assignment.order[0]: ("false",)}
            rationale = f"<b>{name}</b> says so"
            store.submit(annotator, assignment.id, Answer(given.tiers, flags=flags, rationale=rationale), f"{number}")  # type: ignore[arg-type]
    return store


def owner_of(store: Store) -> PageClient:
    return PageClient(store, store.add_annotator("Olga", role="owner"))


def test_overview_of_empty_project_opens(page_stores: Stores) -> None:
    assert owner_of(page_stores()).get("/overview").status_code == 200


def test_overview_shows_progress_and_annotators(page_stores: Stores) -> None:
    store = page_stores(overlap=1, max_overlap=1)
    store.add_items(new_items(4))
    judge(store, store.add_annotator("Ann <script>").annotator.id, 3)
    text = owner_of(store).get("/overview").text
    assert re.search(r">3<span class=\"note\"> of 4", text)
    assert "Ann &lt;script&gt;" in text
    assert "<script>" not in text.replace('<script src="', "")


def test_agreement_on_overview_counts_all_judgments_if_none_depend_on_disagreement(page_stores: Stores) -> None:
    """As `rlhf annotate qc` does: with equal overlap and max_overlap, only imports have more judgments."""
    store = page_stores(task="pair", overlap=2, max_overlap=2)
    store.add_items(new_items(4, completions=2))
    votes = [(item.id, name, ((0,), (1,))) for item in store.snapshot().items for name in ("Ann", "Bob")]
    votes.append((votes[0][0], "Cid", ((1,), (0,))))
    store.record([NewJudgment(item, name, "pair", Answer(tiers)) for item, name, tiers in votes])
    agreement = Overview().measure(store)[1].agreement
    assert agreement is not None
    assert agreement.value == pytest.approx((3 + 1 / 3) / 4, abs=1e-12)  # a sum of a few terms


def test_home_of_owner_is_the_overview(page_stores: Stores) -> None:
    assert owner_of(page_stores()).get("/").headers["location"] == "/overview"


def test_disagreements_are_listed_with_a_link(page_stores: Stores) -> None:
    store = disputed_store(page_stores)
    client = owner_of(store)
    text = client.get("/disagreements").text
    for entry in store.disputed():
        assert f'href="/disagreements/{entry.item.id}"' in text
    assert '<a href="/disagreements">2</a>' in client.get("/overview").text


def test_disagreement_shows_all_judgments_side_by_side(page_stores: Stores) -> None:
    store = disputed_store(page_stores)
    text = owner_of(store).get(f"/disagreements/{store.disputed()[0].item.id}").text
    rankings = [json.loads(html.unescape(found)) for found in re.findall(r'data-adopt="([^"]*)"', text)]
    assert sorted(rankings) == [[[1], [2], [3], [4]], [[4], [3], [2], [1]]]
    assert "&lt;b&gt;Ann&lt;/b&gt; says so" in text
    assert "flagged false" in text
    assert "base" not in text  # the source of every completion


def test_disagreement_tells_an_expert_pseudonyms_only(page_stores: Stores) -> None:
    store = disputed_store(page_stores, items=1)
    path = f"/disagreements/{store.disputed()[0].item.id}"
    expert = PageClient(store, store.add_annotator("Eve", role="expert")).get(path).text
    assert "<strong>annotator-001</strong>" in expert
    assert "<strong>Ann</strong>" in owner_of(store).get(path).text


def test_decision_is_stored_and_leads_to_the_next_disagreement(page_stores: Stores) -> None:
    store = disputed_store(page_stores)
    first, second = (entry.item for entry in store.disputed())
    client = owner_of(store)
    client.load(f"/disagreements/{first.id}")
    reply = client.post(f"/disagreements/{first.id}/decision", {"tiers": [[2], [1, 3], [4]], "rationale": "Both err."})
    assert reply.json()["location"] == f"/disagreements/{second.id}"
    (decision,) = store.snapshot().decisions
    one, two, three, four = (completion.id for completion in first.completions)
    assert (decision.item_id, decision.tiers, decision.rationale) == (
        first.id,
        ((two,), (one, three), (four,)),
        "Both err.",
    )
    assert client.get(f"/disagreements/{first.id}").status_code == 404
    last = client.post(f"/disagreements/{second.id}/decision", {"tiers": [[1], [2], [3], [4]]})
    assert last.json()["location"] == "/disagreements"


@pytest.mark.parametrize("values", [{}, {"tiers": [[1]]}, {"tiers": [[1], [2], [3], [4]], "rationale": 1}])
def test_decision_that_is_invalid_is_refused(page_stores: Stores, values: dict[str, object]) -> None:
    store = disputed_store(page_stores, items=1)
    client = owner_of(store)
    assert client.post(f"/disagreements/{store.disputed()[0].item.id}/decision", values).status_code == 422
    assert list(store.snapshot().decisions) == []


def test_decision_of_an_annotator_is_not_found(page_stores: Stores) -> None:
    store = disputed_store(page_stores, items=1)
    client = PageClient(store, store.add_annotator("Cid"))
    values = {"tiers": [[1], [2], [3], [4]]}
    assert client.post(f"/disagreements/{store.disputed()[0].item.id}/decision", values).status_code == 404
