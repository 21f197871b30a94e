"""Which rows are held out: by prompt, whatever the seed, the order and the other rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_cli.data.rows import PromptRow, Text
from rlhf_cli.data.splits import select_shortest
from rlhf_cli.recipe.schema import Source
from tests.support.datasets import load_file, load_sources, make_demonstrations, sorted_prompts

Jsonl = Callable[..., Path]


def test_load_rows_of_one_prompt_are_held_out_together(jsonl: Jsonl) -> None:
    pairs = [
        {"prompt": f"p{n % 40}" + (" " if n > 40 else ""), "chosen": f"a{n}", "rejected": f"b{n}"} for n in range(120)
    ]
    split = load_file(jsonl(*pairs), "preferences", eval_fraction=0.3)
    held_out = {row.prompt.strip() for row in split.held_out}
    assert held_out
    assert len(split.held_out) == 3 * len(held_out)
    assert not held_out & {row.prompt.strip() for row in split.train}
    assert split.counts == {"read": 120, "train": len(split.train), "held out": len(split.held_out)}
    assert len(split.train) + len(split.held_out) == 120


@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_load_holds_out_about_the_fraction(jsonl: Jsonl, fraction: float) -> None:
    held_out = len(load_file(jsonl(*make_demonstrations(4000)), eval_fraction=fraction).held_out)
    deviation = (4000 * fraction * (1 - fraction)) ** 0.5  # standard deviation of a binomial count of 4,000
    assert abs(held_out - 4000 * fraction) < 4 * deviation


def test_load_other_seed_or_order_holds_out_same_prompts(jsonl: Jsonl) -> None:
    rows = make_demonstrations(60)
    source = Source(path=str(jsonl(*rows)), eval_fraction=0.2)
    first = load_sources([source])
    other_seed = load_sources([source], seed=1)
    jsonl(*reversed(rows))
    other_order = load_sources([source])
    assert [row.prompt for row in other_seed.held_out] == [row.prompt for row in first.held_out]
    assert sorted_prompts(other_order.held_out) == sorted_prompts(first.held_out)


def test_load_more_rows_keeps_prompts_on_their_side(jsonl: Jsonl) -> None:
    few = load_file(jsonl(*make_demonstrations(60)), eval_fraction=0.2)
    many = load_file(jsonl(*make_demonstrations(300)), eval_fraction=0.2)
    assert set(sorted_prompts(few.held_out)) < set(sorted_prompts(many.held_out))
    assert set(sorted_prompts(few.train)) < set(sorted_prompts(many.train))


def test_load_holds_out_the_same_prompts_as_earlier_versions(jsonl: Jsonl) -> None:
    held_out = load_file(jsonl(*make_demonstrations(60)), eval_fraction=0.1).held_out
    assert sorted_prompts(held_out) == ["p2", "p7", "p11", "p12", "p41", "p45", "p49"]


@pytest.mark.parametrize(
    ("count", "fraction", "held_out"), [(2, 1e-9, 1), (1, 1e-9, 0), (1, 1 - 1e-9, 0), (10, 0, 0), (10, 1 - 1e-9, 9)]
)
def test_load_two_prompts_or_more_leaves_one_on_each_side(
    jsonl: Jsonl, count: int, fraction: float, held_out: int
) -> None:
    assert len(load_file(jsonl(*make_demonstrations(count)), eval_fraction=fraction).held_out) == held_out


def test_load_text_is_held_out_by_row(jsonl: Jsonl) -> None:
    path = jsonl(*[{"text": f"story {n}"} for n in range(20)])
    held_out = [row.text for row in load_file(path, "pretrain", eval_fraction=0.3).held_out]
    assert 0 < len(held_out) < 20
    assert [row.completion for row in load_file(path, eval_fraction=0.3).held_out] == held_out


def test_load_prompt_of_eval_split_is_dropped_from_training(jsonl: Jsonl, tmp_path: Path) -> None:
    jsonl(*make_demonstrations(3), name="train.jsonl")
    jsonl(*make_demonstrations(1), name="test.jsonl")
    split = load_file(tmp_path, eval_fraction=None, eval_split="test")
    assert sorted_prompts(split.train) == ["p1", "p2"]
    assert split.counts["dropped: prompt is held out elsewhere"] == 1


def test_load_repeated_prompts_are_used_once(jsonl: Jsonl) -> None:
    split = load_file(jsonl({"prompt": "a"}, {"prompt": "b"}, {"prompt": "a", "n": 1}), "prompts")
    assert sorted_prompts(split.train) == ["a", "b"]
    assert split.counts == {"read": 3, "dropped: prompt seen before": 1, "train": 2, "held out": 0}


def test_load_repeated_prompt_keeps_its_first_row(jsonl: Jsonl) -> None:
    split = load_file(jsonl({"prompt": "a", "n": 0}, {"prompt": " a\n", "n": 1}), "prompts")
    assert [row.extra for row in split.train] == [{"n": 0}]


def test_load_mixture_shares_no_prompt_across_sides(jsonl: Jsonl) -> None:
    one = jsonl(*make_demonstrations(40), name="one.jsonl")
    two = jsonl(*make_demonstrations(60), name="two.jsonl")
    split = load_sources([Source(path=str(one), eval_fraction=0.1), Source(path=str(two), eval_fraction=0.4)])
    assert split.counts["dropped: prompt is held out elsewhere"]
    assert not set(sorted_prompts(split.held_out)) & set(sorted_prompts(split.train))


def test_load_question_in_several_forms_is_on_one_side(jsonl: Jsonl) -> None:
    rng = random.Random(0)
    words = ["cat", "sky", "two", "why", "red", "old", "sum", "is"]
    questions = [f"{' '.join(rng.choices(words, k=5))} {number}?" for number in range(400)]
    forms: list[Callable[[str], object]] = [
        lambda text: text,
        lambda text: f" {text}\n",
        lambda text: [{"role": "user", "content": text}],
        lambda text: [{"role": "user", "content": f"\t{text} "}],
        lambda text: [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}],
    ]
    train: set[str] = set()
    held_out: set[str] = set()
    for form in forms:
        split = load_file(jsonl(*[{"prompt": form(text)} for text in questions]), "prompts", eval_fraction=0.3)
        train |= {_question(row.prompt) for row in split.train}
        held_out |= {_question(row.prompt) for row in split.held_out}
    assert train | held_out == set(questions)
    assert len(train & held_out) == 0


def _question(prompt: Text) -> str:
    return (prompt if isinstance(prompt, str) else prompt[-1]["content"]).strip()


@pytest.mark.parametrize(("count", "warns"), [(60, True), (4000, False)])
def test_load_share_far_from_the_fraction_logs_warning(
    jsonl: Jsonl, count: int, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    split = load_file(jsonl(*make_demonstrations(count)), eval_fraction=0.05)
    assert (abs(len(split.held_out) - 0.05 * count) > 0.025 * count) is warns
    assert any(record.levelname == "WARNING" for record in caplog.records) is warns


def test_select_shortest_prefers_rows_with_a_prompt_of_their_own() -> None:
    rows = [PromptRow("a long prompt", {}), PromptRow("short", {}), PromptRow("short", {}), PromptRow("middle", {})]
    assert select_shortest(rows, 2) == [rows[1], rows[3]]
    assert select_shortest(rows, 3) == [rows[0], rows[1], rows[3]]
    assert select_shortest(rows, 9) == rows
