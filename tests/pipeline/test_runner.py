"""Around a stage: what is written before and after, what is skipped, and what a failure leaves behind."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.errors import DataError, Issue, ModelError, RecipeError, RlhfError, StoppedError
from rlhf_cli.pipeline.runner import StageResult, run_chain, run_stage
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.runs.manifest import read_manifest
from rlhf_cli.runs.run import Run, StageMetrics
from tests.support.recipe_files import load_recipe
from tests.support.stand_ins import SetStage

CHAIN = ["sft", "reward", "ppo", "eval", "export"]


class Silent:
    """A reporter that keeps where stages began and ended."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def begin(self, total: int, unit: str) -> None: ...
    def step(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def info(self, text: str) -> None: ...
    def warning(self, text: str) -> None:
        self.told.append(("warning", text))

    def stage(self, stage: str, run: Run) -> None:
        self.told.append(("stage", stage))

    def done(self, outcome: StageResult) -> None:
        self.told.append(("skipped" if outcome.skipped else "done", outcome.stage))


class Case:
    """A recipe and a folder of runs, and the ways to run it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.runs = file.parent / "runs"
        self.reporter = Silent()

    def stage(self, stage: str, *overrides: str, smoke: bool = False, skip: bool = False) -> StageResult:
        recipe = load_recipe(self.file, overrides, (stage,))
        return run_stage(stage, recipe, self.runs, smoke=smoke, reporter=self.reporter, skip_if_done=skip)

    def chain(self, *overrides: str, stages: list[str] = CHAIN, smoke: bool = False) -> dict[str, bool]:
        """Stage: whether it was skipped."""
        recipe = load_recipe(self.file, overrides, stages)
        outcomes = run_chain(recipe, stages, self.runs, smoke=smoke, reporter=self.reporter)
        return {outcome.stage: outcome.skipped for outcome in outcomes}

    def versions(self, stage: str) -> list[str]:
        return sorted(path.name for path in (self.runs / "bot" / stage).glob("v*"))


@pytest.fixture
def case(recipe_file: Path) -> Case:
    return Case(recipe_file)


@pytest.mark.usefixtures("stand_ins")
def test_a_run_holds_exactly_what_the_contract_names(case: Case) -> None:
    outcome = case.stage("sft", "seed=7")
    assert outcome.path == case.runs / "bot" / "sft" / "v0001"
    assert {path.name for path in outcome.path.iterdir()} == {"recipe.yaml", "manifest.json", "metrics.jsonl", "model"}
    manifest = read_manifest(outcome.path)
    assert manifest == outcome.manifest
    assert manifest is not None
    assert manifest["metrics"] == {"sft.loss": 0.5, "reward.accuracy": 0.75}
    assert manifest["seed"] == 7
    assert [item["role"] for item in manifest["inputs"]] == ["base", "data.sft"]
    assert {"rlhf", "python", "torch", "transformers", "trl", "peft"} <= manifest["packages"].keys()
    assert {"device", "git_commit", "recipe_sha256", "fingerprint", "started", "ended", "seconds"} <= manifest.keys()
    assert {*manifest["files"]} == {"weights", "README.md"}
    assert case.reporter.told == [("stage", "sft"), ("done", "sft")]


@pytest.mark.usefixtures("stand_ins")
def test_the_recipe_of_a_run_gives_the_same_run_from_anywhere(case: Case) -> None:
    first = case.stage("sft", "sft.learning_rate=0.5")
    recipe = load_recipe(first.path / "recipe.yaml", (), ("sft",))
    again = run_stage("sft", recipe, case.runs, smoke=False, reporter=case.reporter, skip_if_done=True)
    assert again.skipped


def test_the_stage_finds_its_recipe_written_its_seed_set_and_no_manifest(case: Case, set_stage: SetStage) -> None:
    import torch

    seen: list[Any] = []

    def run(recipe: Recipe, run: Run) -> StageMetrics:
        seen.append((sorted(path.name for path in run.path.iterdir()), torch.rand(1).item(), run.base_source()))
        run.model_dir.joinpath("weights").touch()
        return StageMetrics({})

    set_stage("sft", run)
    case.stage("sft", "seed=3")
    torch.manual_seed(3)
    assert seen == [([".lock", "recipe.yaml", "started.json"], torch.rand(1).item(), str(case.file.parent / "base"))]


@pytest.mark.usefixtures("stand_ins")
def test_a_chain_runs_once_and_then_only_what_changed(case: Case, calls: list[str]) -> None:
    assert case.chain() == dict.fromkeys(CHAIN, False)
    assert case.chain() == dict.fromkeys(CHAIN, True)
    assert calls == CHAIN
    assert case.chain("reward.learning_rate=0.5") == {
        "sft": True, "reward": False, "ppo": False, "eval": False, "export": False,
    }  # fmt: skip
    assert case.chain("export.dtype=float16")["eval"] is False  # back to the first reward model's settings
    assert case.versions("sft") == ["v0001"]


@pytest.mark.usefixtures("stand_ins")
def test_a_stage_by_itself_runs_again_unless_asked_to_skip(case: Case) -> None:
    assert not case.stage("sft").skipped
    assert not case.stage("sft").skipped
    assert case.stage("sft", skip=True).path.name == "v0002"
    assert not case.stage("sft", "seed=5", skip=True).skipped


def test_a_stage_that_fails_after_it_began_leaves_no_manifest(case: Case, set_stage: SetStage) -> None:
    def run(recipe: Recipe, run: Run) -> StageMetrics:
        run.begin(3, "steps")
        raise ModelError("does not fit.")

    set_stage("sft", run)
    with pytest.raises(ModelError):
        case.stage("sft")
    assert case.versions("sft") == ["v0001"]
    folder = case.runs / "bot" / "sft" / "v0001"
    assert read_manifest(folder) is None
    assert "failed: does not fit." in (folder / "log.txt").read_text()
    assert not (folder.parent / "latest").exists()


def test_what_a_library_raised_is_in_the_log_and_is_told_once(case: Case, set_stage: SetStage) -> None:
    def run(recipe: Recipe, run: Run) -> StageMetrics:
        run.begin(3, "steps")
        try:
            raise ValueError("a width of 3")
        except ValueError as error:
            raise ModelError([Issue("does not fit."), Issue("nor this.")]) from error

    set_stage("sft", run)
    with pytest.raises(ModelError):
        case.stage("sft")
    lines = (case.runs / "bot" / "sft" / "v0001" / "log.txt").read_text().splitlines()
    assert "ValueError: a width of 3" in lines
    assert lines[-1].endswith("failed: does not fit.; nor this.")  # by its last line a failure is known
    assert case.reporter.told == [("stage", "sft")]  # no warning: the error itself is to come


def test_a_stage_that_fails_before_it_made_anything_leaves_no_folder(case: Case, set_stage: SetStage) -> None:
    def run(recipe: Recipe, run: Run) -> StageMetrics:
        run.say("reading")
        raise DataError("no rows.")

    set_stage("sft", run)
    with pytest.raises(DataError):
        case.stage("sft")
    assert case.versions("sft") == []


def test_a_bug_leaves_its_log(case: Case, set_stage: SetStage) -> None:
    def run(recipe: Recipe, run: Run) -> StageMetrics:
        raise ZeroDivisionError("oh")

    set_stage("sft", run)
    with pytest.raises(ZeroDivisionError):
        case.stage("sft")
    assert "ZeroDivisionError: oh" in (case.runs / "bot" / "sft" / "v0001" / "log.txt").read_text()


@pytest.mark.parametrize("began", [True, False])
def test_ctrl_c_is_told_apart_from_failure(case: Case, set_stage: SetStage, began: bool) -> None:
    def run(recipe: Recipe, run: Run) -> StageMetrics:
        if began:
            run.begin(3, "steps")
        raise KeyboardInterrupt

    set_stage("sft", run)
    with pytest.raises(StoppedError, match="incomplete" if began else "nothing was made") as raised:
        case.stage("sft")
    assert raised.value.exit_code == 75
    assert case.versions("sft") == (["v0001"] if began else [])


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (MemoryError(), 5, "Lower sft.micro_batch_size"),
        (OSError(errno.ENOSPC, "No space left on device"), 6, "Free space"),
        (PermissionError(errno.EACCES, "Permission denied", "model"), 6, "--runs-dir"),
    ],
)
def test_a_machine_that_gives_out_is_no_bug_of_ours(
    case: Case, set_stage: SetStage, error: Exception, code: int, told: str
) -> None:
    def run(recipe: Recipe, run: Run) -> StageMetrics:
        raise error

    set_stage("sft", run)
    with pytest.raises(RlhfError) as raised:
        case.stage("sft")
    assert raised.value.exit_code == code
    assert told in raised.value.issues[0].hint


@pytest.mark.usefixtures("stand_ins")
def test_absent_inputs_are_told_before_a_folder_is_made(case: Case) -> None:
    with pytest.raises(RecipeError, match="Run `rlhf sft` first"):
        case.stage("ppo")
    assert not case.runs.exists()


@pytest.mark.usefixtures("stand_ins")
def test_a_run_on_another_base_is_refused(case: Case) -> None:
    case.stage("sft")
    (case.file.parent / "base" / "weights").write_text("another")
    with pytest.raises(ModelError, match="trained on another base"):
        case.stage("reward")
    assert case.versions("reward") == []


@pytest.mark.usefixtures("stand_ins")
def test_a_gate_fails_a_run_that_is_complete(case: Case) -> None:
    case.chain(stages=["sft", "reward", "ppo"])
    outcome = case.stage("eval", "eval.gates.0.min=0.9")
    assert [issue.location for issue in outcome.failed_gates] == ["eval.gates.0"]
    assert "reward.accuracy = 0.75, wanted at least 0.9" in outcome.failed_gates[0].message
    assert read_manifest(case.runs / "bot" / "eval" / "latest") is not None


@pytest.mark.usefixtures("stand_ins")
def test_a_gate_that_fails_keeps_the_export_back_also_when_the_evaluation_is_up_to_date(
    case: Case, calls: list[str]
) -> None:
    for _ in range(2):
        case.chain("eval.gates.0.min=0.9")
        assert calls == CHAIN[:-1]
    assert not (case.runs / "bot" / "export").exists()
    case.chain("eval.gates.0.min=0.5")
    assert read_manifest(case.runs / "bot" / "export" / "latest") is not None


@pytest.mark.usefixtures("stand_ins")
def test_a_base_made_by_pretrain_is_the_runs_model(case: Case, set_stage: SetStage) -> None:
    bases: list[str] = []

    def run(recipe: Recipe, run: Run) -> StageMetrics:
        bases.append(run.base_source())
        run.model_dir.joinpath("weights").touch()
        return StageMetrics({})

    case.stage(
        "pretrain",
        "base.model=pretrain",
        "data.pretrain={path: rows.jsonl}".replace("rows", str(case.file.parent / "rows")),
    )
    set_stage("sft", run)
    made = case.runs / "bot" / "pretrain" / "v0001"
    for model in ("pretrain", "pretrain@v0001", "bot/pretrain@v0001", str(made)):
        case.stage("sft", f"base.model={model}")
    assert bases == [str(made / "model")] * 4


@pytest.mark.usefixtures("stand_ins")
def test_smoke_makes_its_own_inputs_and_is_never_taken_by_a_real_run(case: Case, calls: list[str]) -> None:
    outcome = case.stage("ppo", smoke=True)
    assert outcome.manifest["smoke"] is True
    assert calls == ["sft", "reward", "ppo"]
    assert not (outcome.path.parent / "latest").exists()
    case.stage("ppo", smoke=True)
    assert calls == ["sft", "reward", "ppo", "ppo"]
    with pytest.raises(RecipeError, match="only smoke runs"):
        case.stage("ppo")


@pytest.mark.usefixtures("stand_ins")
def test_smoke_of_a_stage_whose_inputs_it_cannot_make_says_which_data_it_lacks(case: Case) -> None:
    text = case.file.read_text().replace("sft: {path: rows.jsonl}, ", "").replace("sft:\n", "")
    case.file.write_text(text)
    with pytest.raises(RecipeError, match=r"--smoke makes its own sft run, and data\.sft is missing"):
        case.stage("ppo", smoke=True)


@pytest.mark.usefixtures("stand_ins")
def test_smoke_goes_through_without_gates(case: Case) -> None:
    assert [*case.chain("eval.gates.0.min=0.9", smoke=True)] == CHAIN


@pytest.mark.usefixtures("stand_ins")
def test_a_run_that_completes_meanwhile_is_neither_loaded_nor_recorded(case: Case, set_stage: SetStage) -> None:
    case.stage("sft")
    found: list[str] = []

    def run(recipe: Recipe, run: Run) -> StageMetrics:
        case.stage("sft")  # another writer
        found.append(run.find(recipe.reward.start).name)
        run.model_dir.joinpath("weights").touch()
        return StageMetrics({})

    set_stage("reward", run)
    outcome = case.stage("reward")
    recorded = next(item for item in outcome.manifest["inputs"] if item["role"] == "start")
    assert found == [recorded["version"]] == ["v0001"]
    assert "start: bot/sft@v0001" in (outcome.path / "recipe.yaml").read_text()


@pytest.mark.usefixtures("stand_ins")
def test_smoke_makes_its_inputs_anew_when_the_recipe_changed(case: Case, calls: list[str]) -> None:
    case.stage("reward", smoke=True)
    case.stage("reward", "adapter.rank=8", smoke=True)
    assert calls == ["sft", "reward", "sft", "reward"]


@pytest.mark.usefixtures("stand_ins")
def test_an_export_is_stale_when_its_policy_was_evaluated_since(case: Case) -> None:
    case.chain(stages=["sft", "reward", "ppo", "export"])
    case.chain(stages=["eval"])
    assert case.chain(stages=["export"]) == {"export": False}  # its card has the figures now
    assert case.chain(stages=["export"]) == {"export": True}
