"""The quality report: who is careless or biased, what is not defined, and no number that would be false."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import evalica
import pandas as pd
import pytest

from rlhf_cli.evaluation.feedback_metrics import QUALITY_METRICS
from rlhf_cli.evaluation.statistics import Interval, wilson
from rlhf_cli.feedback.quality.report import QualityReport, measure_quality
from rlhf_cli.feedback.quality.tables import report_markdown, report_tables
from rlhf_cli.feedback.types import Judgment, Snapshot, comparisons
from tests.support.judgments import (
    GENERATED,
    Vote,
    annotators_named,
    generated_votes,
    pair_item,
    pair_judgment,
    pair_snapshot,
    pair_tiers,
    pandalm_votes,
    ranking_snapshot,
    simulate,
)
from tests.support.metric_names import undescribed

RANDOM = (1, 4, 7, 10)


def ranking(report: QualityReport) -> list[str]:
    return [annotator.pseudonym for annotator in report.annotators]


def values_of(report: QualityReport, number: int) -> dict[str, Any]:
    (annotator,) = (one for one in report.annotators if one.id == number)
    return dict(annotator.values)


@pytest.mark.parametrize("seed", range(4))
def test_report_ranks_annotators_who_answer_at_random_last(seed: int) -> None:
    report = measure_quality(simulate(seed, items=800, overlap=4, random=RANDOM).snapshot)
    assert set(ranking(report)[-4:]) == {f"annotator-{number}" for number in RANDOM}
    accused = {warning.split()[0] for warning in report.warnings if "coin" in warning}
    assert accused <= {f"annotator-{number}" for number in RANDOM}
    assert len(accused) >= 3


@pytest.mark.parametrize("seed", range(4))
def test_report_finds_the_annotator_who_follows_length(seed: int) -> None:
    report = measure_quality(simulate(seed, by_length=(3,)).snapshot)
    found = [warning for warning in report.warnings if "longer completion" in warning]
    assert [warning.split()[0] for warning in found] == ["annotator-3"]
    interval = values_of(report, 3)["longer_wins"]
    assert interval.value == 1.0


def test_report_of_careful_annotators_has_no_warning() -> None:
    report = measure_quality(simulate(11, items=400, overlap=4, random=()).snapshot)
    assert list(report.warnings) == []


def test_report_on_pandalm_equals_evalica() -> None:
    votes = pandalm_votes()
    report = measure_quality(pair_snapshot(votes), overlap=2)  # all count: three judged every item, agreed or not
    frame = pd.DataFrame(votes).pivot_table(index="annotator", columns="item", values="outcome")
    metrics = report.metrics()
    assert metrics["feedback.alpha"] == pytest.approx(evalica.alpha(frame, "nominal").alpha, abs=1e-9)
    assert (metrics["feedback.alpha.n"], metrics["feedback.judgments"]) == (999, 2997)
    assert metrics["feedback.alpha.low"] < metrics["feedback.alpha"] < metrics["feedback.alpha.high"]


def test_report_agreement_leaves_out_judgments_that_disagreement_caused() -> None:
    """Of 40 items, two annotators agree on 20. The other 20 get three more judgments, which all say the same."""
    votes = [Vote(item, person, 1) for item in range(20) for person in (1, 2)]
    votes += [Vote(item, person, -1 if person == 1 else 1) for item in range(20, 40) for person in (1, 2, 3, 4, 5)]
    snapshot = pair_snapshot(votes)
    assert measure_quality(snapshot, overlap=2).metrics()["feedback.agreement"] == 0.5
    # All judgments: the 20 disputed items agree in 6 of 10 pairs of annotators.
    assert measure_quality(snapshot).metrics()["feedback.agreement"] == pytest.approx((20 + 20 * 0.6) / 40)


def test_report_of_one_annotator_defines_no_agreement() -> None:
    report = measure_quality(pair_snapshot(generated_votes(7)))
    assert {f"feedback.{name}" for name in ("agreement", "alpha", "ac1", "ac2", "kappa")} <= report.undefined().keys()
    assert {"agreement", "skill"} <= {name.rpartition(".")[2] for name in report.undefined() if "annotator-0" in name}
    assert "feedback.alpha" not in report.metrics()


def test_report_of_constant_labels_defines_no_chance_corrected_metric() -> None:
    for number in (8, 9):  # all first, all ties
        report = measure_quality(pair_snapshot(generated_votes(number)))
        assert {f"feedback.{name}" for name in ("alpha", "ac1", "ac2", "kappa")} <= report.undefined().keys()
        assert report.metrics()["feedback.agreement"] == 1.0
        assert not [name for name in report.metrics() if name.endswith(".skill")]
    assert report.metrics()["feedback.tie_rate"] == 1.0
    assert all("answered every pair with a tie" in warning for warning in report.warnings)


def test_report_of_empty_store_defines_nothing_but_counts() -> None:
    report = measure_quality(Snapshot([], [], []))
    assert report.metrics() == dict.fromkeys(
        (f"feedback.{name}" for name in ("judgments", "items", "items_judged_twice", "annotators")), 0.0
    )
    assert all(report.undefined().values())
    assert report_markdown(report)


def test_report_values_of_an_annotator_by_hand() -> None:
    gold = {number: pair_item(number, kind="gold", answer=pair_tiers(number, 1)) for number in (1, 2, 3, 4)}
    made: list[Judgment] = []

    def judge(vote: Vote, **fields: Any) -> None:
        made.append(pair_judgment(len(made), vote, **fields))

    for number, outcome, seconds in ((1, 1, 10.0), (2, 1, 30.0), (3, 1, 20.0), (4, 0, 0.0)):  # three of four right
        judge(Vote(number, 1, outcome), seconds=seconds)
    judge(Vote(5, 1, 1), order=(10, 11), flags={10: ("private",)})  # shown first wins
    judge(Vote(6, 1, 1), order=(13, 12), flags={0: ("private", "broken")})  # shown last wins
    judge(Vote(5, 1, 1), is_repeat=True)  # the same
    judge(Vote(6, 1, -1), is_repeat=True)  # another
    judge(Vote(7, 1, 0), tiers=(), skip_reason="unclear")
    judge(Vote(5, 2, 1), order=())  # order not known
    items = gold | {5: pair_item(5, texts=("long", "s")), 6: pair_item(6, texts=("s", "long")), 7: pair_item(7)}
    report = measure_quality(Snapshot(list(items.values()), annotators_named([1, 2]), made))
    values = values_of(report, 1)
    assert (values["judgments"], values["skipped"], values["seconds"]) == (8, 1, 20.0)
    assert values["gold_accuracy"] == wilson(3, 4)
    assert values["consistency"] == wilson(1, 2)
    assert values["first_shown_wins"] == wilson(1, 2)
    assert values["longer_wins"] == wilson(1, 2)
    assert values["agreement"] == wilson(1, 1)
    assert (values["flag_rate.private"].value, values["flag_rate.private"].n) == (2 / 9, 9)
    assert values["flag_rate.broken"].value == 1 / 9
    assert report.metrics()["feedback.first_shown_wins.n"] == 2
    assert report.metrics()["feedback.judgments"] == 3  # votes on ordinary items


def test_report_bias_of_pairs_has_the_wilson_interval_of_the_pairs() -> None:
    """78 % [70, 85] of 120 pairs: the longer one wins 94 of 120."""
    items = {number: pair_item(number, texts=("long text", "short")) for number in range(120)}
    votes = [Vote(number, 1, 1 if number < 94 else -1) for number in range(120)]
    report = measure_quality(pair_snapshot(votes, items=items))
    assert values_of(report, 1)["longer_wins"] == wilson(94, 120)
    assert "annotator-1 prefers the longer completion: 78% [70, 85] of 120 pairs." in report.warnings


def test_report_bias_of_rankings_counts_dependent_pairs_less() -> None:
    """Rankings in the order shown or in its reverse: all six pairs of a ranking say the same, so 60 are like 10."""
    forward = ranking_snapshot([(1, (0, 1, 2, 3))] * 5 + [(1, (3, 2, 1, 0))] * 5)
    interval = values_of(measure_quality(forward), 1)["first_shown_wins"]
    assert interval == Interval(0.5, *wilson(5, 10)[1:3], 60)


def test_report_bias_without_exception_counts_items() -> None:
    """Five rankings in the order shown: all 30 pairs say the same, and the interval is that of five items."""
    snapshot = ranking_snapshot([(1, (0, 1, 2, 3))] * 5)
    interval = values_of(measure_quality(snapshot), 1)["first_shown_wins"]
    assert interval == Interval(1.0, *wilson(5, 5)[1:3], 30)


def test_report_weighted_agreement_of_guessing_is_one_half() -> None:
    """An annotator's own votes must not count as evidence for themselves, or guessing would look right."""
    report = measure_quality(simulate(0, items=600, overlap=2, random=RANDOM).snapshot)
    guessed = [values_of(report, number)["weighted_agreement"] for number in RANDOM]
    # 400 pairs: the standard error is 0.025 at most. Counting own votes, it would be about 0.6.
    assert sum(value.value for value in guessed) / 4 == pytest.approx(0.5, abs=0.05)


def test_report_slices_under_thirty_items_are_suppressed() -> None:
    languages = {number: "en" if number < 30 else "de" for number in range(59)}
    items = {number: pair_item(number, language=language) for number, language in languages.items()}
    votes = [Vote(number, person, 1 if (number + person) % 3 else -1) for number in range(59) for person in (1, 2)]
    report = measure_quality(pair_snapshot(votes, items=items))
    assert set(report.slices) == {"language.en"}
    assert dict(report.suppressed) == {"language.de": 29}
    assert report.metrics()["feedback.alpha.language.en.n"] == 30
    alone = measure_quality(pair_snapshot([vote for vote in votes if vote.item < 30], items=items))
    assert report.metrics()["feedback.alpha.language.en"] == pytest.approx(alone.metrics()["feedback.alpha"])


@pytest.mark.parametrize("name", ["criterion.helpful", "strength"])
def test_report_alpha_of_ratings_and_strengths_is_ordinal(name: str) -> None:
    judgments: list[Judgment] = []
    for number in range(40):
        for person in (1, 2):
            rating = 1 + (number + (person == 2 and number % 4 == 0)) % 5
            fields = {"criteria": {2 * number: {"helpful": rating}}, "strength": rating - 3}
            judgments.append(pair_judgment(len(judgments), Vote(number, person, 1), **fields))
    snapshot = replace(pair_snapshot([Vote(number, 1, 1) for number in range(40)]), judgments=judgments)
    report = measure_quality(replace(snapshot, annotators=annotators_named([1, 2])))
    ratings = [[j.answer.criteria[2 * j.item_id]["helpful"] for j in judgments if j.annotator_id == p] for p in (1, 2)]
    expected = evalica.alpha(pd.DataFrame(ratings), "ordinal").alpha
    assert report.metrics()[f"feedback.alpha.{name}"] == pytest.approx(expected, abs=1e-9)


def test_report_models_are_ordered_by_strength() -> None:
    votes = [Vote(number, 1, 1 if number < 30 else -1) for number in range(40)]
    strong, weak = measure_quality(pair_snapshot(votes)).models
    assert (strong.model, strong.win_rate) == ("one", wilson(30, 40))
    assert strong.strength == pytest.approx(3**0.5)  # 30 wins to 10: the ratio is 3
    assert weak.strength == pytest.approx(3**-0.5)


@pytest.mark.parametrize("number", GENERATED)
def test_report_metrics_are_described_and_tables_fit_their_headers(number: int) -> None:
    report = measure_quality(pair_snapshot(generated_votes(number)))
    assert undescribed(report.metrics(), QUALITY_METRICS) == []
    for table in report_tables(report):
        assert {len(row) for row in table.rows} <= {len(table.header)}


def test_votes_of_rankings_equal_comparisons() -> None:
    """The fast count of votes and the definition of an answer's pairs agree, also on open middle tiers."""
    from rlhf_cli.feedback.quality.votes import count_votes

    snapshot = ranking_snapshot([(1, (2, 0, 1, 3)), (2, ((3, 1), 0, 2)), (3, (3, (1, 0), 2)), (4, ((0, 1, 2, 3),))])
    for task in ("rank", "best-worst"):
        judgments = [replace(judgment, task=task) for judgment in snapshot.judgments]
        votes = count_votes(judgments)
        found = {
            (int(votes.judgment[i]), *votes.pairs[votes.pair[i], 1:].tolist(), int(votes.label[i]) - 1)
            for i in range(len(votes.label))
        }
        assert found == {
            (index, *pair)
            for index, judgment in enumerate(judgments)
            for pair in comparisons(judgment.answer.tiers, judgment.task)
        }
