"""PandaLM's 999 comparisons by three people: imported, exported by each aggregation, and trained on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rlhf_cli.feedback.formats.importing import import_rows
from rlhf_cli.feedback.formats.reading import open_source
from tests.support.feedback_project import RECIPE, FeedbackProject, read_rows
from tests.support.shared_data import require_shared

DECIDED = 40  # items that an expert decides, the first ones on which the three people disagree
PEOPLE = ("annotator1", "annotator2", "annotator3")

Key = tuple[str, str, str]  # prompt and the two completions, in their order in the file


class World(NamedTuple):
    """The project, and what the file says of each item."""

    project: FeedbackProject
    votes: dict[Key, list[int]]  # of the first comparison of an item: 1 or 2 is better, or 0
    decided: dict[Key, int]


def labels(run: Path) -> dict[Key, int]:
    """Return which completion each exported row prefers."""
    rows = [row for path in sorted((run / "data").glob("*.jsonl")) for row in read_rows(run, path.stem)]
    found: dict[Key, int] = {}
    for row in rows:
        key = (_text(row["prompt"]), _text(row["chosen"]), _text(row["rejected"]))
        found[key] = 1
        found[key[0], key[2], key[1]] = 2
    return found


def _text(value: Any) -> str:
    return str(value[-1]["content"]) if isinstance(value, list) else str(value)


def majority(votes: list[int]) -> int:
    """Return the outcome that more votes are for than for any other, or 0."""
    (best, count), *others = Counter(votes).most_common()
    return 0 if others and others[0][1] == count else best


def is_mirrored(key: Key, world: World) -> bool:
    """Return whether the file compares the same completions in the other order, too, maybe with another outcome."""
    return (key[0], key[2], key[1]) in world.votes


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> World:
    path = require_shared("data", "pandalm", "testset-v1.json")
    folder = tmp_path_factory.mktemp("pandalm")
    (folder / "recipe.yaml").write_text(RECIPE.format(base=tiny_base, store=folder / "feedback.db"))
    project = FeedbackProject(folder)
    with project.store() as store:
        imported = import_rows(store, open_source(str(path), Path, None), skip_invalid=False)
        assert imported.judgments_added == 3 * 999
        snapshot = store.snapshot()
        keys = {
            item.id: (_text(item.prompt), *(_text(completion.text) for completion in item.completions))
            for item in snapshot.items
        }
        votes = _votes(json.loads(path.read_text()), {*keys.values()})
        expert = store.add_annotator("Expert", role="expert").annotator
        decided: dict[Key, int] = {}
        for item in snapshot.items:
            key: Any = keys[item.id]
            if len(decided) < DECIDED and len({*votes[key]}) > 1 and key[1] != key[2] and key[2].strip():
                decided[key] = 2
                first, second = (completion.id for completion in item.completions)
                store.decide(expert.id, item.id, ((second,), (first,)), "as told")
    return World(project, votes, decided)


def _votes(rows: list[dict[str, Any]], keys: set[Any]) -> dict[Key, list[int]]:
    found: dict[Key, list[int]] = {}
    for row in rows:
        prompt = "\n\n".join(part for part in (row["instruction"], row["input"]) if part)
        key = (prompt, str(row["response1"]), str(row["response2"]))
        assert key in keys
        found.setdefault(key, [row[name] for name in PEOPLE])
    assert len(found) == len(keys)
    return found


@pytest.fixture(scope="module")
def exports(world: World) -> dict[str, Path]:
    """Export by each aggregation."""
    settings = ("feedback.eval_fraction=0.2",)
    return {
        name: world.project.run("feedback", f"feedback.aggregate={name}", *settings).path
        for name in ("majority", "dawid-skene", "expert")
    }


def test_majority_export_is_the_majority_of_the_file_or_the_decision(world: World, exports: dict[str, Path]) -> None:
    expected = {key: majority(votes) for key, votes in world.votes.items()} | world.decided
    usable = {key: label for key, label in expected.items() if label and key[1] != key[2] and key[label].strip()}
    found = labels(exports["majority"])
    assert {key: found.get(key) for key in usable if not is_mirrored(key, world)} == {
        key: label for key, label in usable.items() if not is_mirrored(key, world)
    }
    rows = [row for split in ("train", "test") for row in read_rows(exports["majority"], split)]
    assert len(rows) == len(usable)


def test_dawid_skene_export_differs_only_where_people_disagree(world: World, exports: dict[str, Path]) -> None:
    by_majority, by_skill = labels(exports["majority"]), labels(exports["dawid-skene"])
    different = [key for key in world.votes if by_majority.get(key) != by_skill.get(key)]
    assert all(len({*world.votes[key]}) > 1 and key not in world.decided for key in different)
    assert len(by_skill) > 1500


def test_expert_export_holds_the_decisions_only(world: World, exports: dict[str, Path]) -> None:
    found = labels(exports["expert"])
    decided = {key: label for key, label in world.decided.items() if not is_mirrored(key, world)}
    assert {key: found[key] for key in decided} == decided
    rows = [row for split in ("train", "test") for row in read_rows(exports["expert"], split)]
    assert len(rows) == DECIDED
    assert all(row["by_expert"] for row in rows)


def test_export_again_gives_the_same_bytes(world: World, exports: dict[str, Path]) -> None:
    again = world.project.run("feedback", "feedback.eval_fraction=0.2").path
    first = exports["majority"]
    assert again != first
    for path in (first / "data").iterdir():
        assert (again / "data" / path.name).read_bytes() == path.read_bytes()


def test_reward_model_is_evaluated_beside_the_agreement_of_people(world: World, exports: dict[str, Path]) -> None:
    reference = f"team/feedback@{exports['majority'].name}"
    result = world.project.run("reward", f"data.preferences={{run: {reference}}}")
    metrics = result.manifest["metrics"]
    # Of the file: how often one vote is the label that the other two give, if they agree on one.
    compared = [
        (own, rest[0])
        for votes in world.votes.values()
        for index, own in enumerate(votes)
        if len({*(rest := [vote for other, vote in enumerate(votes) if other != index])}) == 1 and rest[0]
    ]
    agreed = sum(1.0 if own == label else 0.5 * (own == 0) for own, label in compared)
    assert metrics["reward.ceiling"] == pytest.approx(agreed / len(compared))
    assert metrics["reward.ceiling.n"] == len(compared)
    assert metrics["reward.accuracy.n"] <= len(read_rows(exports["majority"], "test"))
    assert metrics["reward.accuracy.source.human.n"] == metrics["reward.accuracy.n"]
