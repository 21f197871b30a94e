"""The stage feedback: versions of preference data from the store, which the reward stage reads."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_cli.errors import DataError
from rlhf_cli.evaluation.metrics import find_metric
from rlhf_cli.pipeline import preflight
from rlhf_cli.pipeline.dry_run import preview
from rlhf_cli.pipeline.runner import run_chain
from rlhf_cli.recipe.validation import named_stages
from rlhf_cli.runs import layout, lineage
from rlhf_cli.runs.manifest import read_manifest
from tests.support.feedback_project import FeedbackProject, make_judgments, read_rows
from tests.support.issues import raises_issue


def files(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "data").iterdir()}


def test_export_twice_writes_the_same_bytes(feedback_project: FeedbackProject) -> None:
    feedback_project.record(make_judgments(20))
    first, second = (feedback_project.run("feedback").path for _ in range(2))
    assert first != second
    assert files(first) == files(second)
    assert {*files(first)} == {"train.jsonl", "test.jsonl", "README.md"}


def test_export_is_up_to_date_until_a_judgment_is_added(feedback_project: FeedbackProject) -> None:
    feedback_project.record(make_judgments(20))
    first = feedback_project.run("feedback")
    assert feedback_project.run("feedback", "feedback.overlap=5", skip_if_done=True).skipped
    feedback_project.record(make_judgments(1, ["Cem"]))
    second = feedback_project.run("feedback", skip_if_done=True)
    assert not second.skipped
    assert not feedback_project.run("feedback", "feedback.pairs=best-worst", skip_if_done=True).skipped
    assert (first.manifest["metrics"]["feedback.judgments"], second.manifest["metrics"]["feedback.judgments"]) == (
        40,
        41,
    )


def test_export_without_judgments_says_what_to_do(feedback_project: FeedbackProject) -> None:
    with raises_issue("feedback.no-judgments", error=DataError, location="feedback.store") as issues:
        feedback_project.run("feedback")
    assert "rlhf annotate serve" in issues[0].hint
    assert not (feedback_project.folder / "feedback.db").exists()
    assert not list(layout.all_runs(feedback_project.runs_dir))


def test_export_without_pairs_lists_the_reasons(feedback_project: FeedbackProject) -> None:
    feedback_project.record(make_judgments(20))
    with raises_issue("feedback.no-pairs", error=DataError, location="feedback") as issues:
        feedback_project.run("feedback", "feedback.min_votes=3")
    assert "pairs with fewer than 3 votes 20" in issues[0].message


def test_export_interrupted_leaves_no_version(
    feedback_project: FeedbackProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    feedback_project.record(make_judgments(20))
    first = feedback_project.run("feedback")
    monkeypatch.setattr("rlhf_cli.feedback.data_card.format_card", interrupt)
    with raises_issue("run.stopped"):
        feedback_project.run("feedback")
    assert layout.newest(feedback_project.runs_dir, "team", "feedback", smoke=False) == layout.read_entry(first.path)
    assert (feedback_project.runs_dir / "team/feedback/latest").resolve() == first.path
    half = feedback_project.runs_dir / "team/feedback/v0002"
    assert (half / "data/train.jsonl").exists()
    assert read_manifest(half) is None


def test_dry_run_shows_counts_and_the_first_pair(feedback_project: FeedbackProject) -> None:
    feedback_project.record(make_judgments(20))
    shown = preview("feedback", feedback_project.load(), feedback_project.runs_dir, smoke=False)
    assert shown["facts"]["pairs"] == 20
    assert shown["facts"]["rows train"] + shown["facts"]["rows test"] == 20
    assert '"chosen": " yes"' in shown["example"]
    assert not list(layout.all_runs(feedback_project.runs_dir))


def test_reward_trains_on_the_exported_version(feedback_project: FeedbackProject) -> None:
    feedback_project.record(make_judgments(40))
    exported = feedback_project.run("feedback")
    result = feedback_project.run("reward")
    (source,) = [item for item in result.manifest["inputs"] if item["role"] == "data.preferences"]
    assert (source["path"], source["version"]) == (str(exported.path), "v0001")
    assert result.manifest["metrics"]["reward.accuracy.n"] == len(read_rows(exported.path, "test"))


def test_smoke_run_without_store_uses_random_pairs_that_say_so(feedback_project: FeedbackProject) -> None:
    result = feedback_project.run("reward", smoke=True)
    (exported,) = layout.versions(feedback_project.runs_dir, "team", "feedback")
    assert {row["source"] for row in read_rows(exported.path)} == {"smoke"}
    assert "nobody made them" in (exported.path / "data/README.md").read_text()
    assert exported.manifest is not None
    assert exported.manifest["smoke"] is True
    assert result.manifest["smoke"] is True


def test_check_reports_an_empty_store_before_any_stage_runs(feedback_project: FeedbackProject) -> None:
    recipe = feedback_project.load(stages=["feedback", "reward"])
    with raises_issue("feedback.no-judgments", error=DataError, location="feedback.store") as issues:
        preflight.check(recipe, ["feedback", "reward"], feedback_project.runs_dir, thorough=True)
    assert "name them" in issues[0].hint
    preflight.check(recipe, ["feedback", "reward"], feedback_project.runs_dir, thorough=True, smoke=True)
    preflight.check(recipe, ["feedback", "reward"], feedback_project.runs_dir)  # a project that has just begun


def test_chain_exports_before_it_trains_and_skips_both_again(feedback_project: FeedbackProject) -> None:
    feedback_project.record(make_judgments(40))
    recipe = feedback_project.load()
    stages = named_stages(recipe)
    assert stages == ["feedback", "reward"]
    preflight.check(recipe, stages, feedback_project.runs_dir)

    def run() -> list[bool]:
        results = run_chain(recipe, stages, feedback_project.runs_dir, smoke=False, reporter=feedback_project.reporter)
        return [result.skipped for result in results]

    assert run() == [False, False]
    assert run() == [True, True]
    feedback_project.record(make_judgments(1, ["Cem"]))
    assert run() == [False, False]


def test_earlier_versions_are_mixed_by_weight(feedback_project: FeedbackProject) -> None:
    feedback_project.record(make_judgments(40))
    feedback_project.run("feedback")
    feedback_project.record(make_judgments(60))
    feedback_project.run("feedback")
    mixture = "data.preferences=[{run: feedback@latest, weight: 3}, {run: feedback@v0001, weight: 1}]"
    result = feedback_project.run("reward", mixture)
    versions = [item["version"] for item in result.manifest["inputs"] if item["role"] == "data.preferences"]
    assert versions == ["v0002", "v0001"]


def test_lineage_names_annotators_and_guideline(feedback_project: FeedbackProject) -> None:
    guideline = "Prefer short replies."
    sha = hashlib.sha256(guideline.encode()).hexdigest()
    with feedback_project.store() as store:
        assert store.set_guideline(guideline) == sha
    feedback_project.record(replace(judgment, guideline=sha) for judgment in make_judgments(20))
    feedback_project.run("feedback")
    run = layout.read_entry(feedback_project.run("reward").path)
    (exported,) = [one for one in lineage.ancestors(run) if one.role == "data.preferences"]
    assert exported.detail == f"2 annotators, guideline {sha[:12]} (40 judgments)"
    assert [one.role for one in lineage.ancestors(run) if one.depth == 1] == ["store"]
    card = (feedback_project.runs_dir / "team/feedback/v0001/data/README.md").read_text()
    assert f"| `{sha}` | 40 |" in card
    assert "Ann" not in card.replace("Annotators", "")


def test_export_leaks_no_name_of_an_annotator(feedback_project: FeedbackProject) -> None:
    feedback_project.record(make_judgments(20, ["Zebulon Quist", "Xanthippe"], extra={"author": "Zebulon Quist"}))
    run = feedback_project.run("feedback").path
    text = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert b"Zebulon" not in text
    assert b"Xanthippe" not in text


def test_slices_and_held_out_annotators_reach_the_reward_model_s_evaluation(
    feedback_project: FeedbackProject,
) -> None:
    feedback_project.record(make_judgments(120, ["Ann", "Bob", "Cem"], language="en"))
    overrides = ("feedback.held_out_annotators=0.3", "feedback.eval_fraction=0.5")
    run = feedback_project.run("feedback", *overrides).path
    metrics = feedback_project.run("reward").manifest["metrics"]
    labels, votes = read_rows(run, "test"), read_rows(run, "annotators")
    assert metrics["reward.accuracy.n"] == metrics["reward.accuracy.language.en.n"] == len(labels) > 30
    assert metrics["reward.accuracy.held_out_annotators.n"] == len(votes) > 0
    assert metrics["reward.ceiling"] == 1
    evaluation = ("eval.candidate=base", "eval.baseline=null", "eval.reward=reward")
    gate = "eval.gates=[{metric: reward.accuracy.language.en, min: 0}]"
    evaluated = feedback_project.run("eval", *evaluation, gate).manifest
    assert [one["passed"] for one in evaluated["gates"]] == [True]
    for name in ("reward.accuracy", "reward.accuracy.held_out_annotators", "reward.ceiling"):
        assert evaluated["metrics"][name] == metrics[name]
    assert "a person on 100%" in evaluated["verdict"]["text"]
    with raises_issue("eval.unknown-metric", location="eval.gates.0.metric"):  # too few rows for a slice
        feedback_project.run("eval", *evaluation, gate, "eval.samples=20")


def test_metrics_of_export_are_described_and_those_of_qc(feedback_project: FeedbackProject) -> None:
    feedback_project.record(make_judgments(40))
    metrics = feedback_project.run("feedback").manifest["metrics"]
    assert [name for name in metrics if find_metric(name) is None] == []
    assert (metrics["feedback.pairs"], metrics["feedback.ties"], metrics["feedback.annotators"]) == (40, 0, 2)
    assert (metrics["feedback.agreement"], metrics["feedback.label_agreement"]) == (1, 1)
    assert not [name for name in metrics if name.startswith("feedback.annotator.")]
    card = (feedback_project.runs_dir / "team/feedback/v0001/data/README.md").read_text()
    assert "| `feedback.agreement` | 1 | 1 to 1 | 40 |" in card
