"""Snapshots of feedback built in code: by hand, generated with a known truth, and PandaLM's human judgments."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlhf_cli.feedback.types import Annotator, Answer, Completion, Decision, Item, Judgment, Snapshot, Tiers
from tests.support.shared_data import require_shared


class Vote(NamedTuple):
    """One judgment of the pair that an item consists of: 1 if the first completion is better, -1, or 0 for a tie."""

    item: int
    annotator: int
    outcome: int


def pair_item(number: int, *, texts: tuple[str, str] = ("a", "b"), **fields: Any) -> Item:
    """Return an item of two completions with the ids `2 * number` and `2 * number + 1`."""
    completions = (Completion(2 * number, texts[0], "one"), Completion(2 * number + 1, texts[1], "two"))
    return Item(number, f"key{number}", f"prompt {number}", completions, **fields)


def pair_tiers(number: int, outcome: int) -> Tiers:
    """Return the tiers of an answer about `pair_item(number)`."""
    first, second = 2 * number, 2 * number + 1
    return {1: ((first,), (second,)), 0: ((first, second),), -1: ((second,), (first,))}[outcome]


def pair_judgment(number: int, vote: Vote, **fields: Any) -> Judgment:
    """Return the judgment of this vote; `fields` replace those of the judgment and its answer."""
    answer = {name: fields.pop(name) for name in tuple(fields) if name in Answer.__dataclass_fields__}
    answer = {"tiers": pair_tiers(vote.item, vote.outcome), **answer}
    fields = {"order": (2 * vote.item, 2 * vote.item + 1), "task": "pair", **fields}
    return Judgment(number, vote.item, vote.annotator, answer=Answer(**answer), **fields)


def annotators_named(ids: Iterable[int]) -> list[Annotator]:
    """Return annotators with these ids and the pseudonyms annotator-<id>."""
    return [Annotator(number, f"name {number}", f"annotator-{number}") for number in sorted(set(ids))]


def pair_snapshot(
    votes: Sequence[Vote], *, items: Mapping[int, Item] | None = None, decisions: Sequence[Decision] = ()
) -> Snapshot:
    """Return a snapshot of these votes; items that are not given are made by `pair_item`."""
    made = {vote.item: pair_item(vote.item) for vote in votes} | dict(items or {})
    judgments = [pair_judgment(number, vote) for number, vote in enumerate(votes)]
    people = annotators_named(vote.annotator for vote in votes)
    return Snapshot([made[number] for number in sorted(made)], people, judgments, decisions)


def pandalm_rows() -> list[dict[str, Any]]:
    """Return the 999 comparisons of PandaLM's test set, each judged by three people."""
    rows: list[dict[str, Any]] = json.loads(
        require_shared("data", "pandalm", "testset-v1.json").read_text(encoding="utf-8")
    )
    return rows


def pandalm_results() -> list[tuple[str, str, int]]:
    """Return who beats whom in PandaLM's test set: two models and the outcome, for each judgment."""
    outcomes = {1: 1, 2: -1, 0: 0}
    return [
        (*row["cmp_key"].split("_"), outcomes[row[f"annotator{number}"]])
        for row in pandalm_rows()
        for number in (1, 2, 3)
    ]


def pandalm_votes() -> list[Vote]:
    """Return the votes of PandaLM's test set, in the order of items."""
    rows, outcomes = pandalm_rows(), {1: 1, 2: -1, 0: 0}
    return [
        Vote(index, number, outcomes[row[f"annotator{number}"]])
        for index, row in enumerate(rows)
        for number in (1, 2, 3)
    ]


GENERATED = range(10)


def generated_votes(number: int) -> list[Vote]:
    """Return one of ten sets with ties and missing judgments.

    In set 7 there is one annotator, in set 8 all labels are equal, and in set 9 all are ties.
    """
    rng = np.random.default_rng(number)
    people, share, tie_rate = 1 if number == 7 else 2 + number, 0.5 + 0.05 * number, 0.1 * (number % 4)
    truth = rng.choice([1, -1], 80)
    votes = []
    for item in range(80):
        for person in range(people):
            right = rng.random() < 0.6 + 0.3 * person / people
            outcome = int(truth[item] if right else -truth[item]) if rng.random() >= tie_rate else 0
            outcome = {8: 1, 9: 0}.get(number, outcome)
            if person == item % people or rng.random() < share:
                votes.append(Vote(item, person, outcome))
    return votes


class Simulation(NamedTuple):
    """Judgments by simulated annotators, and the outcome that is right for each item."""

    snapshot: Snapshot
    truth: Mapping[int, int]


def simulate(
    seed: int,
    *,
    items: int = 300,
    overlap: int = 3,
    random: Sequence[int] = (1, 4, 7, 10),
    by_length: Sequence[int] = (),
) -> Simulation:
    """Return pairs judged by twelve annotators, who answer a pair rightly with a probability of 0.8.

    Args:
        seed: Seed of all draws.
        items: Number of pairs.
        overlap: Judgments per pair, each by another annotator.
        random: The annotators who answer at random: 4 of 12, the smallest number above 30 %.
        by_length: The annotators who prefer the longer completion, whatever is right.
    """
    rng = np.random.default_rng(seed)
    truth = {number: int(rng.choice([1, -1])) for number in range(items)}
    made, votes, orders = {}, [], []
    for number, right in truth.items():
        lengths = rng.permutation([40, 60])
        made[number] = pair_item(number, texts=("x" * int(lengths[0]), "x" * int(lengths[1])))
        for person in rng.permutation(12)[:overlap].tolist():
            outcome = right if rng.random() < 0.8 else -right
            if person in random:
                outcome = int(rng.choice([1, -1]))
            elif person in by_length:
                outcome = 1 if lengths[0] > lengths[1] else -1
            votes.append(Vote(number, person, outcome))
            orders.append(tuple(int(c) for c in rng.permutation([2 * number, 2 * number + 1])))
    judgments = [pair_judgment(n, vote, order=order) for n, (vote, order) in enumerate(zip(votes, orders, strict=True))]
    return Simulation(Snapshot(list(made.values()), annotators_named(range(12)), judgments), truth)


Ranking = Sequence[int | tuple[int, ...]]


def ranking_snapshot(rankings: Sequence[tuple[int, Ranking]]) -> Snapshot:
    """Return one item of four completions for each annotator and ranking, shown in the order of their indices.

    Args:
        rankings: The annotator, and the indices of the completions from best to worst; a tuple of indices is a tie.
    """
    items, judgments = [], []
    for number, (person, ranking) in enumerate(rankings):
        ids = tuple(range(4 * number, 4 * number + 4))
        items.append(Item(number, f"key{number}", "prompt", tuple(Completion(c, "text") for c in ids)))
        tiers = tuple(tuple(ids[i] for i in (tier if isinstance(tier, tuple) else (tier,))) for tier in ranking)
        judgments.append(Judgment(number, number, person, "rank", Answer(tiers), ids))
    return Snapshot(items, annotators_named(person for person, _ in rankings), judgments)
