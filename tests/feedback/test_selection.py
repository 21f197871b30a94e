"""Which prompts are selected: worked by hand, and against numpy."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from rlhf_cli.errors import DataError
from rlhf_cli.feedback.formats.reading import FeedbackSource, open_source
from rlhf_cli.feedback.selection import Selected, read_items, select, uncertainty, write_items
from tests.support.issues import raises_issue


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # two members, two completions: gaps 2 and 0, mean 1, standard deviation 1
        ([[3.0, 1.0], [5.0, 5.0]], 1.0),
        # the second member scores everything 7 higher: no disagreement about the order
        ([[3.0, 1.0], [10.0, 8.0]], 0.0),
        # opposite orders: gaps 1 and -1
        ([[1.0, 0.0], [0.0, 1.0]], 1.0),
        # three completions: pairs (0, 1): 1 and 3, (0, 2): 2 and 2, (1, 2): 1 and -1; deviations 1, 0, 1
        ([[2.0, 1.0, 0.0], [3.0, 0.0, 1.0]], 2 / 3),
        # one member: the mean gap of 1, 3 and 2, negative
        ([[3.0, 2.0, 0.0]], -2.0),
        ([[1.0, 1.0]], 0.0),
    ],
)
def test_uncertainty_is_the_disagreement_about_gaps(scores: list[list[float]], expected: float) -> None:
    assert uncertainty(scores) == pytest.approx(expected, abs=1e-12)


def test_uncertainty_equals_numpy() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 4))
    gaps = np.array([scores[:, i] - scores[:, j] for i, j in combinations(range(4), 2)])  # (pairs, M)
    assert uncertainty(scores.tolist()) == pytest.approx(gaps.std(axis=1).mean(), abs=1e-12)


def test_select_takes_the_most_uncertain_of_those_not_drawn() -> None:
    uncertainties = [float(number) for number in range(100)]
    selected = select(uncertainties, 20, 0.3, seed=3)
    drawn = {one.row for one in selected if one.is_random}
    others = [one.row for one in selected if not one.is_random]
    assert (len(drawn), len(others)) == (6, 14)
    assert others == sorted(sorted({*range(100)} - drawn)[-14:])
    assert [one.row for one in selected] == sorted(one.row for one in selected)


@pytest.mark.parametrize(
    ("count", "share", "drawn"), [(10, 0.3, 3), (11, 0.3, 4), (7, 0.5, 4), (1, 0.3, 1), (10, 1.0, 10)]
)
def test_select_draws_the_random_share_rounded_up(count: int, share: float, drawn: int) -> None:
    selected = select([0.0] * 50, count, share, seed=0)
    assert len(selected) == count
    assert sum(one.is_random for one in selected) == drawn


def test_random_part_does_not_depend_on_the_uncertainties() -> None:
    def drawn(uncertainties: list[float | None], seed: int = 1) -> list[int]:
        return [one.row for one in select(uncertainties, 40, 0.3, seed) if one.is_random]

    rising: list[float | None] = [float(number) for number in range(200)]
    assert drawn(rising) == drawn(rising[::-1]) == drawn([None] * 200)
    assert drawn(rising) != drawn(rising, seed=2)


def test_random_part_is_a_fair_draw() -> None:
    times = np.zeros(20)
    for seed in range(2000):
        for one in select([float(number) for number in range(20)], 10, 0.3, seed):
            times[one.row] += one.is_random
    # Each of 20 prompts is drawn with probability 3/20: 300 ± 16 times of 2000. 5 deviations: 1 of 90,000 such tests.
    assert np.abs(times - 300).max() < 5 * (2000 * 0.15 * 0.85) ** 0.5


def test_select_of_all_keeps_every_prompt() -> None:
    selected = select([1.0, None, 2.0], 10, 0.3, seed=0)
    assert [one.row for one in selected] == [0, 1, 2]
    assert sum(one.is_random for one in selected) == 1


def test_prompts_that_could_not_be_scored_come_last() -> None:
    uncertainties = [None, -5.0, None, -1.0, -3.0]
    (drawn,) = [one.row for one in select(uncertainties, 3, 0.3, seed=0) if one.is_random]
    others = [one.row for one in select(uncertainties, 3, 0.3, seed=0) if not one.is_random]
    assert others == sorted([row for row in (3, 4, 1, 0, 2) if row != drawn][:2])


def source_of(path: Path) -> FeedbackSource:
    """Return the rows of a file."""
    return open_source(str(path), lambda _: path)


def test_written_items_are_read_back_with_their_columns(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"p{i}", "completions": ["a", {"text": "é\ud800", "source": "s"}], "language": "fr", "level": i}
        for i in range(3)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = read_items(source_of(tmp_path / "rows.jsonl"))
    write_items(tmp_path / "out.jsonl", items, [Selected(0, True), Selected(2, False)])
    assert read_items(source_of(tmp_path / "out.jsonl")) == [items[0], replace(items[2], is_random=False)]
    assert items[2].extra == {"level": 2}
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "out.jsonl"}


def test_items_with_judgments_or_an_answer_are_not_selected(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    plain = {"prompt": "p", "completions": ["a", "b"]}
    judged = {**plain, "prompt": "q", "judgments": [{"annotator": "x", "ranking": [0, 1]}]}
    gold = {**plain, "prompt": "r", "answer": [0, 1]}
    path.write_text("".join(json.dumps(row) + "\n" for row in (judged, plain, gold)))
    assert [item.prompt for item in read_items(source_of(path))] == ["p"]
    path.write_text("".join(json.dumps(row) + "\n" for row in (judged, gold)))
    with raises_issue("data.no-rows", error=DataError, location=str(path)):
        read_items(source_of(path))


def test_row_with_one_completion_is_an_issue(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completions": ["b", "c"]}\n{"prompt": "a", "completions": ["b"]}\n')
    with raises_issue("feedback.invalid-item", error=DataError, location=f"{path}:2"):
        read_items(source_of(path))
