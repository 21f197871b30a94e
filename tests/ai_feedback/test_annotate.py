"""`annotate judge`: rankings in the real store, by scripted judges and by an endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_cli.ai_feedback.annotate import judge_items
from rlhf_cli.ai_feedback.judge import consistency
from rlhf_cli.feedback.store import Store, open_store
from rlhf_cli.feedback.types import Answer, NewCompletion, NewItem, NewJudgment, Tiers
from rlhf_cli.recipe.schema import Feedback
from tests.support.command import Rlhf, rlhf
from tests.support.judges import CONSTITUTION, ScriptedAnswerer, chat_server, prefer_longer, scripted_judge
from tests.support.recipe_files import load_recipe
from tests.support.reward_server import Server

__all__ = ["rlhf"]  # a fixture


def make_item(number: int, *texts: str, **fields: object) -> NewItem:
    """Return an item with these completions."""
    return NewItem(f"prompt {number}", tuple(NewCompletion(text) for text in texts), **fields)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Open a store with 20 items of three completions, the second of which is the longest, and a gold item."""
    with Store(str(tmp_path / "feedback.db"), "x", Feedback()) as made:
        made.add_items(make_item(number, "bb", f"cccc {number}", "a") for number in range(20))
        made.add_items([make_item(99, "x", "y", kind="gold", answer=((0,), (1,)))])
        yield made


def rankings(store: Store) -> list[tuple[str, Tiers]]:
    """Return the principle and the ranking of each stored judgment, as indices of the completions."""
    snapshot = store.snapshot()
    items = {item.id: [completion.id for completion in item.completions] for item in snapshot.items}
    return [
        (j.principle, tuple(tuple(items[j.item_id].index(i) for i in tier) for tier in j.answer.tiers))
        for j in snapshot.judgments
    ]


def test_items_are_ranked_by_every_principle_and_stored_as_ai(store: Store) -> None:
    judge = scripted_judge(prefer_longer, helpful=3, brief=1)
    found = judge_items(store, judge)
    assert (found.judged, found.existing, found.too_long, consistency(found.verdicts)) == (40, 0, 0, 1.0)
    assert rankings(store) == [(name, ((1,), (0,), (2,))) for name in ("helpful", "brief") for _ in range(20)]
    snapshot = store.snapshot()
    assert {judgment.source for judgment in snapshot.judgments} == {"ai"}
    assert [annotator.source for annotator in snapshot.annotators] == ["ai", "ai"]
    assert {annotator.name for annotator in snapshot.annotators} == set(judge.weights)


def test_judge_that_always_says_a_gives_only_ties(store: Store) -> None:
    found = judge_items(store, scripted_judge(lambda _: 1.0))
    assert {tiers for _, tiers in rankings(store)} == {((0, 1, 2),)}
    assert consistency(found.verdicts) == 0.0


def test_items_that_are_ranked_already_are_not_asked_again(store: Store) -> None:
    judge_items(store, scripted_judge(prefer_longer))
    store.add_items([make_item(50, "a", "bb")])
    judge = scripted_judge(prefer_longer)
    assert judge_items(store, judge)[:3] == (1, 20, 0)
    assert isinstance(judge.answerer, ScriptedAnswerer)
    assert judge.answerer.asked == 2  # one pair in both orders
    assert len(store.snapshot().judgments) == 21


def test_stopped_judge_resumes_after_the_stored_items(store: Store) -> None:
    judge = scripted_judge(prefer_longer)

    def stop(done: int, total: int) -> None:
        assert (done, total) == (16, 20)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge_items(store, judge, stop)
    assert len(rankings(store)) == 16
    steps: list[tuple[int, int]] = []
    assert judge_items(store, judge, lambda done, total: steps.append((done, total)))[:2] == (4, 16)
    assert steps == [(4, 4)]
    assert len(rankings(store)) == 20


def test_item_beyond_the_context_of_the_judge_is_left_open(store: Store) -> None:
    judge = scripted_judge(lambda question: None if "cccc 7\n" in question else prefer_longer(question))
    assert judge_items(store, judge)[:3] == (19, 0, 1)
    assert len(rankings(store)) == 19


def test_judge_with_another_principle_ranks_anew(store: Store) -> None:
    judge_items(store, scripted_judge(prefer_longer, helpful=1))
    judge = scripted_judge(prefer_longer, helpful=1)
    (principle,) = judge.constitution.principles
    judge.constitution = judge.constitution.replace(principles=[principle.replace(text="By another text.")])
    assert judge_items(store, judge)[:2] == (20, 0)


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """Write a recipe whose judge is behind an endpoint at the URL of `--set`, and a constitution."""
    (tmp_path / "c.yaml").write_text(CONSTITUTION)
    path = tmp_path / "r.yaml"
    judge = "judge: {constitution: c.yaml, http: 'http://127.0.0.1:9/v1', http_model: org/m}"
    path.write_text(f"name: x\nbase: {{model: org/base}}\nfeedback: {{store: f.db, {judge}}}\n")
    return path


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Start an endpoint whose model prefers longer responses."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with chat_server(prefer_longer).running() as made:
        yield made


def add_judged_items(recipe_file: Path) -> None:
    """Add four pairs whose second completion is longer; a person prefers it in the first three."""
    with open_store(load_recipe(recipe_file, stages=[])) as store:
        store.add_items(make_item(number, "short", "longer one") for number in range(4))
        for number in range(4):
            tiers = ((1,), (0,)) if number < 3 else ((0,), (1,))
            item = make_item(number, "short", "longer one")
            store.record([NewJudgment(item, "ann", "rank", Answer(tiers))])


def test_command_judges_and_reports_the_agreement_with_people(recipe_file: Path, rlhf: Rlhf, chat: Server) -> None:
    add_judged_items(recipe_file)
    url = f"feedback.judge.http={chat.url.removesuffix('/score')}/v1"
    found = rlhf("annotate", "judge", "-r", recipe_file, "--set", url, "--json")
    assert found.code == 0, found.err
    assert [found.json[name] for name in ("judged", "existing", "too_long", "position_consistency")] == [8, 0, 0, 1.0]
    # 3 of 4; Wilson's interval is 0.3006 to 0.9544 (Newcombe 1998, eq. 4, by hand).
    expected = {"value": 0.75, "low": pytest.approx(0.3006, abs=1e-4), "high": pytest.approx(0.9544, abs=1e-4), "n": 4}
    assert found.json["agreement"] == {"helpful": expected, "brief": expected, "all": expected}
    again = rlhf("annotate", "judge", "-r", recipe_file, "--set", url)
    assert again.code == 0, again.err
    assert "org/m: 0 rankings, 8 stored before" in again.out
    assert "75.0%" in again.out
    assert len(chat.requests) == 4 * 2 * 2  # pairs, orders and principles, once


def test_command_without_a_judge_is_refused(recipe_file: Path, rlhf: Rlhf) -> None:
    found = rlhf("annotate", "judge", "-r", recipe_file, "--set", "feedback.judge=null")
    assert (found.code, found.codes) == (2, ["recipe.missing-key"])
