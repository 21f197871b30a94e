"""What the page's requests do to the store: one judgment per item, whatever the browser does."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from rlhf_cli.feedback.store import Store
from rlhf_cli.feedback.types import Answer, NewCompletion, NewItem
from tests.support.feedback_store import Stores, agreeing, judge, new_item, new_items
from tests.support.page_client import PageClient

HOUR = 3600.0


def page_of(store: Store, name: str = "Ann") -> PageClient:
    return PageClient(store, store.add_annotator(name))


def test_answer_twice_with_the_same_key_stores_one_judgment(page_stores: Stores) -> None:
    """A double submit, or a repetition after the connection broke."""
    store = page_stores()
    store.add_items(new_items(2))
    client = page_of(store)
    item = client.item_id()
    first, second = (client.answer(item, [2], [1, 3], [4], key="k") for _ in range(2))
    assert first.json()["judgment"] == second.json()["judgment"]
    assert second.json()["notice"] == ""
    assert len(store.snapshot().judgments) == 1


def test_answer_in_two_tabs_stores_the_first_and_says_so(page_stores: Stores) -> None:
    """Two tabs show the same item; the back button has the same effect."""
    store = page_stores()
    store.add_items(new_items(2))
    client = page_of(store)
    item = client.item_id()
    assert client.item_id() == item
    client.answer(item, [1], [2], [3], [4], key="tab 1")
    second = client.answer(item, [4], [3], [2], [1], key="tab 2")
    assert second.status_code == 200
    assert "already" in second.json()["notice"]
    (judgment,) = store.snapshot().judgments
    assert judgment.answer.tiers == tuple((completion,) for completion in judgment.order)


def test_annotate_after_leaving_shows_the_same_item(page_stores: Stores) -> None:
    store = page_stores()
    store.add_items(new_items(5))
    client = page_of(store)
    item = client.item_id()
    client.get("/items/next")
    assert client.item_id() == item


def test_next_item_is_another_one_than_that_on_the_page(page_stores: Stores) -> None:
    store = page_stores()
    store.add_items(new_items(5))
    client = page_of(store)
    item = client.item_id()
    fragment = client.get(f"/items/next?after={item}").text
    following = re.search(r'data-id="(\d+)"', fragment)
    assert following is not None
    assert int(following[1]) != item
    client.answer(item, [1], [2], [3], [4])
    assert client.item_id() == int(following[1])


def test_next_item_if_nothing_is_left_says_so(page_stores: Stores) -> None:
    store = page_stores()
    store.add_items([new_item()])
    client = page_of(store)
    item = client.item_id()
    assert "data-done" in client.get(f"/items/next?after={item}").text
    client.answer(item, [1], [2], [3], [4])
    assert "You have judged 1 item." in client.get("/annotate").text


def test_answer_is_stored_by_completion_with_the_order_shown(page_stores: Stores) -> None:
    store = page_stores(criteria=["helpful"])
    store.set_guideline("Be fair.")
    store.add_items([new_item()])
    client = page_of(store)
    reply = client.answer(
        client.item_id(),
        [3],
        [1, 4],
        [2],
        criteria={"3": {"helpful": 5}, "2": {"helpful": 1}},
        flags={"0": ["broken"], "2": ["false", "unsafe"], "1": []},
        rationale="because\ud800",
        seconds=12.5,
    )
    assert reply.status_code == 200
    (judgment,) = store.snapshot().judgments
    one, two, three, four = judgment.order
    assert judgment.answer == Answer(
        tiers=((three,), (one, four), (two,)),
        criteria={three: {"helpful": 5}, two: {"helpful": 1}},
        flags={0: ("broken",), two: ("unsafe", "false")},
        rationale="because\ud800",
        seconds=12.5,
    )


@pytest.mark.parametrize("strength", [-3, 0, 2])
def test_answer_of_pair_keeps_strength_by_the_order_of_the_import(page_stores: Stores, strength: int) -> None:
    """The store counts strength from the first completion of the item, and the page from the first shown."""
    store = page_stores(task="pair")
    store.add_items(new_items(8, completions=2))
    client, shown_orders = page_of(store), set()
    tiers = {-3: [[1], [2]], 0: [[1, 2]], 2: [[2], [1]]}[strength]
    for number in range(8):
        assert client.answer(client.item_id(), *tiers, key=f"{number}", strength=strength).status_code == 200
    for judgment in store.snapshot().judgments:
        is_reversed = judgment.order != tuple(sorted(judgment.order))
        shown_orders.add(is_reversed)
        assert judgment.answer.strength == (-strength if is_reversed else strength)
        assert judgment.answer.tiers == tuple(tuple(judgment.order[p - 1] for p in tier) for tier in tiers)
    assert shown_orders == {True, False}


INVALID: list[dict[str, Any]] = [
    {"tiers": None},
    {"tiers": []},
    {"tiers": [[1], [2], [3]]},
    {"tiers": [[1], [2], [3], [5]]},
    {"tiers": [[1], [2], [3], [4, 4]]},
    {"tiers": [[1], [2], [3], [4], []]},
    {"tiers": [[1], [2], [3], ["4"]]},
    {"tiers": [[1], [2], [3], [True]]},
    {"criteria": {"1": {"helpful": 6}}},
    {"criteria": {"1": {"other": 3}}},
    {"criteria": {"0": {"helpful": 3}}},
    {"criteria": {"9": {"helpful": 3}}},
    {"criteria": [1]},
    {"flags": {"1": ["odd"]}},
    {"flags": {"1": "unsafe"}},
    {"flags": {"x": []}},
    {"rationale": 5},
    {"rationale": "x" * 20_001},
    {"seconds": -1},
    {"seconds": "5"},
    {"key": ""},
    {"key": "k" * 65},
    {"key": None},
]


@pytest.mark.parametrize("values", INVALID, ids=lambda values: json.dumps(values)[:40])
def test_answer_that_is_invalid_is_refused_and_not_stored(page_stores: Stores, values: dict[str, Any]) -> None:
    store = page_stores(criteria=["helpful"])
    store.add_items([new_item()])
    client = page_of(store)
    answer = {"key": "key", "tiers": [[1], [2], [3], [4]], **values}
    assert client.post(f"/items/{client.item_id()}/answer", answer).status_code == 422
    assert list(store.snapshot().judgments) == []


@pytest.mark.parametrize(("strength", "tiers"), [(None, [[1], [2]]), (4, [[2], [1]]), (1, [[1], [2]]), (1, [[1, 2]])])
def test_answer_of_pair_whose_strength_contradicts_it_is_refused(
    page_stores: Stores, strength: int | None, tiers: list[list[int]]
) -> None:
    store = page_stores(task="pair")
    store.add_items([new_item(completions=2)])
    client = page_of(store)
    assert client.answer(client.item_id(), *tiers, strength=strength).status_code == 422


def test_answer_with_reason_skips_the_item_for_good(page_stores: Stores) -> None:
    store = page_stores()
    store.add_items([new_item()])
    client = page_of(store)
    assert client.answer(client.item_id(), skip_reason="no idea").status_code == 200
    assert "data-done" in client.get("/annotate").text
    (judgment,) = store.snapshot().judgments
    assert (judgment.answer.skip_reason, judgment.answer.tiers) == ("no idea", ())


def test_skipped_item_keeps_its_flags_and_rationale(page_stores: Stores) -> None:
    store = page_stores()
    store.add_items([new_item()])
    client = page_of(store)
    given: dict[str, Any] = {"flags": {"2": ["unsafe"]}, "rationale": "a recipe for poison", "seconds": 4.0}
    assert client.answer(client.item_id(), skip_reason="I would rather not read this", **given).status_code == 200
    (judgment,) = store.snapshot().judgments
    assert judgment.answer.flags == {judgment.order[1]: ("unsafe",)}
    assert (judgment.answer.rationale, judgment.answer.seconds) == ("a recipe for poison", 4.0)


@pytest.mark.parametrize("task", ["rank", "best-worst"])
def test_answer_all_bad_without_tiers_is_stored(page_stores: Stores, task: str) -> None:
    store = page_stores(task=task)
    store.add_items([new_item()])
    client = page_of(store)
    assert client.answer(client.item_id(), all_bad=True).status_code == 200
    (judgment,) = store.snapshot().judgments
    assert (judgment.answer.all_bad, judgment.answer.tiers, judgment.answer.skip_reason) == (True, (), "")


def test_answer_of_best_worst_with_other_tiers_is_refused_and_not_sent_again(page_stores: Stores) -> None:
    store = page_stores(task="best-worst")
    store.add_items([new_item()])
    client = page_of(store)
    assert client.answer(client.item_id(), [1, 2], [3, 4]).status_code == 422  # the page repeats what gets 503


def test_answer_after_the_lease_expired_is_stored_if_still_needed(page_stores: Stores) -> None:
    store = page_stores(overlap=1, max_overlap=1)
    store.add_items([new_item()])
    client = page_of(store)
    item = client.item_id()
    page_stores.clock.now += 2 * HOUR
    assert client.answer(item, [1], [2], [3], [4]).status_code == 200
    assert len(store.snapshot().judgments) == 1


def test_answer_after_others_judged_the_item_is_told(page_stores: Stores) -> None:
    store = page_stores(overlap=1, max_overlap=1)
    store.add_items([new_item()])
    client = page_of(store)
    item = client.item_id()
    page_stores.clock.now += 2 * HOUR
    judge(store, store.add_annotator("Bob").annotator.id)
    reply = client.answer(item, [1], [2], [3], [4], rationale="mine")
    assert reply.status_code == 409
    assert reply.json()["message"]
    assert len(store.snapshot().judgments) == 1


def test_reopened_item_shows_the_earlier_answer_and_supersedes_it(page_stores: Stores) -> None:
    store = page_stores()
    store.add_items(new_items(2))
    client = page_of(store)
    judgment = client.answer(client.item_id(), [2], [1, 3], [4], flags={"2": ["false"]}).json()["judgment"]
    fragment = client.post(f"/judgments/{judgment}/reopen").json()["html"]
    saved = re.search(r"data-saved='([^']*)'|data-saved=\"([^\"]*)\"", fragment)
    assert saved is not None
    values = json.loads((saved[1] or saved[2]).replace("&#34;", '"'))
    assert (values["tiers"], values["flags"]) == ([[2], [1, 3], [4]], {"2": ["false"]})
    again = re.search(r'data-id="(\d+)"', fragment)
    assert again is not None
    client.answer(int(again[1]), [4], [3], [2], [1], key="second thought")
    (current,) = store.snapshot().judgments
    assert current.id != judgment
    assert current.answer.tiers == tuple((completion,) for completion in reversed(current.order))


def test_page_tells_neither_source_nor_right_answer_nor_kind(page_stores: Stores) -> None:
    """Blind: the browser knows completions by their shown position only."""
    store = page_stores(gold={"path": "gold.jsonl", "share": 1.0})
    completions = tuple(NewCompletion(f"text {index}", f"secret-run-{index}") for index in range(2))
    answer = ((1,), (0,))
    store.add_items(
        [NewItem("Which?", completions, "gold", answer=answer, explanation="secret", extra={"score": "secret"})]
    )
    store.add_items([new_item(completions=2)])
    client = page_of(store)
    html = client.get("/annotate").text
    assert "Which?" in html
    for word in ("secret", "gold", "Expected", "score"):
        assert word not in html
    reply = client.answer(client.item_id(), [1], [2]).json()
    assert reply["outcome"] == ""
    assert "secret" not in json.dumps(reply)


def test_completion_ids_are_not_on_the_page(page_stores: Stores) -> None:
    """They would tell the order of the import, and with it often the model."""
    store = page_stores()
    store.add_items([new_item()])
    client = page_of(store)
    html = client.get("/annotate").text
    positions = re.findall(r'data-position="(\d+)"', html)
    assert positions == ["1", "2", "3", "4"]
    (assignment,) = store.assign(store.annotators()[0].id)
    texts = [str(completion.text) for completion in assignment.item.completions]
    assert re.findall(r"completion \d of 0", html) == texts


def test_qualification_item_is_followed_by_feedback(page_stores: Stores) -> None:
    store = page_stores(qualification={"path": "q.jsonl", "min_accuracy": 0.5})
    store.add_items([new_item(kind="qualification", explanation="*Zero* is best.")])
    store.add_items([new_item(1)])
    client = page_of(store)
    assert "Qualification test" in client.get("/annotate").text
    (assignment,) = store.assign(store.annotators()[0].id)
    right = [[assignment.order.index(completion) + 1] for completion in sorted(assignment.order)]
    outcome = client.answer(client.item_id(), *right).json()["outcome"]
    assert "As expected" in outcome
    assert " › ".join(str(position) for (position,) in right) in outcome
    assert "<em>Zero</em>" in outcome
    assert "You passed the test" in outcome
    assert "Qualification test" not in client.get("/annotate").text


def test_qualification_failed_gives_no_more_items(page_stores: Stores) -> None:
    store = page_stores(qualification={"path": "q.jsonl", "min_accuracy": 1.0})
    store.add_items([new_item(kind="qualification"), new_item(1)])
    client = page_of(store)
    (assignment,) = store.assign(store.annotators()[0].id)
    wrong = [[assignment.order.index(completion) + 1] for completion in sorted(assignment.order, reverse=True)]
    assert "Not quite as expected" in client.answer(client.item_id(), *wrong).json()["outcome"]
    assert "not passed" in client.get("/annotate").text


def test_guideline_for_a_newcomer_is_whole(page_stores: Stores) -> None:
    store = page_stores()
    store.set_guideline("# Rules\n\nBe kind.")
    html = page_of(store).get("/guideline?since=").text
    assert "Be kind." in html
    assert "before you begin" in html
    assert "changed" not in html


def test_guideline_since_an_earlier_version_shows_what_changed(page_stores: Stores) -> None:
    store = page_stores()
    earlier = store.set_guideline("Keep this.\nBe kind.\n")
    store.set_guideline("Keep this.\nBe kind and <b>brief</b>.\n")
    html = page_of(store).get(f"/guideline?since={earlier}").text
    removed, added = re.findall(r"<del.*?</del>", html), re.findall(r"<ins.*?</ins>", html)
    assert len(removed) == len(added) == 1
    assert "Be kind." in removed[0]
    assert "Be kind and &lt;b&gt;brief&lt;/b&gt;." in added[0]


def test_guideline_since_an_unknown_version_is_whole(page_stores: Stores) -> None:
    store = page_stores()
    store.set_guideline("Be kind.")
    assert "Be kind." in page_of(store).get("/guideline?since=unknown").text


def test_item_after_the_guideline_changed_names_the_new_version(page_stores: Stores) -> None:
    store = page_stores()
    store.set_guideline("One.")
    store.add_items([new_item()])
    client = page_of(store)
    client.item_id()
    digest = store.set_guideline("Two.")
    assert f'data-guideline="{digest}"' in client.get("/annotate").text


def test_page_without_guideline_has_no_button_for_it(page_stores: Stores) -> None:
    client = page_of(page_stores())
    assert 'data-action="guideline"' not in client.get("/annotate").text
    assert client.get("/guideline").status_code == 404


def test_item_on_which_people_disagree_asks_why(page_stores: Stores) -> None:
    store = page_stores(overlap=2, max_overlap=3)
    store.add_items([new_item()])
    for name, agree in (("Bob", True), ("Cid", False)):
        judge(store, store.add_annotator(name).annotator.id, agree=agree)
    assert "data-ask-why" in page_of(store).get("/annotate").text


def test_page_shows_five_megabytes_and_odd_characters(page_stores: Stores) -> None:
    store = page_stores()
    texts = ("x" * 5_000_000, "a\ud800b", "nul\0l", "\u202eevil", "e\u0301", "\u00e9")
    store.add_items([NewItem("prompt\ud800\0", tuple(NewCompletion(text) for text in texts))])
    client = page_of(store)
    html = client.get("/annotate").text
    assert len(html) > 5_000_000
    assert client.answer(client.item_id(), *([n] for n in range(1, 7))).status_code == 200
    (item,) = store.snapshot().items
    assert tuple(completion.text for completion in item.completions) == texts


def test_progress_counts_items_and_pace(page_stores: Stores) -> None:
    store = page_stores()
    store.add_items(new_items(3))
    client = page_of(store)
    item = client.item_id()
    client.get(f"/items/next?after={item}")
    html = client.answer(item, [1], [2], [3], [4], seconds=30.0).json()["progress"]
    assert "1 of 3" in html
    assert "30 s each" in html


def test_store_that_fails_is_told_so_that_the_page_repeats(
    page_stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = page_stores()
    store.add_items([new_item()])
    client = page_of(store)
    item = client.item_id()

    def fail(*_: object) -> None:
        from rlhf_cli.errors import DiskError

        raise DiskError("feedback.busy", "locked")

    monkeypatch.setattr(store, "submit", fail)
    assert client.answer(item, [1], [2], [3], [4]).status_code == 503
    monkeypatch.undo()
    assert client.answer(item, [1], [2], [3], [4]).status_code == 200


def test_judgment_of_page_equals_that_of_the_store(page_stores: Stores) -> None:
    """The page's answer is that which the store's own callers give."""
    store = page_stores(overlap=2)
    store.add_items([new_item()])
    client = page_of(store)
    (assignment,) = store.assign(store.annotators()[0].id)
    tiers = [[assignment.order.index(completion) + 1] for completion in sorted(assignment.order)]
    client.answer(assignment.id, *tiers)
    (judgment,) = store.snapshot().judgments
    assert judgment.answer.tiers == agreeing(assignment).tiers
