"""Reward sources are scored separately, under unique names, and summed with their weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlhf_cli.data.rows import Message, PromptRow
from rlhf_cli.errors import DivergedError
from rlhf_cli.inference import scoring
from rlhf_cli.recipe.schema import Base, RewardSource
from rlhf_cli.recipe.validation.ppo import REWARD_KEYS
from rlhf_cli.rewards import build
from rlhf_cli.rewards.base import Completions, as_completion
from rlhf_cli.rewards.build import RewardFunction, build_reward_functions, score_completions, weighted_sum
from tests.support.issues import raises_issue
from tests.support.reward_functions import write_function
from tests.support.tiny_policy import PAD, FakeScorer, MakeActorCritic, Ragged, reward_run

BASE = Base(model="unused")


def make_completions(rows: list[PromptRow], completions: list[str]) -> Completions:
    """Return completions with fixed token ids."""
    return Completions(rows, [[4]] * len(rows), [[5, 2]] * len(rows), list(completions))


def unused_folder(_index: int) -> Path:
    """Return a folder that is no ensemble."""
    return Path("reward")


def test_every_kind_of_source_has_a_scorer() -> None:
    assert {"run", "judge", *build.SCORERS} == set(REWARD_KEYS)


def test_new_kind_of_source_needs_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = FakeScorer(lambda texts: [float(len(text)) for text in texts])
    monkeypatch.setattr(build, "SCORERS", {"http": lambda _source: scorer})
    (function,) = build_reward_functions([RewardSource(http="https://host/x", weight=2.0)])
    assert function == RewardFunction(scorer.name, 2.0, None, scorer)


def test_prepare_checks_all_scorers_before_loading_any(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(FakeScorer, "check", lambda _self, rows: calls.append(f"check {len(rows)}"))
    monkeypatch.setattr(FakeScorer, "load", lambda _self, base, *, smoke: calls.append(f"load {base.model} {smoke}"))
    functions = [RewardFunction("a", 1.0, None, FakeScorer(list)), RewardFunction("b", 1.0, None, FakeScorer(list))]
    functions.append(reward_run(Path("reward")))
    build.prepare_reward_functions(functions, [PromptRow("p", {})], BASE, smoke=True)
    assert calls == ["check 1", "check 1", "load unused True", "load unused True"]


def test_sources_are_scored_separately_and_summed_with_weights(
    tmp_path: Path, make_actor_critic: MakeActorCritic, sft_folder: Path, reward_folder: Path, ragged: Ragged
) -> None:
    length = write_function(tmp_path, "def score(completion_ids): return [float(len(ids)) for ids in completion_ids]")
    functions = build_reward_functions(
        [RewardSource(run="reward", weight=2.0), RewardSource(python=length, weight=-0.5)], lambda _: reward_folder
    )
    assert [(function.name, function.roles) for function in functions] == [("reward", ["reward"]), ("score", [])]
    prompts, responses = ragged
    model = make_actor_critic(sft_folder, reward_folder).model
    completions = Completions([PromptRow("p", {})] * len(prompts), prompts, responses, ["x"] * len(prompts))
    scores = score_completions(functions, model, completions, pad_id=PAD, max_tokens=64)
    sequences = [p + r for p, r in zip(prompts, responses, strict=True)]  # the truncated one has no end token
    by_model = scoring.final_scores(model, "reward", sequences, pad_id=PAD, max_tokens=64)
    torch.testing.assert_close(scores["reward"], by_model)
    lengths = torch.tensor([float(len(r)) for r in responses])
    torch.testing.assert_close(scores["score"], lengths)
    torch.testing.assert_close(weighted_sum(functions, scores), 2 * by_model - 0.5 * lengths)


def test_sources_of_one_name_get_numbers(tmp_path: Path) -> None:
    spec = write_function(tmp_path, "def score(completions): return [0.0]")
    sources = [RewardSource(python=spec), RewardSource(python=spec), RewardSource(run="reward")]
    functions = build_reward_functions([*sources, RewardSource(run="other/reward@v0002")], unused_folder)
    assert [function.name for function in functions] == ["score", "score_2", "reward", "reward_2"]
    assert [function.roles for function in functions] == [[], [], ["reward"], ["reward_2"]]


def test_reward_run_is_named_by_its_stage() -> None:
    functions = build_reward_functions(
        [RewardSource(run="demo/reward@v0003"), RewardSource(run="reward")], unused_folder
    )
    assert [function.name for function in functions] == ["reward", "reward_2"]


def test_completion_has_the_form_of_its_prompt() -> None:
    assert as_completion("Ask:", " yes") == " yes"
    conversation = [Message(role="user", content="?")]
    assert as_completion(conversation, " yes ") == [{"role": "assistant", "content": "yes"}]


def test_none_adds_nothing_to_the_sum(tmp_path: Path, make_actor_critic: MakeActorCritic) -> None:
    """As in TRL: a function returns None for a completion that it does not score."""
    (tmp_path / "scores.py").write_text(
        "def every(completions): return [1.0, 2.0]\ndef some(completions): return [None, 5.0]"
    )
    sources = [RewardSource(python=f"{tmp_path}/scores.py:{name}", weight=2.0) for name in ("every", "some")]
    functions = build_reward_functions(sources)
    completions = make_completions([PromptRow("p", {}), PromptRow("q", {})], ["x", "y"])
    scores = score_completions(functions, make_actor_critic().model, completions, pad_id=PAD, max_tokens=9)
    assert scores["some"].isnan().tolist() == [True, False]
    assert weighted_sum(functions, scores).tolist() == [2.0, 14.0]


def test_non_finite_score_raises_with_source_and_completion(tmp_path: Path, make_actor_critic: MakeActorCritic) -> None:
    spec = write_function(tmp_path, "def score(completions): return [0.0, float('nan')]")
    completions = make_completions([PromptRow("p", {}), PromptRow("q", {})], ["ok", "bad"])
    functions = build_reward_functions([RewardSource(python=spec)])
    model = make_actor_critic().model
    with raises_issue("training.non-finite", error=DivergedError, location="ppo.reward") as issues:
        score_completions(functions, model, completions, pad_id=PAD, max_tokens=9)
    assert issues[0].message == "score: the score of completion 1 is not finite; found nan for 'bad'."
