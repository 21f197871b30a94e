"""The judge as a reward source of ppo and in eval, and its refusal below `min_agreement`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.errors import DataError
from rlhf_cli.evaluation.statistics import wilson
from rlhf_cli.feedback.store import open_store
from rlhf_cli.feedback.types import Answer, NewCompletion, NewItem, NewJudgment
from rlhf_cli.pipeline.judge import judge_of_recipe
from tests.support.issues import raises_issue
from tests.support.judges import CONSTITUTION, chat_server, prefer_longer
from tests.support.reward_server import Server
from tests.support.training_project import TrainingProject, training_project

__all__ = ["training_project"]  # a fixture


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Start an endpoint whose model prefers longer responses, and always says that a response follows a principle."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = chat_server(lambda question: prefer_longer(question) if "[Response A]" in question else 1.0)
    with server.running() as made:
        yield made


@pytest.fixture
def project(training_project: TrainingProject) -> TrainingProject:
    """Return the project with a constitution."""
    (training_project.folder / "c.yaml").write_text(CONSTITUTION)
    return training_project


def judge_settings(project: TrainingProject, **fields: Any) -> str:
    """Return the override with a judge."""
    judge = {"constitution": str(project.folder / "c.yaml"), **fields}
    return f"feedback={json.dumps({'store': str(project.folder / 'f.db'), 'judge': judge})}"


def endpoint(chat: Server) -> dict[str, str]:
    """Return the fields of a judge behind the endpoint."""
    return {"http": chat.url.removesuffix("/score") + "/v1", "http_model": "org/m"}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a .jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_ppo_is_rewarded_by_the_log_odds_of_a_local_judge(project: TrainingProject) -> None:
    judge = judge_settings(project, model="base")
    result = project.train("ppo", judge, "ppo.reward=[{judge: true}]")
    (step,) = read_lines(result.path / "metrics.jsonl")
    loaded = judge_of_recipe(project.load("ppo", judge), project.runs_dir)
    loaded.answerer.load(smoke=False)
    samples = read_lines(result.path / "samples.jsonl")
    rated = loaded.rate([row["prompt"] for row in samples], [row["response"] for row in samples])
    assert [row["reward"] for row in samples] == pytest.approx(rated, abs=1e-5)
    assert math.isfinite(step["score.judge"])
    roles = {item["role"] for item in result.manifest["inputs"]}
    assert {"base", "judge.constitution"} <= roles


def test_ppo_with_an_endpoint_gets_one_for_yes(project: TrainingProject, chat: Server) -> None:
    result = project.train("ppo", judge_settings(project, **endpoint(chat)), "ppo.reward=[{judge: true, weight: 2}]")
    (step,) = read_lines(result.path / "metrics.jsonl")
    assert step["score.judge"] == 1.0  # both principles say Yes
    assert "[Response]\n\n[End" in chat.requests[0]["messages"][0]["content"]  # an empty one, before weights are loaded


def test_eval_counts_the_verdicts_of_the_judge_like_other_win_rates(project: TrainingProject, chat: Server) -> None:
    project.train("ppo")
    judge = judge_settings(project, **endpoint(chat))
    overrides = ("eval={candidate: ppo, baseline: base, reward: null, judge: true, max_new_tokens: 6, samples: 12}",)
    result = project.train("eval", judge, *overrides, "data.prompts.eval_fraction=0.5")
    lengths = [(len(row["candidate"]), len(row["baseline"])) for row in read_lines(result.path / "samples.jsonl")]
    wins = sum(a > b for a, b in lengths) + 0.5 * sum(a == b for a, b in lengths)
    metrics = result.manifest["metrics"]
    assert [metrics[f"judge.win_rate{suffix}"] for suffix in ("", ".low", ".high", ".n")] == list(
        wilson(wins, len(lengths))
    )
    # Equal lengths get the answer B in both orders, which is the only inconsistency of this judge.
    assert metrics["judge.position_consistency"] == sum(a != b for a, b in lengths) / len(lengths)
    text = (result.path / "report.md").read_text()
    assert "by the judge org/m (agreement with people not measured)" in text
    assert "judge.win_rate" in text


def test_judge_below_the_minimum_is_refused_before_ppo_trains(project: TrainingProject, chat: Server) -> None:
    judge = judge_settings(project, **endpoint(chat), min_agreement=0.9)
    recipe = project.load("ppo", judge, "ppo.reward=[{judge: true}]")
    asked = judge_of_recipe(recipe, project.runs_dir)
    with open_store(recipe) as store:
        for number, (people, model) in enumerate([((0,), (0,)), ((0,), (1,))]):  # agrees on one of two
            item = NewItem(f"p{number}", (NewCompletion("a"), NewCompletion("b")))
            store.add_items([item])
            store.record([NewJudgment(item, "ann", "rank", Answer((people, (1,))))])
            tiers = (model, (1 - model[0],))
            for principle in asked.constitution.principles:
                name = asked.annotator_name(principle)
                store.record([NewJudgment(item, name, "rank", Answer(tiers), source="ai", principle=principle.id)])
    with raises_issue("feedback.judge-below-agreement", error=DataError, location="feedback.judge.min_agreement"):
        project.train("ppo", judge, "ppo.reward=[{judge: true}]")
    lower = judge_settings(project, **endpoint(chat), min_agreement=0.5)
    result = project.train("ppo", lower, "ppo.reward=[{judge: true}]")
    assert "judge org/m: agrees with people on 50% [9, 91] of 2 pairs" in (result.path / "log.txt").read_text()


def test_export_with_a_judge_below_the_minimum_is_refused(project: TrainingProject) -> None:
    judge = {"constitution": str(project.folder / "c.yaml"), "model": "base", "min_agreement": 0.9}
    feedback = {"store": str(project.folder / "f.db"), "sources": ["human", "ai"], "judge": judge}
    with open_store(project.load("feedback", f"feedback={json.dumps(feedback)}")) as store:
        for number in range(40):
            item = NewItem(f"p{number}", (NewCompletion("a"), NewCompletion("b")))
            store.add_items([item])
            store.record([NewJudgment(item, "ann", "rank", Answer(((0,), (1,))))])
            tiers = ((0,), (1,)) if number < 32 else ((1,), (0,))  # agrees on 80%
            store.record([NewJudgment(item, "m/helpful", "rank", Answer(tiers), source="ai", principle="helpful")])
    with raises_issue("feedback.judge-below-agreement", error=DataError):
        project.train("feedback", f"feedback={json.dumps(feedback)}")
    feedback["judge"] = {**judge, "min_agreement": 0.8}
    result = project.train("feedback", f"feedback={json.dumps(feedback)}")
    assert "agrees with people on 80% [65, 90] of 40 pairs" in (result.path / "log.txt").read_text()


def test_smoke_run_asks_the_tiny_base_model(project: TrainingProject) -> None:
    from rlhf_cli.pipeline.runner import run_stage

    judge = judge_settings(project, model="org/not-cached", min_agreement=0.9)
    recipe = project.load("ppo", judge, "ppo.reward=[{judge: true}]")
    result = run_stage("ppo", recipe, project.runs_dir, smoke=True, reporter=project.reporter)
    assert math.isfinite(result.manifest["metrics"]["ppo.score.judge"])


def test_blind_evaluation_asks_people_and_reads_their_verdicts_back(project: TrainingProject) -> None:
    project.train("sft", "sft.learning_rate=0.05")  # so that the completions differ
    settings = (
        f"feedback.store={project.folder / 'f.db'}",
        "eval={candidate: sft, baseline: base, reward: null, blind: true, max_new_tokens: 6}",
        "data.prompts.eval_fraction=0.5",
    )
    first = project.train("eval", *settings)
    assert "people.win_rate" not in first.manifest["metrics"]
    with open_store(project.load("eval", *settings)) as store:
        items = store.snapshot().items
        assert items
        candidates = {row["prompt"]: row["candidate"] for row in read_lines(first.path / "samples.jsonl")}
        assert {item.completions[0].text for item in items} <= set(candidates.values())
        for item in items:
            store.record([NewJudgment(item.id, "ann", "rank", Answer(((0,), (1,))))])
    gate = "eval.gates=[{metric: people.win_rate, min: 0.4}]"
    second = project.train("eval", *settings, gate)
    metrics = second.manifest["metrics"]
    assert (metrics["people.win_rate"], metrics["people.win_rate.n"]) == (1.0, len(items))
    assert not second.failed_gates
    assert "by people" in (second.path / "report.md").read_text()
    with open_store(project.load("eval", *settings)) as store:
        assert len(store.snapshot().items) == len(items)


def test_gate_on_people_fails_until_they_have_judged(project: TrainingProject) -> None:
    project.train("ppo")
    gate = "gates: [{metric: people.win_rate, min: 0}]"
    blind = f"eval={{candidate: ppo, baseline: base, reward: null, blind: true, {gate}}}"
    store = f"feedback.store={project.folder / 'f.db'}"
    result = project.train("eval", blind, store, "eval.max_new_tokens=6", "data.prompts.eval_fraction=0.5")
    (issue,) = result.failed_gates
    assert issue.code == "eval.gate-failed"
    assert result.manifest["gates"][0]["value"] is None
