"""Blind evaluation: items without the models' names, verdicts of people, and their absence from the training data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_cli.data.rows import PromptRow
from rlhf_cli.feedback.blind import BASELINE, CANDIDATE, MARK, evaluation_items, people_outcomes, without_evaluations
from rlhf_cli.feedback.store import Store
from rlhf_cli.feedback.types import (
    Answer,
    Completion,
    Decision,
    Item,
    Judgment,
    NewCompletion,
    NewItem,
    NewJudgment,
    Snapshot,
    Tiers,
)
from rlhf_cli.recipe.schema import Feedback

FIRST: Tiers = ((0,), (1,))
SECOND: Tiers = ((1,), (0,))
TIE: Tiers = ((0, 1),)
ROWS = [PromptRow(f"p{number}", {"language": "en", "field": None}) for number in range(6)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Open a store with an ordinary item and an evaluation of six prompts, on the last of which both models agree."""
    with Store(str(tmp_path / "f.db"), "x", Feedback()) as made:
        made.add_items([NewItem("other", (NewCompletion("a"), NewCompletion("b")))])
        made.add_items(evaluation_items("k1", ROWS, ["a"] * 6, [*"bbbbb", "a"]))
        yield made


def judge(store: Store, number: int, *answers: Tiers, source: str = "human") -> None:
    """Store one judgment per answer about the item of a prompt; in an answer, 0 is the candidate."""
    item = next(item for item in store.snapshot().items if item.prompt == f"p{number}")
    place = [completion.source for completion in item.completions].index(CANDIDATE)
    for index, answer in enumerate(answers):
        tiers = tuple(tuple(place ^ given for given in tier) for tier in answer)
        name = f"{source} {index}"
        store.record([NewJudgment(item.id, name, "rank", Answer(tiers), source=source)])  # type: ignore[arg-type]


def test_prompts_with_different_completions_become_items(store: Store) -> None:
    items = store.snapshot().items[1:]
    assert [item.prompt for item in items] == ["p0", "p1", "p2", "p3", "p4"]
    assert {(item.language, item.field, item.kind) for item in items} == {("en", "", "item")}


def test_place_of_the_candidate_does_not_tell_which_model_it_is() -> None:
    rows = [PromptRow(f"p{number}", {}) for number in range(100)]
    items = list(evaluation_items("k1", rows, ["a"] * 100, ["b"] * 100))
    assert items == list(evaluation_items("k1", rows, ["a"] * 100, ["b"] * 100))
    first = sum(item.completions[0] == NewCompletion("a", CANDIDATE) for item in items)
    assert 35 <= first <= 65  # 50 plus or minus three standard deviations of 100 fair draws
    assert all({c.text: c.source for c in item.completions} == {"a": CANDIDATE, "b": BASELINE} for item in items)


def test_annotators_do_not_see_which_model_wrote_a_completion(store: Store) -> None:
    annotator = store.add_annotator("ann").annotator
    assigned = store.assign(annotator.id, 6)
    assert {completion.source for one in assigned for completion in one.item.completions} == {""}
    assert all("k1" not in str(one.item.extra) for one in assigned)


def test_verdict_of_people_is_the_sign_of_their_votes(store: Store) -> None:
    judge(store, 0, FIRST, FIRST, SECOND)  # the candidate
    judge(store, 1, SECOND)  # the baseline
    judge(store, 2, FIRST, SECOND)  # even
    judge(store, 3, TIE)
    judge(store, 4, FIRST, source="ai")  # not by people
    assert people_outcomes(store.snapshot(), "k1") == [1.0, -1.0, 0.0, 0.0]
    assert people_outcomes(store.snapshot(), "k2") == []


def test_verdict_is_for_the_candidate_wherever_its_completion_stands() -> None:
    completions = (Completion(1, "b", BASELINE), Completion(2, "a", CANDIDATE))
    item = Item(1, "k", "p", completions, extra={MARK: "k1"})
    judgment = Judgment(1, 1, 1, "rank", Answer(((2,), (1,))), (1, 2))
    assert people_outcomes(Snapshot([item], [], [judgment]), "k1") == [1.0]
    decided = Snapshot([item], [], [judgment], [Decision(1, 1, ((1,), (2,)))])
    assert people_outcomes(decided, "k1") == [-1.0]


def test_decision_of_an_expert_outranks_the_votes(store: Store) -> None:
    judge(store, 0, FIRST, FIRST)
    expert = store.add_annotator("expert", role="expert").annotator
    item = next(item for item in store.snapshot().items if item.prompt == "p0")
    ids = {completion.source: completion.id for completion in item.completions}
    candidate, baseline = ids[CANDIDATE], ids[BASELINE]
    store.decide(expert.id, item.id, ((baseline,), (candidate,)))
    assert people_outcomes(store.snapshot(), "k1") == [-1.0]


def test_evaluations_with_the_same_completions_have_items_of_their_own(store: Store) -> None:
    assert store.add_items(evaluation_items("k2", ROWS, ["a"] * 6, [*"bbbbb", "a"])).added == 5
    assert store.add_items(evaluation_items("k2", ROWS, ["a"] * 6, [*"bbbbb", "a"])).added == 0
    assert store.add_items([NewItem("p0", (NewCompletion(a), NewCompletion(b))) for a, b in ("ab", "ba")]).added == 2


def test_evaluations_are_no_training_data(store: Store) -> None:
    judge(store, 0, FIRST)
    left = without_evaluations(store.snapshot())
    assert [item.prompt for item in left.items] == ["other"]
    assert not left.judgments
