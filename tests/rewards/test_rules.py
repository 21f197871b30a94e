"""Built-in rules: 1 for an answer that keeps the rule, 0 for one that does not."""

from __future__ import annotations

import pytest

from rlhf_cli.data.rows import PromptRow
from rlhf_cli.recipe.schema import RewardSource, Rule
from rlhf_cli.rewards import build
from rlhf_cli.rewards.rules import RuleScorer


def judged(rule: dict[str, object], *texts: str, tokens: list[int] | None = None) -> list[float]:
    lengths = tokens or [3] * len(texts)
    given = build.Completions([PromptRow("p", {})] * len(texts), [[4]] * len(texts), [[5] * n for n in lengths], texts)
    return RuleScorer(Rule.model_validate(rule)).score(given, max_tokens=0)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"min": 2, "max": 3}, [0, 1, 1, 0]),
        ({"min": 3}, [0, 0, 1, 1]),
        ({"max": 2}, [1, 1, 0, 0]),
    ],
)
def test_length_is_counted_in_tokens_and_both_bounds_are_within(bounds: dict[str, int], expected: list[int]) -> None:
    assert judged({"length": bounds}, "x", "x", "x", "x", tokens=[1, 2, 3, 4]) == expected


def test_a_pattern_is_searched_for_anywhere_in_the_answer() -> None:
    assert judged({"pattern": r"\bthank"}, "No, thank you.", "unthankful", "Thank you") == [1, 0, 0]
    assert judged({"pattern": r"(?i)^thank"}, "Thank you", "No, thank you.") == [1, 0]


def test_forbidden_words_are_whole_words_in_any_case() -> None:
    texts = ("Damn it", "DAMNED", "a dam", "goddamn", "", "damn")
    assert judged({"forbidden": ["damn", "dam"]}, *texts) == [0, 1, 0, 1, 1, 0]


def test_a_forbidden_phrase_may_be_broken_and_hold_signs() -> None:
    rule = {"forbidden": ["as an AI", "C++", "(x)"]}
    assert judged(rule, "As  an\nai, I", "I use C++.", "f(x)", "f (x)", "as an AIM", "C+") == [0, 0, 1, 0, 1, 1]


def test_a_message_is_judged_by_what_it_says() -> None:
    said = [{"role": "assistant", "content": "fine"}]
    given = build.Completions([PromptRow([{"role": "user", "content": "bad"}], {})], [[4]], [[5]], [said])
    assert RuleScorer(Rule(forbidden=["bad"])).score(given, max_tokens=0) == [1.0]


def test_rules_are_named_for_what_they_look_at() -> None:
    rules = [{"length": {"min": 1}}, {"pattern": "x"}, {"forbidden": ["x"]}, {"pattern": "y"}]
    terms = build.terms([RewardSource.model_validate({"rule": rule}) for rule in rules])
    assert [term.name for term in terms] == ["length", "pattern", "forbidden", "pattern_2"]
