"""The demo's simulated annotators answer through a real store: the test refuses one, an expert decides the held-out."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest

from rlhf_cli.data.rows import Message
from rlhf_cli.data.splits import prompt_hash, prompt_key, split_by_hash
from rlhf_cli.feedback.store import open_store
from rlhf_cli.feedback.types import Completion, Item, Judgment, NewCompletion, NewItem, Snapshot
from tests.support.recipe_files import load_recipe

DEMO = Path(__file__).parents[2] / "recipes" / "demo"
HELD_OUT = 0.3  # the feedback.eval_fraction of the recipe
LONG = "Well, let me think about that for a while. I could talk about this all day long."


@pytest.fixture(scope="module")
def annotators() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("test_demo_annotators_script", DEMO / "annotators.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(DEMO))  # the script imports truth.py from its folder
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(DEMO))
        sys.modules.pop("truth", None)


def make_items() -> list[NewItem]:
    """Return the gold items as ordinary ones: their completions cover all flaws, and their right answers are known."""
    rows = [json.loads(line) for line in (DEMO / "data" / "gold.jsonl").read_text().splitlines()]
    return [
        NewItem([*row["prompt"]], tuple(NewCompletion(one["text"]) for one in row["completions"]), extra={"row": index})
        for index, row in enumerate(rows)
    ]


class Rounds(NamedTuple):
    """A round, and what the digest was after it and after another one on the same items."""

    snapshot: Snapshot
    digests: list[str]
    report: str


@pytest.fixture(scope="module")
def rounds(annotators: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Rounds:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_FEEDBACK_STORE", str(tmp_path_factory.mktemp("store") / "feedback.db"))
        with open_store(load_recipe(DEMO / "recipe.yaml")) as store:
            store.add_items(make_items())
            annotators.run_round(store, list(annotators.PEOPLE))
            snapshot, digests = store.snapshot(), [store.digest()]
            report = annotators.run_round(store, list(annotators.PEOPLE))
            return Rounds(snapshot, [*digests, store.digest()], report)


def judgments_of(snapshot: Snapshot, name: str) -> list[Judgment]:
    """Return an annotator's first judgments of ordinary items."""
    (number,) = [one.id for one in snapshot.annotators if one.name == name]
    kinds = {item.id: item.kind for item in snapshot.items}
    found = [one for one in snapshot.judgments if one.annotator_id == number and kinds[one.item_id] == "item"]
    return [one for one in found if not one.is_repeat]


def test_round_gives_every_item_three_judgments_and_a_second_one_adds_nothing(rounds: Rounds) -> None:
    people = [one.name for one in rounds.snapshot.annotators]
    votes = Counter(one.item_id for name in people for one in judgments_of(rounds.snapshot, name))
    assert set(votes.values()) == {3}
    assert len(votes) == len(make_items())
    assert rounds.digests[0] == rounds.digests[1]
    assert rounds.report.startswith("up to date: ")


def test_annotator_who_guesses_fails_the_test_and_judges_no_item(rounds: Rounds) -> None:
    judged = {one.name: len(judgments_of(rounds.snapshot, one.name)) for one in rounds.snapshot.annotators}
    assert judged.pop("gus") == judged.pop("olga") == 0
    assert min(judged.values()) > 0


def test_careless_annotator_ranks_completions_as_they_are_shown(rounds: Rounds) -> None:
    for judgment in judgments_of(rounds.snapshot, "finn"):
        assert judgment.answer.tiers == tuple((number,) for number in judgment.order)


def test_expert_decides_the_held_out_prompts_by_the_truth(rounds: Rounds) -> None:
    rows = [json.loads(line) for line in (DEMO / "data" / "gold.jsonl").read_text().splitlines()]
    answers = {row["prompt"][0]["content"]: row["answer"] for row in rows}
    items = {item.id: item for item in rounds.snapshot.items}
    assert 0 < len(rounds.snapshot.decisions) < len(make_items()) / 2
    for decision in rounds.snapshot.decisions:
        item = items[decision.item_id]
        index = {completion.id: number for number, completion in enumerate(item.completions)}
        tiers = [sorted(index[number] for number in tier) for tier in decision.tiers]
        assert isinstance(item.prompt, list)
        assert tiers == answers[item.prompt[0]["content"]]
    keys = [prompt_key(item) for item in items.values() if item.kind == "item"]
    hashes = np.array([int.from_bytes(prompt_hash(key), "big") for key in keys], dtype=np.uint64)
    held_out = {keys[index] for index in split_by_hash(hashes, HELD_OUT).held_out}  # as the export splits
    assert {prompt_key(items[one.item_id]) for one in rounds.snapshot.decisions} == held_out


def test_biases_change_the_rank_of_the_completions_that_they_concern(annotators: ModuleType) -> None:
    question = [Message(role="user", content="What colour is the fox?")]
    texts = ("The fox is red.", "The fox is green.", "You fool. The fox is red.", f"The fox is red. {LONG}")
    item = Item(1, "", question, tuple(Completion(number, text) for number, text in enumerate(texts)))
    ranks = {bias: annotators.rank(item, bias) for bias in ("", "long", "facts", "tone")}
    assert ranks[""] == ((0,), (2, 3), (1,))  # scores 1, 0.5, 0.5, 0.2
    assert ranks["long"][0] == (3,)
    assert ranks["facts"][0] == (0, 1)
    assert ranks["tone"][0] == (0, 2)
