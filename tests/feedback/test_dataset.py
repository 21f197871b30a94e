"""Judgments become preference pairs: labels, pairs of a ranking, what is left out, splits, and columns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rlhf_cli.data.rows import Message
from rlhf_cli.errors import DataError
from rlhf_cli.feedback.dataset import Dataset, build
from rlhf_cli.feedback.types import Snapshot
from rlhf_cli.recipe.schema import Feedback
from tests.support.issues import raises_issue
from tests.support.snapshots import SnapshotBuilder

USER: Message = {"role": "user", "content": "hi"}


def make(builder: SnapshotBuilder | Snapshot, **settings: Any) -> Dataset:
    snapshot = builder.build() if isinstance(builder, SnapshotBuilder) else builder
    return build(snapshot, Feedback(**{"eval_fraction": 0.0, **settings}))


def pairs(found: Dataset, split: str = "train") -> list[tuple[str, str]]:
    return [(row["chosen"], row["rejected"]) for row in found.splits.get(split, [])]


def ranked() -> SnapshotBuilder:
    """Return four completions that one annotator ranks a > b = c > d."""
    builder = SnapshotBuilder()
    builder.item(completions=("a", "b", "c", "d"))
    builder.judge("ann", 1, [[0], [1, 2], [3]])
    return builder


def test_build_closure_gives_every_ordered_pair_and_counts_ties() -> None:
    found = make(ranked())
    assert pairs(found) == [("a", "b"), ("a", "c"), ("a", "d"), ("b", "d"), ("c", "d")]
    assert found.counts["ties"] == 1
    assert found.counts["pairs"] == 5


def test_build_best_worst_gives_one_pair_of_an_item() -> None:
    found = make(ranked(), pairs="best-worst")
    assert pairs(found) == [("a", "d")]
    assert found.counts["pairs other than best with worst"] == 4


def test_build_best_worst_judgment_does_not_order_the_middle() -> None:
    builder = SnapshotBuilder()
    builder.item(completions=("a", "b", "c", "d"))
    builder.judge("ann", 1, [[2], [0, 1], [3]], task="best-worst")
    found = make(builder)
    assert pairs(found) == [("c", "a"), ("a", "d"), ("c", "b"), ("b", "d"), ("c", "d")]
    assert "ties" not in found.counts


def test_build_majority_follows_the_votes_and_counts_undecided_pairs() -> None:
    builder = SnapshotBuilder()
    builder.item("p", ("a", "b"))
    builder.item("q", ("c", "d"))
    for name, order in (("ann", [[0], [1]]), ("bob", [[0], [1]]), ("eve", [[1], [0]])):
        builder.judge(name, 1, order)
    builder.judge("ann", 2, [[0], [1]])
    builder.judge("bob", 2, [[1], [0]])
    found = make(builder)
    (row,) = found.splits["train"]
    assert (row["chosen"], row["n_votes"], row["agreement"]) == ("a", 3, 0.666667)
    assert found.counts["undecided pairs"] == 1


def test_build_decision_outranks_the_votes() -> None:
    builder = ranked()
    builder.decide("expert", 1, [[3], [0, 1, 2]])
    found = make(builder)
    assert {("d", "a"), ("d", "b"), ("d", "c")} == {*pairs(found)}
    row = found.splits["train"][0]
    assert (row["by_expert"], row["n_votes"], row["agreement"]) == (True, 1, 0.0)
    assert row["judged"] == "2026-02-01T00:00:00Z"
    assert row["groups"] == ["annotator", "expert"]


def test_build_expert_uses_only_items_with_a_decision() -> None:
    builder = ranked()
    builder.item("q", ("e", "f"))
    builder.decide("expert", 2, [[1], [0]])
    assert pairs(make(builder, aggregate="expert", min_votes=3)) == [("f", "e")]


def test_build_leaves_out_pairs_with_few_votes() -> None:
    builder = SnapshotBuilder()
    builder.item("p", ("a", "b"))
    builder.item("q", ("c", "d"))
    for name, item in (("ann", 1), ("bob", 1), ("ann", 2)):
        builder.judge(name, item, [[0], [1]])
    found = make(builder, min_votes=2)
    assert pairs(found) == [("a", "b")]
    assert found.counts["pairs with fewer than 2 votes"] == 1


def test_build_ignores_skipped_repeated_and_gold_judgments() -> None:
    builder = SnapshotBuilder()
    builder.item("p", ("a", "b"))
    builder.item("g", ("c", "d"), kind="gold")
    builder.judge("ann", 1, [[0], [1]])
    builder.judge("ann", 1, [[1], [0]], is_repeat=True)
    builder.judge("bob", 1, [], skip_reason="too long")
    builder.judge("ann", 2, [[1], [0]])
    found = make(builder)
    assert pairs(found) == [("a", "b")]
    assert found.counts == {
        "judgments": 1,
        "skipped judgments": 1,
        "judgments of gold and qualification items": 1,
        "repeated judgments": 1,
        "pairs": 1,
    }


def with_ai() -> SnapshotBuilder:
    """Return one pair that people and a model judge differently, and one that only the model judges."""
    builder = SnapshotBuilder()
    builder.item("p", ("a", "b"))
    builder.item("q", ("c", "d"))
    builder.judge("ann", 1, [[0], [1]])
    for principle in ("honest", "kind"):
        builder.judge("model", 1, [[1], [0]], source="ai", principle=principle)
        builder.judge("model", 2, [[1], [0]], source="ai", principle=principle)
    return builder


def test_build_exports_no_judgments_of_models_unless_asked() -> None:
    found = make(with_ai())
    assert pairs(found) == [("a", "b")]
    assert found.counts["judgments of source ai, not exported"] == 4


def test_build_with_both_sources_keeps_the_people_s_label_of_a_pair() -> None:
    found = make(with_ai(), sources=["human", "ai"])
    assert pairs(found) == [("a", "b"), ("d", "c")]
    people, model = found.splits["train"]
    assert (people["source"], people["principles"], people["n_votes"]) == ("human", [], 1)
    assert (model["source"], model["principles"], model["n_votes"]) == ("ai", ["honest", "kind"], 2)


def test_build_leaves_out_equal_and_empty_completions() -> None:
    builder = SnapshotBuilder()
    builder.item("p", ("a", "a"))
    builder.item("q", (" ", "b"))
    builder.item("r", ("c", ""))
    for item in (1, 2, 3):
        builder.judge("ann", item, [[0], [1]])
    found = make(builder)
    assert pairs(found) == [("c", "")]
    assert found.counts["pairs of equal completions"] == 1
    assert found.counts["pairs with an empty chosen completion"] == 1


def test_build_margin_is_mean_strength_if_every_pair_has_one() -> None:
    builder = SnapshotBuilder()
    builder.item("p", ("a", "b"))
    builder.judge("ann", 1, [[0], [1]], task="pair", strength=-3)
    builder.judge("bob", 1, [[0], [1]], task="pair", strength=-2)
    builder.item("q", ("c", "d"))
    builder.judge("ann", 2, [[1], [0]], task="pair", strength=1)
    found = make(builder)
    assert [row["margin"] for row in found.splits["train"]] == [2.5, 1.0]
    builder.item("r", ("e", "f"))
    builder.judge("ann", 3, [[0], [1]])
    assert all("margin" not in row for row in make(builder).rows)


def test_build_rows_hold_pseudonyms_and_never_names() -> None:
    builder = SnapshotBuilder()
    builder.item("p", ("a", "b"), language="en", field="law", extra={"author": "Ann Miller", "topic": "x"})
    builder.judge("Ann Miller", 1, [[0], [1]])
    (row,) = make(builder).rows
    assert "Ann" not in str(row)
    assert (row["annotators"], row["languages"], row["fields"]) == (["annotator-1"], ["en"], ["law"])
    assert row["extra"] == {"topic": "x"}
    assert row["prompt_id"] == "key-p"


def test_build_conversations_have_messages_as_completions() -> None:
    builder = SnapshotBuilder()
    builder.item([USER], ("a", [{"role": "assistant", "content": "b"}]))
    builder.judge("ann", 1, [[1], [0]])
    (row,) = make(builder).rows
    assert row["prompt"] == [USER]
    assert row["chosen"] == [{"role": "assistant", "content": "b"}]
    assert row["rejected"] == [{"role": "assistant", "content": "a"}]


def test_build_refuses_text_and_conversations_in_one_dataset() -> None:
    builder = ranked()
    builder.item([USER], ("a", "b"))
    builder.judge("ann", 2, [[0], [1]])
    with raises_issue("data.mixed-formats", error=DataError, location="feedback.store"):
        make(builder)


def test_build_replaces_lone_surrogates_and_keeps_other_characters() -> None:
    builder = SnapshotBuilder()
    builder.item("x\ud800y", ("e\u0301\u202e\0", "\u00e9"))
    builder.judge("ann", 1, [[0], [1]])
    (row,) = make(builder).rows
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("x\ufffdy", "e\u0301\u202e\0", "\u00e9")


# --- splits ---------------------------------------------------------------------------------------------------------


def many(count: int = 200, annotators: int = 4) -> SnapshotBuilder:
    """Return items that every annotator judges; two items share each prompt."""
    builder = SnapshotBuilder()
    for number in range(count):
        item = builder.item(f"prompt {number // 2}", (f"a{number}", f"b{number}"))
        for index in range(annotators):
            builder.judge(f"name {index}", item, [[0], [1]])
    return builder


def prompts(found: Dataset, split: str) -> set[str]:
    return {row["prompt"] for row in found.splits.get(split, [])}


def test_build_splits_by_prompt_and_added_items_move_none() -> None:
    found = make(many(), eval_fraction=0.3)
    assert not prompts(found, "train") & prompts(found, "test")
    assert 10 < len(prompts(found, "test")) < 50
    more = make(many(400), eval_fraction=0.3)
    assert prompts(found, "test") <= prompts(more, "test")


def test_build_evaluates_only_items_selected_at_random() -> None:
    builder = many()
    builder.items = [
        replace(item, is_random=item.id % 4 in (1, 2))  # two items of a prompt
        for item in builder.items
    ]
    selected = {str(item.prompt) for item in builder.items if not item.is_random}
    found = make(builder, eval_fraction=0.3)
    assert prompts(found, "test")
    assert not prompts(found, "test") & selected
    assert prompts(found, "train") & selected
    left_out = found.counts["pairs of held-out prompts that were not selected at random"]
    assert left_out == 200 - len(found.rows)


def test_build_holds_out_annotators_with_their_votes_on_prompts_that_are_not_trained_on() -> None:
    builder = many()
    found = make(builder, eval_fraction=0.3, held_out_annotators=0.25)
    single = found.splits["annotators"]
    (held_out,) = {name for row in single for name in row["annotators"]}
    labels = [row for name in ("train", "test") for row in found.splits[name]]
    assert all(held_out not in row["annotators"] and row["n_votes"] == 3 for row in labels)
    assert all(row["n_votes"] == 1 and row["agreement"] is None for row in single)
    assert prompts(found, "annotators") == prompts(found, "test")
    total = found.counts["pairs of held-out annotators on other prompts"] + len(single)
    assert total == 200


def test_build_holds_out_the_same_annotators_if_others_join() -> None:
    def held_out(annotators: int) -> set[str]:
        found = make(many(20, annotators), eval_fraction=0.3, held_out_annotators=0.3)
        return {name for row in found.splits["annotators"] for name in row["annotators"]}

    assert held_out(8) <= held_out(16)


def test_build_twice_gives_equal_rows() -> None:
    first, second = (make(many(), eval_fraction=0.3, held_out_annotators=0.25) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("aggregate", ["majority", "dawid-skene"])
def test_build_unanimous_votes_give_the_same_pairs_by_any_aggregation(aggregate: str) -> None:
    assert pairs(make(many(20), aggregate=aggregate)) == [(f"a{number}", f"b{number}") for number in range(20)]
