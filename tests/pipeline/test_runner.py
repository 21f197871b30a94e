"""Around a stage: what is written before and after it, what is skipped, and what a failure leaves behind."""

from __future__ import annotations

import errno
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli import distributed
from rlhf_cli.data import sources
from rlhf_cli.errors import (
    DataError,
    DiskError,
    HardwareError,
    Issue,
    ModelError,
    RecipeError,
    RlhfError,
    StoppedError,
)
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.pipeline.runner import run_stage
from rlhf_cli.recipe.schema import Sources
from rlhf_cli.recipe.user_functions import load_function
from rlhf_cli.runs.manifest import read_manifest
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.stages import DatasetKind
from tests.support.chain_project import CHAIN, ChainProject
from tests.support.issues import raises_issue
from tests.support.recipe_files import load_recipe
from tests.support.stand_ins import SetStage


@pytest.fixture
def project(recipe_file: Path) -> ChainProject:
    """Return the recipe with all stages but pretrain, and its runs directory."""
    return ChainProject(recipe_file)


def write_weights(run: Run) -> StageMetrics:
    """Finish a stand-in stage: write its model folder, and return no metrics."""
    (run.model_dir / "weights").touch()
    return StageMetrics({})


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("begins", [True, False])
def test_data_changed_before_training_fails_and_leaves_no_run(
    project: ChainProject, set_stage: SetStage, begins: bool
) -> None:
    """The rows that were read are not those whose hash the manifest would hold."""

    def run(stage: ResolvedStage, run: Run) -> StageMetrics:
        data = Path(next(item.path for item in stage.inputs if item.role == "data.sft"))
        data.write_text(data.read_text() + "\n")
        if begins:
            run.begin(1, "step")
        return write_weights(run)

    set_stage("sft", run)
    with raises_issue("data.changed", error=DataError, location="data.sft"):
        project.run_stage("sft")
    assert not [*project.stage_dir("sft").glob("v*")]


@pytest.mark.usefixtures("stand_ins")
def test_data_changed_while_a_stage_trains_does_not_end_it(project: ChainProject, set_stage: SetStage) -> None:
    """What is trained on is in memory: a user may edit the file for the next run."""

    def run(stage: ResolvedStage, run: Run) -> StageMetrics:
        run.begin(1, "step")
        Path(next(item.path for item in stage.inputs if item.role == "data.sft")).write_text("")
        return write_weights(run)

    set_stage("sft", run)
    assert project.run_stage("sft").manifest["stage"] == "sft"


@pytest.mark.usefixtures("stand_ins")
def test_skip_repairs_the_link_that_a_kill_left_on_an_older_run(project: ChainProject) -> None:
    first = project.run_stage("sft")
    project.run_stage("sft", "seed=7")
    link = first.path.parent / "latest"
    link.unlink()
    link.symlink_to("v0001")
    assert project.run_stage("sft", "seed=7", skip_if_done=True).skipped
    assert link.readlink() == Path("v0002")


@pytest.mark.usefixtures("stand_ins")
def test_reward_edited_between_stages_is_loaded_anew(
    project: ChainProject, set_stage: SetStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module that the next stage uses is the one that it hashes, its local imports included."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)  # as PYTHONDONTWRITEBYTECODE may be set
    folder = project.stage_dir("sft").parents[2]
    (folder / "rewards.py").write_text("import helper\n\ndef f(prompts, completions, **_): return helper.VALUE\n")
    helper = folder / "helper.py"
    values = []

    def run(_stage: ResolvedStage, run: Run) -> StageMetrics:
        values.append(load_function(f"{folder / 'rewards.py'}:f")([], []))
        return write_weights(run)

    for value in (1, 2):
        set_stage("sft", run)
        helper.write_text(f"VALUE = {value}\n")
        os.utime(helper, (0, 0))  # the same size and time as before, so that cached bytecode would be current
        project.run_stage("sft")
    assert values == [1, 2]


@pytest.mark.usefixtures("stand_ins")
def test_complete_run_has_exactly_the_files_of_the_contract(project: ChainProject) -> None:
    result = project.run_stage("sft", "seed=7")
    assert result.path == project.stage_dir("sft") / "v0001"
    assert {path.name for path in result.path.iterdir()} == {"recipe.yaml", "manifest.json", "metrics.jsonl", "model"}
    manifest = read_manifest(result.path)
    assert manifest == result.manifest
    assert manifest is not None
    assert manifest["metrics"] == {"sft.loss": 0.5, "reward.accuracy": 0.75}
    assert manifest["seed"] == 7
    assert [item["role"] for item in manifest["inputs"]] == ["base", "data.sft"]
    assert {"rlhf", "python", "torch", "transformers", "trl", "peft"} <= manifest["packages"].keys()
    assert {"device", "git_commit", "recipe_sha256", "fingerprint", "started", "ended", "seconds"} <= manifest.keys()
    assert {*manifest["files"]} == {"weights", "README.md"}
    assert project.events() == [("stage", "sft"), ("done", "sft")]


@pytest.mark.usefixtures("stand_ins")
def test_recipe_of_run_reproduces_the_run(project: ChainProject) -> None:
    first = project.run_stage("sft", "sft.learning_rate=0.5")
    recipe = load_recipe(first.path / "recipe.yaml", (), ("sft",))
    reporter = project.reporter
    again = run_stage("sft", recipe, project.runs_dir, smoke=False, reporter=reporter, skip_if_done=True)
    assert again.skipped


def test_stage_is_called_with_recipe_written_and_seed_set(project: ChainProject, set_stage: SetStage) -> None:
    import torch

    seen: list[Any] = []

    def run(stage: ResolvedStage, run: Run) -> StageMetrics:
        seen.append((sorted(path.name for path in run.path.iterdir()), torch.rand(1).item(), stage.base_path))
        return write_weights(run)

    set_stage("sft", run)
    project.run_stage("sft", "seed=3")
    torch.manual_seed(3)
    files = [".lock", "recipe.yaml", "started.json"]
    assert seen == [(files, torch.rand(1).item(), str(project.folder / "base"))]


@pytest.mark.usefixtures("stand_ins")
def test_chain_runs_only_what_changed(project: ChainProject, calls: list[str]) -> None:
    assert project.run_chain() == dict.fromkeys(CHAIN, False)
    assert project.run_chain() == dict.fromkeys(CHAIN, True)
    assert calls == CHAIN
    assert project.run_chain("reward.learning_rate=0.5") == {
        "sft": True, "reward": False, "ppo": False, "eval": False, "export": False,
    }  # fmt: skip
    assert project.run_chain("export.dtype=float16")["eval"] is False  # back to the first reward model's settings
    assert project.versions("sft") == ["v0001"]


@pytest.mark.usefixtures("stand_ins")
def test_single_stage_is_skipped_only_if_asked(project: ChainProject) -> None:
    assert not project.run_stage("sft").skipped
    assert not project.run_stage("sft").skipped
    assert project.run_stage("sft", skip_if_done=True).path.name == "v0002"
    assert not project.run_stage("sft", "seed=5", skip_if_done=True).skipped


def test_failure_after_start_leaves_no_manifest(project: ChainProject, set_stage: SetStage) -> None:
    def run(_: ResolvedStage, run: Run) -> StageMetrics:
        run.begin(3, "step")
        raise ModelError("model.load-failed", "does not fit.")

    set_stage("sft", run)
    with raises_issue("model.load-failed", error=ModelError):
        project.run_stage("sft")
    assert project.versions("sft") == ["v0001"]
    folder = project.stage_dir("sft") / "v0001"
    assert read_manifest(folder) is None
    assert "failed: does not fit." in (folder / "log.txt").read_text()
    assert not (folder.parent / "latest").exists()


def test_library_error_is_logged_once_with_traceback(project: ChainProject, set_stage: SetStage) -> None:
    def run(_: ResolvedStage, run: Run) -> StageMetrics:
        run.begin(3, "step")
        try:
            raise ValueError("a width of 3")
        except ValueError as error:
            issues = [Issue("model.load-failed", "does not fit."), Issue("model.load-failed", "nor does this.")]
            raise ModelError(issues) from error

    set_stage("sft", run)
    with raises_issue("model.load-failed", error=ModelError):
        project.run_stage("sft")
    lines = (project.stage_dir("sft") / "v0001" / "log.txt").read_text().splitlines()
    assert "ValueError: a width of 3" in lines
    assert lines[-1].endswith("failed: does not fit.; nor does this.")  # the last line tells a failed run
    assert project.events() == [("stage", "sft")]  # no warning: the error itself is shown later


def test_failure_before_start_leaves_no_folder(project: ChainProject, set_stage: SetStage) -> None:
    def run(*_: object) -> StageMetrics:
        logging.getLogger("rlhf_cli").info("reading")
        raise DataError("data.no-rows", "no rows.")

    set_stage("sft", run)
    with raises_issue("data.no-rows", error=DataError):
        project.run_stage("sft")
    assert project.reporter.texts("info") == ["reading"]
    assert project.versions("sft") == []


def test_unexpected_error_is_logged_and_raised(project: ChainProject, set_stage: SetStage) -> None:
    def run(*_: object) -> StageMetrics:
        raise ZeroDivisionError("oh")

    set_stage("sft", run)
    with pytest.raises(ZeroDivisionError):
        project.run_stage("sft")
    assert "ZeroDivisionError: oh" in (project.stage_dir("sft") / "v0001" / "log.txt").read_text()


@pytest.mark.parametrize("began", [True, False])
def test_keyboard_interrupt_is_a_stop_not_a_failure(project: ChainProject, set_stage: SetStage, began: bool) -> None:
    def run(_: ResolvedStage, run: Run) -> StageMetrics:
        if began:
            run.begin(3, "step")
        raise KeyboardInterrupt

    set_stage("sft", run)
    with raises_issue("run.stopped", error=StoppedError, location="sft") as issues:
        project.run_stage("sft")
    path = project.stage_dir("sft") / "v0001"
    ending = f"incomplete run: {path}." if began else "nothing was written."
    assert issues[0].message == f"stopped by a signal; {ending}"
    assert project.versions("sft") == (["v0001"] if began else [])
    if began:
        assert "failed: " not in (path / "log.txt").read_text()


@pytest.mark.parametrize(
    ("raised", "error", "code", "hint"),
    [
        (MemoryError(), HardwareError, "hardware.out-of-memory", "Lower sft.micro_batch_size"),
        (OSError(errno.ENOSPC, "No space left on device"), DiskError, "disk.full", "Free up space"),
        (PermissionError(errno.EACCES, "Permission denied", "model"), DiskError, "disk.not-writable", "--runs-dir"),
    ],
)
def test_machine_errors_become_user_errors(
    project: ChainProject, set_stage: SetStage, raised: Exception, error: type[RlhfError], code: str, hint: str
) -> None:
    def run(*_: object) -> StageMetrics:
        raise raised

    set_stage("sft", run)
    with raises_issue(code, error=error) as issues:
        project.run_stage("sft")
    assert hint in issues[0].hint


@pytest.mark.usefixtures("stand_ins")
def test_missing_inputs_are_reported_before_a_folder_is_made(project: ChainProject) -> None:
    with raises_issue("recipe.run-not-found", error=RecipeError, location="ppo.start") as issues:
        project.run_stage("ppo")
    assert issues[0].hint == "Run `rlhf sft` first."
    assert not project.runs_dir.exists()


@pytest.mark.usefixtures("stand_ins")
def test_run_on_other_base_is_refused_before_a_folder_is_made(project: ChainProject) -> None:
    project.run_stage("sft")
    (project.folder / "base" / "weights").write_text("another")
    with raises_issue("model.adapter-of-other-base", error=ModelError, location="reward.start"):
        project.run_stage("reward")
    assert project.versions("reward") == []


@pytest.mark.usefixtures("stand_ins")
def test_failed_gate_is_reported_for_a_complete_run(project: ChainProject) -> None:
    project.run_chain(stages=["sft", "reward", "ppo"])
    result = project.run_stage("eval", "eval.gates.0.min=0.9")
    (issue,) = result.failed_gates
    assert (issue.code, issue.location) == ("eval.gate-failed", "eval.gates.0")
    assert issue.message == "gate failed: reward.accuracy = 0.75, expected at least 0.9."
    assert read_manifest(project.stage_dir("eval") / "latest") is not None


@pytest.mark.usefixtures("stand_ins")
def test_failed_gate_ends_the_chain_also_if_evaluation_is_up_to_date(project: ChainProject, calls: list[str]) -> None:
    for _ in range(2):
        project.run_chain("eval.gates.0.min=0.9")
        assert calls == CHAIN[:-1]
    assert not project.stage_dir("export").exists()
    project.run_chain("eval.gates.0.min=0.5")
    assert read_manifest(project.stage_dir("export") / "latest") is not None


@pytest.mark.usefixtures("stand_ins")
def test_base_of_pretrain_is_the_runs_model_folder(project: ChainProject, set_stage: SetStage) -> None:
    bases: list[str] = []

    def run(stage: ResolvedStage, run: Run) -> StageMetrics:
        bases.append(stage.base_path)
        return write_weights(run)

    text = project.folder / "text.txt"
    text.write_text("a b\n\nc d\n")
    project.run_stage("pretrain", "base.model=pretrain", f"data.pretrain={{path: {text}}}")
    set_stage("sft", run)
    pretrained = project.stage_dir("pretrain") / "v0001"
    for model in ("pretrain", "pretrain@v0001", "bot/pretrain@v0001", str(pretrained)):
        project.run_stage("sft", f"base.model={model}")
    assert bases == [str(pretrained / "model")] * 4


@pytest.mark.usefixtures("stand_ins")
def test_smoke_run_makes_its_inputs_and_is_no_input_of_real_run(project: ChainProject, calls: list[str]) -> None:
    result = project.run_stage("ppo", smoke=True)
    assert result.manifest["smoke"] is True
    assert calls == ["sft", "reward", "ppo"]
    assert not (result.path.parent / "latest").exists()
    project.run_stage("ppo", smoke=True)
    assert calls == ["sft", "reward", "ppo", "ppo"]
    with raises_issue("recipe.smoke-run", error=RecipeError):
        project.run_stage("ppo")


@pytest.mark.usefixtures("stand_ins")
def test_smoke_run_without_data_of_its_inputs_names_the_dataset(project: ChainProject) -> None:
    text = project.recipe_file.read_text().replace("sft: {path: rows.jsonl}, ", "").replace("sft:\n", "")
    project.recipe_file.write_text(text)
    with raises_issue("recipe.missing-data", error=RecipeError, location="ppo") as issues:
        project.run_stage("ppo", smoke=True)
    assert issues[0].message == "--smoke runs sft first; data.sft is missing."


@pytest.mark.usefixtures("stand_ins")
def test_smoke_chain_ignores_gates(project: ChainProject) -> None:
    assert [*project.run_chain("eval.gates.0.min=0.9", smoke=True)] == CHAIN


@pytest.mark.usefixtures("stand_ins")
def test_smoke_run_makes_its_inputs_again_after_a_change(project: ChainProject, calls: list[str]) -> None:
    project.run_stage("reward", smoke=True)
    project.run_stage("reward", "adapter.rank=8", smoke=True)
    assert calls == ["sft", "reward", "sft", "reward"]


@pytest.mark.usefixtures("stand_ins")
def test_run_that_completes_meanwhile_is_neither_loaded_nor_recorded(
    project: ChainProject, set_stage: SetStage
) -> None:
    project.run_stage("sft")
    loaded: list[Path | None] = []

    def run(stage: ResolvedStage, run: Run) -> StageMetrics:
        project.run_stage("sft")  # another writer
        loaded.append(stage.model_path("start"))
        return write_weights(run)

    set_stage("reward", run)
    result = project.run_stage("reward")
    recorded = next(item for item in result.manifest["inputs"] if item["role"] == "start")
    assert project.versions("sft") == ["v0001", "v0002"]
    assert recorded["version"] == "v0001"
    assert loaded == [project.stage_dir("sft") / "v0001" / "model"]
    assert "start: bot/sft@v0001" in (result.path / "recipe.yaml").read_text()


@pytest.mark.usefixtures("stand_ins")
def test_export_is_stale_after_its_policy_was_evaluated(project: ChainProject) -> None:
    project.run_chain(stages=["sft", "reward", "ppo", "export"])
    project.run_chain(stages=["eval"])
    assert project.run_chain(stages=["export"]) == {"export": False}  # its card has the metrics now
    assert project.run_chain(stages=["export"]) == {"export": True}


@pytest.mark.usefixtures("stand_ins")
def test_smoke_chain_reads_each_dataset_once(project: ChainProject, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages that a smoke run needs do not check their rows again."""
    kinds: list[str] = []
    count = sources.count

    def counting(given: Sources, kind: DatasetKind, **options: Any) -> dict[str, int]:
        kinds.append(kind)
        return count(given, kind, **options)

    monkeypatch.setattr(sources, "count", counting)
    project.run_stage("ppo", smoke=True)
    assert kinds == ["prompts"]


@pytest.mark.usefixtures("stand_ins")
def test_error_of_main_process_is_raised_in_every_process(
    project: ChainProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "init_process_group", lambda: None)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "broadcast_object", lambda value: value)
    (project.folder / "rows.jsonl").write_text("broken\n")
    with raises_issue("data.invalid-json", error=DataError) as main:
        project.run_stage("sft")
    sent = DataError(main)
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    monkeypatch.setattr(distributed, "broadcast_object", lambda _: sent)
    with raises_issue("data.invalid-json", error=DataError) as worker:
        project.run_stage("sft")
    assert worker == main
