"""Labels of pairs: by majority, by Dawid and Skene, and by experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import pandas as pd
import pytest
from crowdkit.aggregation import MajorityVote

from rlhf_cli.feedback.quality.aggregation import Method, PairLabel, aggregate
from rlhf_cli.feedback.types import Answer, Completion, Decision, Item, Judgment, Snapshot
from tests.support.judgments import (
    GENERATED,
    Vote,
    generated_votes,
    pair_item,
    pair_judgment,
    pair_snapshot,
    pair_tiers,
    pandalm_votes,
    simulate,
)

METHODS: tuple[Method, ...] = get_args(Method)


def outcomes(labels: Sequence[PairLabel]) -> dict[int, int | None]:
    """Return the outcome of each item, or None if it is undecided."""
    return {label.item_id: None if label.is_undecided else label.outcome for label in labels}


def test_aggregate_majority_counts_votes_by_hand() -> None:
    votes = [Vote(1, 1, 1), Vote(1, 2, 1), Vote(1, 3, -1), Vote(2, 1, 0), Vote(2, 2, 0), Vote(3, 1, 1), Vote(3, 2, -1)]
    first, tie, undecided = aggregate(pair_snapshot(votes), "majority")
    assert first == PairLabel(1, 2, 3, 1, False, 3, 2 / 3, 2 / 3, 2 / 3 - 1 / 3, None, False)
    assert (first.chosen, first.rejected) == (2, 3)
    assert tie == PairLabel(2, 4, 5, 0, False, 2, 1.0, 1.0, 0.0, None, False)
    assert undecided == PairLabel(3, 6, 7, 0, True, 2, 0.0, 0.0, 0.0, None, False)
    assert (undecided.chosen, undecided.rejected) == (None, None)


@pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # raised by crowd-kit
def test_aggregate_majority_equals_crowd_kit_on_pandalm() -> None:
    votes = pandalm_votes()
    frame = pd.DataFrame([(v.item, v.annotator, v.outcome) for v in votes], columns=["task", "worker", "label"])
    theirs = MajorityVote().fit_predict(frame)
    ours = outcomes(aggregate(pair_snapshot(votes), "majority"))
    decided = {item: outcome for item, outcome in ours.items() if outcome is not None}
    assert decided == {item: theirs[item] for item in decided}
    split = frame.groupby("task")["label"].nunique() == 3  # one vote for each label
    assert ours.keys() - decided.keys() == set(split[split].index)


@pytest.mark.parametrize("method", METHODS)
def test_aggregate_decision_outranks_all_votes(method: Method) -> None:
    votes = [Vote(1, 1, 1), Vote(1, 2, 1), Vote(1, 3, 1), Vote(2, 1, 1), Vote(2, 2, 1), Vote(2, 3, 0)]
    overruled = Decision(1, 9, pair_tiers(1, 1))
    labels = aggregate(pair_snapshot(votes, decisions=[overruled, Decision(1, 9, pair_tiers(1, -1))]), method)
    assert labels[0] == PairLabel(1, 2, 3, -1, False, 3, 0.0, 1.0, 1.0, None, True)
    assert outcomes(labels[1:]) == ({} if method == "expert" else {2: 1})


@pytest.mark.parametrize("method", METHODS)
def test_aggregate_decision_without_votes_is_a_label(method: Method) -> None:
    snapshot = Snapshot([pair_item(1)], [], [], [Decision(1, 9, pair_tiers(1, 0))])
    assert aggregate(snapshot, method) == [PairLabel(1, 2, 3, 0, False, 0, None, 1.0, 0.0, None, True)]


def test_aggregate_decision_adopted_from_a_best_worst_answer_ties_nothing_if_a_model_ranked_the_item() -> None:
    item = Item(1, "key", "prompt", tuple(Completion(number, "text") for number in (4, 5, 6, 7)))
    picks = Judgment(0, 1, 1, "best-worst", Answer(((7,), (4, 5), (6,))), (4, 5, 6, 7))
    by_model = Judgment(1, 1, 2, "rank", Answer(((4,), (5,), (6,), (7,))), (4, 5, 6, 7), source="ai")
    decision = Decision(1, 9, picks.answer.tiers)
    labels = aggregate(Snapshot([item], [], [picks, by_model], [decision]), "expert")
    assert {label.first for label in labels} | {label.second for label in labels} == {4, 5, 6, 7}
    assert all(label.outcome for label in labels)


@pytest.mark.parametrize("method", METHODS)
def test_aggregate_without_judgments_is_empty(method: Method) -> None:
    assert aggregate(Snapshot([], [], []), method) == []
    assert aggregate(Snapshot([pair_item(1)], [], []), method) == []


def test_aggregate_ranking_labels_every_pair_and_best_worst_leaves_the_middle_open() -> None:
    item = Item(1, "key", "prompt", tuple(Completion(number, "text") for number in (4, 5, 6, 7)))
    ranking = Judgment(0, 1, 1, "rank", Answer(((7,), (4, 5), (6,))), (4, 5, 6, 7))
    picks = replace(ranking, task="best-worst")
    closed, open_ = (aggregate(Snapshot([item], [], [judgment]), "majority") for judgment in (ranking, picks))
    expected = {(4, 5): 0, (4, 6): 1, (4, 7): -1, (5, 6): 1, (5, 7): -1, (6, 7): -1}
    assert {(label.first, label.second): label.outcome for label in closed} == expected
    del expected[4, 5]
    assert {(label.first, label.second): label.outcome for label in open_} == expected


def test_aggregate_counts_ordinary_first_unskipped_judgments_of_the_chosen_people_and_sources() -> None:
    snapshot = pair_snapshot([Vote(1, 1, 1), Vote(2, 2, 1)], items={2: pair_item(2, kind="gold")})
    others = [
        pair_judgment(10, Vote(1, 1, -1), is_repeat=True),
        pair_judgment(11, Vote(1, 3, -1), tiers=(), skip_reason="unclear"),
        pair_judgment(12, Vote(1, 4, -1), source="ai"),
        pair_judgment(13, Vote(1, 5, -1)),
    ]
    snapshot = replace(snapshot, judgments=[*snapshot.judgments, *others])
    (label,) = aggregate(snapshot, "majority", annotators={1, 2, 3, 4})
    assert (label.item_id, label.outcome, label.n_votes) == (1, 1, 1)
    (label,) = aggregate(snapshot, "majority", sources=("human", "ai"))
    assert (label.outcome, label.n_votes) == (-1, 3)


def test_aggregate_strength_is_the_mean_toward_the_chosen_completion() -> None:
    """Strengths are negative if the item's first completion is better; here it has the larger id."""
    item = Item(1, "key", "prompt", (Completion(3, "text"), Completion(2, "text")))
    judgments = [
        pair_judgment(0, Vote(1, 1, -1), strength=-3),
        pair_judgment(1, Vote(1, 2, -1), strength=-1),
        pair_judgment(2, Vote(1, 3, 1), strength=1),
    ]
    (label,) = aggregate(Snapshot([item], [], judgments), "majority")
    assert (label.chosen, label.strength) == (3, 1.0)


@pytest.mark.parametrize("method", ["majority", "dawid-skene"])
@pytest.mark.parametrize("number", GENERATED)
def test_aggregate_swapping_the_completions_swaps_the_labels(number: int, method: Method) -> None:
    votes = generated_votes(number)
    labels = aggregate(pair_snapshot(votes), method)
    swapped = aggregate(pair_snapshot([vote._replace(outcome=-vote.outcome) for vote in votes]), method)
    assert [label.outcome for label in swapped] == [-label.outcome for label in labels]
    assert [label.is_undecided for label in swapped] == [label.is_undecided for label in labels]


@pytest.mark.parametrize("overlap", [2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_aggregate_dawid_skene_beats_majority_if_a_third_answers_at_random(seed: int, overlap: int) -> None:
    snapshot, truth = simulate(seed, overlap=overlap)
    right = {}
    for method in ("majority", "dawid-skene"):
        labels = aggregate(snapshot, method)
        right[method] = sum(label.outcome == truth[label.item_id] for label in labels)
    assert right["dawid-skene"] > right["majority"]


def test_aggregate_dawid_skene_uses_gold_items_to_weigh_annotators() -> None:
    """Of two annotators who always disagree, the one who is right on gold items decides."""
    gold = {number: pair_item(number, kind="gold", answer=pair_tiers(number, 1)) for number in range(20)}
    votes = [vote for number in range(25) for vote in (Vote(number, 1, 1), Vote(number, 2, -1))]
    labels = aggregate(pair_snapshot(votes, items=gold), "dawid-skene")
    assert outcomes(labels) == dict.fromkeys(range(20, 25), 1)
    assert outcomes(aggregate(pair_snapshot(votes), "dawid-skene")) == dict.fromkeys(range(25))
