"""Sources of which only some rows are used: by the values of their columns, and by age."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhf_cli.data import sources
from rlhf_cli.errors import DataError
from rlhf_cli.recipe.schema import Source
from tests.support.issues import raises_issue

Jsonl = Callable[..., Path]


def pair(number: int, **columns: Any) -> dict[str, Any]:
    return {"prompt": f"p{number}", "chosen": "a", "rejected": "b", **columns}


def numbers(*given: Source) -> list[int]:
    split = sources.load(given, "preferences", seed=0, find=Path)
    assert sources.count(given, "preferences", find=Path) == split.counts
    return sorted(int(str(row.prompt)[1:]) for row in split.train)


def source(path: Path, **fields: Any) -> Source:
    return Source.model_validate({"path": str(path), "eval_fraction": 0.0, **fields})


def test_only_uses_rows_with_the_value_of_a_column(jsonl: Jsonl) -> None:
    path = jsonl(pair(0, source="human"), pair(1, source="ai"), pair(2, source="human"), pair(3))
    assert numbers(source(path, only={"source": "human"})) == [0, 2]
    split = sources.load([source(path, only={"source": "ai"})], "preferences", seed=0, find=Path)
    assert split.counts["read"] == 4
    assert split.counts["dropped: other values than those of `only`"] == 3


def test_only_of_list_column_looks_for_any_item(jsonl: Jsonl) -> None:
    rows = [
        pair(0, languages=["en", "de"]),
        pair(1, languages=["fr"]),
        pair(2, languages=[]),
        pair(3, languages=["de"]),
    ]
    assert numbers(source(jsonl(*rows), only={"languages": ["de", "fr"]})) == [0, 1, 3]


def test_only_with_unknown_column_adds_issue(jsonl: Jsonl) -> None:
    path = jsonl(pair(0, source="human"))
    with raises_issue("data.unknown-column", error=DataError, location=str(path)):
        numbers(source(path, only={"sources": "human"}))


def test_half_life_uses_older_rows_less_often_and_the_newest_always(jsonl: Jsonl) -> None:
    days = ("2026-01-31", "2026-01-21", "2026-01-11")
    rows = [pair(number, judged=f"{days[number % 3]}T00:00:00Z") for number in range(3000)]
    used = numbers(source(jsonl(*rows), half_life_days=10))
    counts = [sum(number % 3 == age for number in used) for age in range(3)]
    # Binomial: 1,000 rows each with probability 1, 1/2 and 1/4; five standard deviations are 79 and 68 rows.
    assert counts[0] == 1000
    assert abs(counts[1] - 500) < 79
    assert abs(counts[2] - 250) < 68


def test_half_life_without_time_adds_issue(jsonl: Jsonl) -> None:
    path = jsonl(pair(0, judged="2026-01-31T00:00:00Z"), pair(1, judged="yesterday"))
    with raises_issue("data.missing-field", error=DataError, location=f"{path}:2"):
        numbers(source(path, half_life_days=10))


def test_weights_by_source_mix_one_dataset_with_itself(jsonl: Jsonl) -> None:
    rows = [pair(number, source="human" if number < 20 else "ai") for number in range(60)]
    path = jsonl(*rows)
    used = numbers(source(path, only={"source": "human"}, weight=2.0), source(path, only={"source": "ai"}, weight=1.0))
    assert _counts(used) == [20, 10]


def _counts(used: Sequence[int]) -> list[int]:
    return [sum(number < 20 for number in used), sum(number >= 20 for number in used)]


def test_sources_of_which_only_one_has_margins_add_issue(jsonl: Jsonl) -> None:
    with_margin = jsonl(pair(0, margin=1.0), name="a.jsonl")
    without = jsonl(pair(1), name="b.jsonl")
    given = [source(with_margin), source(without)]
    with raises_issue("data.missing-margin", error=DataError, location=str(without)):
        sources.load(given, "preferences", seed=0, find=Path)
    assert numbers(source(with_margin, ignore_columns=["margin"]), source(without)) == [0, 1]
