"""Before the first stage trains: does every reference of the chain lead somewhere?"""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_cli.errors import Issue, ModelError, RlhfError
from rlhf_cli.pipeline.preflight import check_references
from tests.pipeline.test_inputs import make_run
from tests.support.recipe_files import load_recipe

CHAIN = ["sft", "reward", "ppo", "eval", "export"]


class Case:
    """A recipe and its runs."""

    def __init__(self, file: Path) -> None:
        self.file, self.runs = file, file.parent / "runs"

    def check(self, *overrides: str, stages: list[str] = CHAIN, smoke: bool = False, thorough: bool = True) -> None:
        recipe = load_recipe(self.file, overrides, stages)
        check_references(recipe, stages, self.runs, smoke=smoke, thorough=thorough)

    def issues(self, *overrides: str, **options: object) -> list[Issue]:
        with pytest.raises(RlhfError) as raised:
            self.check(*overrides, **options)  # type: ignore[arg-type]
        return list(raised.value.issues)


@pytest.fixture
def case(recipe_file: Path) -> Case:
    return Case(recipe_file)


def test_what_the_chain_makes_before_it_is_needed_need_not_be_there(case: Case) -> None:
    case.check()
    case.check("base.model=pretrain", f"data.pretrain={{path: {case.file}}}", stages=["pretrain", *CHAIN])
    assert not case.runs.exists()


@pytest.mark.parametrize(
    ("override", "location", "says"),
    [
        ("ppo.reward.0={run: reward@v0009}", "ppo.reward.0", "the run reward@v0009 does not exist."),
        ("ppo.start=other/sft@latest", "ppo.start", "there is no sft run of other in"),
        ("eval.candidate=reward", "eval.candidate", "reward is a reward run, expected sft or ppo."),
        ("eval.reward=sft", "eval.reward", "sft is a sft run, expected reward."),
        ("reward.start=ppo", "reward.start", "there is no ppo run of bot in"),  # it comes later
        ("base.model=sft", "base.model", "there is no sft run of bot in"),
        ("data.prompts={run: feedback@latest}", "data.prompts", "there is no feedback run of bot in"),
    ],
)
def test_a_reference_that_leads_nowhere_is_told_for_the_whole_chain(
    case: Case, override: str, location: str, says: str
) -> None:
    issues = case.issues("ppo.reward=[{run: reward}]", override)
    assert location in {issue.location for issue in issues}
    assert says in str(next(issue for issue in issues if issue.location == location))
    assert {issue.location for issue in case.issues("ppo.reward=[{run: reward}]", override, thorough=False)} == {
        issue.location for issue in issues
    }


def test_what_neither_is_there_nor_will_be_made_says_both_ways_out(case: Case) -> None:
    (issue,) = case.issues(stages=["sft", "ppo"])
    assert (issue.location, issue.hint) == ("ppo.reward.0", "Run `rlhf reward` first, or name reward too.")
    case.file.write_text(case.file.read_text().replace("\nreward:", ""))
    issues = case.issues(stages=["sft", "ppo", "eval"])
    assert [(issue.location, issue.hint) for issue in issues] == [
        (location, "Run `rlhf reward` first, or add the section `reward:`.")
        for location in ("ppo.reward.0", "eval.reward")
    ]
    make_run(case.runs, "reward")
    case.check(stages=["sft", "ppo", "eval"])


def test_a_stage_by_itself_needs_its_runs(case: Case) -> None:
    assert [issue.location for issue in case.issues(stages=["ppo"])] == ["ppo.start", "ppo.reward.0"]


def test_a_later_stages_run_on_another_base_is_told_where_the_base_is_read(case: Case) -> None:
    make_run(case.runs, "reward", base="0" * 64)
    stages = ["sft", "ppo"]
    case.check(stages=stages, thorough=False)
    with pytest.raises(ModelError, match=r"reward \(v0001\) was trained on another base"):
        case.check(stages=stages)


def test_a_hub_model_is_asked_for_where_the_chain_begins_and_not_by_check(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit_of(kind: str, repo: str, revision: str, *, location: str) -> str:
        raise ModelError(f"there is no {repo}.", location=location)

    monkeypatch.setattr("rlhf_cli.models.hub.resolve_commit", commit_of)
    override = "ppo.reward=[{model: org/scorer}]"
    case.check(override, thorough=False)
    assert case.issues(override) == [Issue("there is no org/scorer.", "ppo.reward.0")]


def test_smoke_makes_what_it_needs(case: Case) -> None:
    case.check("ppo.start=other/sft@v0003", stages=["ppo"], smoke=True)
