"""Agreement of a judge with people, worked by hand, and the refusal of a judge below the minimum."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_cli.ai_feedback import agreement
from rlhf_cli.errors import DataError
from rlhf_cli.evaluation.statistics import Interval
from rlhf_cli.feedback.types import Annotator, Decision, Snapshot
from rlhf_cli.recipe.schema import Recipe
from tests.support.issues import raises_issue
from tests.support.judges import CONSTITUTION, prefer_longer, scripted_judge
from tests.support.judgments import Vote, pair_item, pair_judgment, pair_tiers

PEOPLE = (1, 2, 3)
HELPFUL, BRIEF = 10, 11  # annotators that are the judge by two principles
VOTES = [
    *(Vote(1, 1, 1), Vote(1, 2, 1), Vote(1, 3, -1), Vote(1, HELPFUL, 1)),  # people 2 to 1: both say the first
    *(Vote(2, 1, -1), Vote(2, HELPFUL, 1)),  # they disagree
    *(Vote(3, 1, 1), Vote(3, 2, -1), Vote(3, HELPFUL, 1)),  # people are even: left out
    *(Vote(4, 1, 1), Vote(4, HELPFUL, 0)),  # the judge has a tie: left out
    *(Vote(5, 1, 1), Vote(5, 2, 1), Vote(5, HELPFUL, -1)),  # the expert overrules people: both say the second
    Vote(6, HELPFUL, 1),  # nobody else
    Vote(7, 1, 0),  # not judged
]


def make_snapshot(votes: list[Vote], **judgment: object) -> Snapshot:
    """Return a snapshot in which annotators from 10 on are models, and an expert prefers the second of item 5."""
    judgments = [
        pair_judgment(number, vote, source="ai" if vote.annotator >= HELPFUL else "human", **judgment)
        for number, vote in enumerate(votes)
    ]
    people = [Annotator(number, f"person {number}", f"annotator-{number}") for number in PEOPLE]
    models = [Annotator(number, f"model {number}", f"model-{number}", source="ai") for number in (HELPFUL, BRIEF)]
    items = [pair_item(number) for number in range(1, 8)]
    return Snapshot(items, [*people, *models], judgments, [Decision(5, 1, pair_tiers(5, -1))])


def test_agreement_counts_the_pairs_that_both_order() -> None:
    found = agreement.measure(make_snapshot(VOTES), {"model 10": 1.0})
    # Items 1 and 5 of 1, 2 and 5. Wilson's interval of 2 of 3 is 0.2077 to 0.9385 (Newcombe's formula, by hand).
    assert found is not None
    assert (found.value, found.n) == (2 / 3, 3)
    assert [found.low, found.high] == pytest.approx([0.2077, 0.9385], abs=1e-4)


def test_agreement_sums_the_votes_of_the_principles_by_weight() -> None:
    votes = [Vote(1, 1, 1), Vote(1, HELPFUL, 1), Vote(1, BRIEF, -1)]
    for weight, expected in ((1.0, 0.0), (3.0, 1.0)):  # 1 - 2 < 0: disagrees; 3 - 2 > 0: agrees
        found = agreement.measure(make_snapshot(votes), {"model 10": weight, "model 11": 2.0})
        assert found is not None
        assert (found.value, found.n) == (expected, 1)


def test_agreement_without_common_pairs_is_none() -> None:
    assert agreement.measure(make_snapshot(VOTES), {"another": 1.0}) is None
    assert agreement.measure(make_snapshot([Vote(1, 1, 1)]), {"model 10": 1.0}) is None


def test_agreement_ignores_repeats() -> None:
    assert (
        agreement.measure(make_snapshot([Vote(1, 1, 1), Vote(1, HELPFUL, 1)], is_repeat=True), {"model 10": 1}) is None
    )


def test_agreement_with_people_who_skipped_is_none() -> None:
    votes = [Vote(1, 1, 1), Vote(1, HELPFUL, 1)]
    skipped = make_snapshot(votes, tiers=(), skip_reason="not my field")
    assert agreement.measure(skipped, {"model 10": 1.0}) is None


def test_judge_below_the_minimum_is_refused() -> None:
    found = Interval(0.6, 0.5, 0.7, 90)
    agreement.check(found, 0.6, "m")
    agreement.check(found, None, "m")
    agreement.check(None, None, "m")
    with raises_issue(
        "feedback.judge-below-agreement", error=DataError, location="feedback.judge.min_agreement"
    ) as issues:
        agreement.check(found, 0.61, "m")
    assert issues[0].message == "m: agrees with people on 60% [50, 70] of 90 pairs, expected at least 61%."


def test_judge_without_common_pairs_is_refused_if_there_is_a_minimum() -> None:
    with raises_issue("feedback.judge-not-measured", error=DataError, location="feedback.judge.min_agreement"):
        agreement.check(None, 0.0, "m")


def test_export_with_judgments_of_models_is_refused_below_the_minimum(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONSTITUTION)
    judge = {"constitution": str(tmp_path / "c.yaml"), "model": "base", "min_agreement": 0.7}
    feedback = {"sources": ["human", "ai"], "judge": judge}
    recipe = Recipe.model_validate({"name": "x", "base": {"model": "m"}, "feedback": feedback})
    with raises_issue("feedback.judge-below-agreement", error=DataError):
        agreement.check_export(make_snapshot(VOTES), recipe)  # 2 of 3
    found = agreement.check_export(make_snapshot(VOTES[:4]), recipe)
    assert found is not None
    assert (found.value, found.n) == (1.0, 1)


def test_judge_without_a_store_is_unknown_and_creates_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLHF_FEEDBACK_STORE", raising=False)
    store = tmp_path / "feedback.db"
    judge = {"constitution": "c.yaml", "model": "base"}
    values = {"name": "x", "base": {"model": "m"}, "feedback": {"store": str(store), "judge": judge}}
    assert agreement.check_judge(scripted_judge(prefer_longer), Recipe.model_validate(values)) is None
    assert not store.exists()
    values["feedback"] = {"store": str(store), "judge": {**judge, "min_agreement": 0.5}}
    with raises_issue("feedback.judge-not-measured"):
        agreement.check_judge(scripted_judge(prefer_longer), Recipe.model_validate(values))
