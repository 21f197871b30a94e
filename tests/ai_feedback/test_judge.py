"""The judge with scripted answers: orders, ties, rankings and weights, each worked by hand."""

from __future__ import annotations

import pytest

from rlhf_cli.ai_feedback.judge import Pair, Verdict, all_pairs, consistency, tiers_of
from rlhf_cli.data.rows import Message
from tests.support.judges import prefer_longer, scripted_judge, shown

PAIR = Pair("p", "long text", "short")


def test_verdict_that_is_the_same_in_both_orders_decides() -> None:
    judge = scripted_judge(prefer_longer)
    principle = judge.constitution.principles[0]
    # "long text" has 4 characters more than "short": +4 shown first, and -4 shown second, from which the sign is taken.
    assert judge.compare([PAIR, Pair("p", "x", "xyz")], principle) == [Verdict(4.0, 4.0), Verdict(-2.0, -2.0)]
    assert [v.outcome for v in judge.compare([PAIR, Pair("p", "x", "xyz")], principle) if v] == [1, -1]


def test_verdict_that_changes_with_the_order_is_a_tie() -> None:
    # The answer A in both orders says once the first and once the second completion.
    (verdict,) = scripted_judge(lambda _: 2.5).compare([PAIR], scripted_judge(prefer_longer).constitution.principles[0])
    assert verdict == Verdict(2.5, -2.5)
    assert (verdict.outcome, verdict.is_consistent) == (0, False)


@pytest.mark.parametrize("answer", [1.0, -1.0])
def test_judge_that_always_gives_the_same_letter_finds_only_ties(answer: float) -> None:
    judge = scripted_judge(lambda _: answer, helpful=1, brief=2)
    means, verdicts = judge.outcomes(all_pairs("p", ["a", "bb", "ccc", "dddd"]))
    assert means == [0.0] * 6
    assert consistency(verdicts) == 0.0
    assert tiers_of(4, verdicts[:6]) == ((0, 1, 2, 3),)


def test_consistency_is_the_fraction_of_verdicts_that_both_orders_give() -> None:
    verdicts = [Verdict(1, 1), Verdict(-1, -3), Verdict(0, 0), Verdict(1, -1), Verdict(1, 0)]
    assert consistency(verdicts) == 3 / 5


def test_outcome_is_the_weighted_mean_over_principles() -> None:
    judge = scripted_judge(lambda q: prefer_longer(q) * (1 if "By long" in q else -1), long=3, short=1)
    means, _ = judge.outcomes([PAIR, Pair("p", "same", "size")])
    assert means == [(3 * 1 + 1 * -1) / 4, 0.0]


def test_tiers_count_wins_and_half_ties() -> None:
    # a > b, a > c, b = c: wins 2, 0.5, 0.5.
    assert tiers_of(3, [Verdict(1, 1), Verdict(1, 1), Verdict(1, -1)]) == ((0,), (1, 2))
    # c > a, c > b, a = b
    assert tiers_of(3, [Verdict(1, -1), Verdict(-1, -1), Verdict(-1, -1)]) == ((2,), (0, 1))


def test_tiers_of_a_cycle_are_one_tie() -> None:
    # a > b, c > a, b > c: one win each.
    assert tiers_of(3, [Verdict(1, 1), Verdict(-1, -1), Verdict(1, 1)]) == ((0, 1, 2),)


def test_tiers_of_a_transitive_judge_are_its_order() -> None:
    judge = scripted_judge(prefer_longer)
    completions = ["bb", "dddd", "a", "ccc"]
    verdicts = judge.compare(all_pairs("p", completions), judge.constitution.principles[0])
    assert tiers_of(4, [v for v in verdicts if v]) == ((1,), (3,), (0,), (2,))


def test_rating_is_the_weighted_mean_of_the_log_odds() -> None:
    judge = scripted_judge(lambda q: 2.0 if "By helpful" in q else -6.0, helpful=3, brief=1)
    assert judge.rate(["p", "q"], ["a", "b"]) == [0.0, 0.0]  # (3 × 2 - 1 × 6) / 4
    assert scripted_judge(lambda _: 1.5, helpful=3, brief=1).rate(["p"], ["a"]) == [1.5]


def test_question_that_does_not_fit_gives_no_verdict() -> None:
    judge = scripted_judge(lambda question: None if "long" in question else 1.0)
    pairs = [PAIR, Pair("p", "a", "b")]
    assert judge.compare(pairs, judge.constitution.principles[0]) == [None, Verdict(1, -1)]
    assert judge.outcomes(pairs)[0] == [None, 0.0]
    assert judge.rate(["p", "p"], ["long", "b"]) == [None, 1.0]


def test_conversation_is_shown_with_the_roles_of_its_turns() -> None:
    prompt = [Message(role="system", content="Be kind."), Message(role="user", content="Hi {there}")]
    texts: list[str] = []
    judge = scripted_judge(lambda q: texts.append(q) or 0.0)  # type: ignore[func-returns-value]
    completions = [[Message(role="assistant", content=text)] for text in ("yes", "no {0}")]
    judge.compare([Pair(prompt, *completions)], judge.constitution.principles[0])
    assert "System: Be kind.\n\nUser: Hi {there}" in texts[0]
    assert [shown(text) for text in texts] == [("yes", "no {0}"), ("no {0}", "yes")]


def test_name_of_the_annotator_changes_with_the_text_of_the_principle_only() -> None:
    judge, other = scripted_judge(prefer_longer, helpful=1), scripted_judge(prefer_longer, helpful=2)
    (principle,) = judge.constitution.principles
    name = judge.annotator_name(principle)
    assert name.startswith("scripted/helpful ")
    assert other.annotator_name(other.constitution.principles[0]) == name
    assert judge.annotator_name(principle.replace(text="Another one.")) != name
