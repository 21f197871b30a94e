"""Tests of the stage commands, `rlhf run` and `rlhf check`: results, gates, and what people read."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.stages import STAGES
from tests.support.command import Rlhf
from tests.support.stand_ins import VERDICT, SetStage

if TYPE_CHECKING:
    from rlhf_cli.pipeline.resolve import ResolvedStage

CHAIN = ("sft", "reward", "ppo", "eval", "export")


@pytest.fixture
def existing_chain(rlhf: Rlhf, request: pytest.FixtureRequest) -> None:
    """Run every stand-in stage once, so that each can run again."""
    request.getfixturevalue("stand_ins")
    assert rlhf("run", "-r", "r.yaml").code == 0


# --- results -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("existing_chain")
@pytest.mark.parametrize("stage", CHAIN)
def test_stage_json_is_one_object_with_run_and_metrics(rlhf: Rlhf, recipe_file: Path, stage: str) -> None:
    result = rlhf(stage, "-r", "r.yaml", "--json")
    content = result.json
    assert result.code == 0
    assert content.pop("seconds") >= 0
    gates = [{"metric": "reward.accuracy", "min": 0.5, "max": None, "value": 0.75, "passed": True}]
    assert content == {
        "status": "ok",
        "stage": stage,
        "run": f"bot/{stage}@v0002",
        "path": str(recipe_file.parent / "runs" / "bot" / stage / "v0002"),
        "skipped": False,
        "smoke": False,
        "metrics": {f"{stage}.loss": 0.5, "reward.accuracy": 0.75},
        "gates": gates if stage == "eval" else [],
        "verdict": VERDICT if stage == "eval" else None,
    }


@pytest.mark.usefixtures("stand_ins")
def test_pretrain_json_names_its_run(rlhf: Rlhf) -> None:
    Path("text.txt").write_text("one\n\ntwo\n")
    result = rlhf("pretrain", "-r", "r.yaml", "--set", "data.pretrain={path: text.txt}", "--json")
    assert (result.code, result.json["run"]) == (0, "bot/pretrain@v0001")


@pytest.mark.usefixtures("stand_ins")
def test_chain_json_has_its_stages_and_one_map_of_metrics(rlhf: Rlhf) -> None:
    first, again = rlhf("run", "-r", "r.yaml", "--json"), rlhf("run", "-r", "r.yaml", "--json")
    assert (first.code, again.code) == (0, 0)
    assert [stage["stage"] for stage in first.json["stages"]] == [*CHAIN]
    assert first.json["metrics"] == {**{f"{stage}.loss": 0.5 for stage in CHAIN}, "reward.accuracy": 0.75}
    assert all(stage["skipped"] for stage in again.json["stages"])
    assert again.json["seconds"] == 0


def test_check_json_has_stages_and_row_counts(rlhf: Rlhf) -> None:
    content = rlhf("check", "-r", "r.yaml", "sft", "reward", "--json", "--set", "data.sft.eval_fraction=0").json
    assert (content["status"], content["stages"]) == ("ok", ["sft", "reward"])
    assert set(content["data"]) == {"sft", "preferences"}
    assert content["data"]["sft"]["train"] == 2


def test_check_prints_ok_with_stages_and_row_counts(rlhf: Rlhf) -> None:
    result = rlhf("check", "-r", "r.yaml", "sft", "--set", "data.sft.eval_fraction=0")
    assert result.code == 0
    assert result.out.splitlines()[0] == "r.yaml: OK (sft)"
    assert "  data.sft: 2 read, 2 train" in result.out


@pytest.mark.usefixtures("stand_ins")
def test_listed_and_shown_run_have_the_metrics_of_the_stage(rlhf: Rlhf) -> None:
    assert rlhf("runs", "list", "--json").json["runs"] == []
    rlhf("sft", "-r", "r.yaml")
    (listed,) = rlhf("runs", "list", "--json").json["runs"]
    assert (listed["stage"], listed["version"], listed["state"]) == ("sft", "v0001", "complete")
    shown = rlhf("runs", "show", "sft", "--json").json["run"]
    assert shown["manifest"]["metrics"] == listed["metrics"] == {"sft.loss": 0.5, "reward.accuracy": 0.75}


# --- which recipe, stages and runs directory -----------------------------------------------------------------------


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("words", [("sft", "r.yaml"), ("sft", "--recipe", "r.yaml"), ("sft", "-r", "r.yaml")])
def test_recipe_is_an_option_or_an_argument(rlhf: Rlhf, words: tuple[str, ...]) -> None:
    assert rlhf(*words, "--json").json["run"] == "bot/sft@v0001"


@pytest.mark.usefixtures("stand_ins")
def test_recipe_defaults_to_recipe_yaml(rlhf: Rlhf, recipe_file: Path) -> None:
    recipe_file.rename(recipe_file.with_name("recipe.yaml"))
    assert rlhf("sft", "--json").json["run"] == "bot/sft@v0001"
    assert rlhf("check", "sft").code == 0


@pytest.mark.parametrize("command", ["sft", "run", "check"])
def test_missing_default_recipe_exits_2_and_names_the_option(rlhf: Rlhf, command: str) -> None:
    result = rlhf(command, "--json")
    assert (result.code, result.issue["code"], result.issue["location"]) == (2, "recipe.not-found", "recipe.yaml")
    assert "--recipe" in result.issue["hint"]


def test_recipe_given_twice_exits_2(rlhf: Rlhf) -> None:
    result = rlhf("sft", "r.yaml", "-r", "other.yaml", "--json")
    assert (result.code, result.issue["code"]) == (2, "recipe.usage")
    assert result.issue["message"] == "the recipe is given twice: r.yaml and --recipe other.yaml."


@pytest.mark.usefixtures("stand_ins")
def test_given_stages_run_in_the_order_of_the_chain(rlhf: Rlhf, calls: list[str]) -> None:
    assert rlhf("run", "-r", "r.yaml", "reward", "sft").code == 0
    assert calls == ["sft", "reward"]


@pytest.mark.parametrize("command", ["run", "check"])
def test_recipe_without_stages_exits_2(rlhf: Rlhf, recipe_file: Path, command: str) -> None:
    (recipe_file.parent / "bare.yaml").write_text("name: x\nbase: {model: a/b}\n")
    result = rlhf(command, "-r", "bare.yaml", "--json")
    assert (result.code, result.issue["code"]) == (2, "recipe.no-stages")
    assert result.issue["message"] == "the recipe has no stages to run."


def test_unknown_stages_exit_2_with_one_suggestion_each(rlhf: Rlhf) -> None:
    result = rlhf("run", "sft", "r.yaml", "ppoo", "zzz")
    assert result.code == 2
    assert result.err.splitlines() == [
        "error  unknown stage: r.yaml. Pass the recipe as -r r.yaml. [recipe.unknown-stage]",
        "error  unknown stage: ppoo. Did you mean ppo? [recipe.unknown-stage]",
        f"error  unknown stage: zzz. The stages are {', '.join(STAGES)}. [recipe.unknown-stage]",
    ]


@pytest.mark.usefixtures("stand_ins")
def test_runs_directory_is_an_option_or_a_variable(rlhf: Rlhf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rlhf("sft", "-r", "r.yaml", "--runs-dir", "one")
    monkeypatch.setenv("RLHF_RUNS", str(tmp_path / "two"))
    rlhf("sft", "-r", "r.yaml")
    assert (tmp_path / "one/bot/sft/v0001/manifest.json").is_file()
    assert (tmp_path / "two/bot/sft/v0001/manifest.json").is_file()
    assert len(rlhf("runs", "list", "--json").json["runs"]) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("stand_ins")
def test_skip_if_done_reports_up_to_date(rlhf: Rlhf) -> None:
    rlhf("sft", "-r", "r.yaml")
    result = rlhf("sft", "-r", "r.yaml", "--skip-if-done")
    assert "up to date" in result.out
    assert rlhf("sft", "-r", "r.yaml", "--skip-if-done", "--json").json["skipped"] is True


@pytest.mark.usefixtures("stand_ins")
def test_smoke_run_is_marked_everywhere(rlhf: Rlhf) -> None:
    assert "smoke" in rlhf("sft", "-r", "r.yaml", "--smoke").out
    assert rlhf("sft", "-r", "r.yaml", "--smoke", "--json").json["smoke"] is True
    assert {run["state"] for run in rlhf("runs", "list", "--json").json["runs"]} == {"smoke"}


# --- gates ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("existing_chain")
@pytest.mark.parametrize("command", ["eval", "run"])
def test_failed_gate_exits_8_with_metrics_and_a_complete_run(rlhf: Rlhf, command: str) -> None:
    result = rlhf(command, "-r", "r.yaml", "--set", "eval.gates.0.min=0.9", "--json")
    assert result.code == result.json["exit_code"] == 8
    assert (result.issue["code"], result.issue["location"]) == ("eval.gate-failed", "r.yaml:7:16")
    assert result.json["metrics"]["reward.accuracy"] == 0.75
    assert rlhf("runs", "show", "eval@v0002", "--json").json["run"]["state"] == "complete"


@pytest.mark.usefixtures("stand_ins")
def test_failed_gate_is_shown_again_if_the_evaluation_is_up_to_date(rlhf: Rlhf, calls: list[str]) -> None:
    words = ("run", "-r", "r.yaml", "--set", "eval.gates.0.min=0.9")
    for state in ("done in 0:00", "up to date"):
        result = rlhf(*words)
        assert result.code == 8
        assert f"eval     {state}, gate failed: runs/bot/eval/v0001" in result.out
        assert re.search(r"\n eval +gate failed ", result.out)  # in the table
    stages = rlhf(*words, "--json").json["stages"]
    assert {stage["stage"]: stage["status"] for stage in stages} == {
        "sft": "ok", "reward": "ok", "ppo": "ok", "eval": "gate failed",
    }  # fmt: skip
    assert calls.count("eval") == 1


@pytest.mark.usefixtures("stand_ins")
def test_failed_gate_is_shown_by_runs_list_and_show(rlhf: Rlhf) -> None:
    assert rlhf("run", "-r", "r.yaml", "--set", "eval.gates.0.min=0.9").code == 8
    (listed,) = (line for line in rlhf("runs", "list").out.splitlines() if "bot/eval@v0001" in line)
    assert " gate failed " in listed
    shown = rlhf("runs", "show", "eval").out
    assert "bot/eval@v0001  complete, gate failed" in shown
    assert "\n  FAIL  reward.accuracy" in shown
    (gate,) = rlhf("runs", "show", "eval", "--json").json["run"]["gates"]
    assert gate == {"metric": "reward.accuracy", "min": 0.9, "max": None, "value": 0.75, "passed": False}


@pytest.mark.usefixtures("stand_ins")
def test_verdict_is_printed_and_part_of_the_json_object(rlhf: Rlhf) -> None:
    chain = rlhf("run", "-r", "r.yaml")
    assert chain.out.count(VERDICT["text"]) == 2  # after the stage, and at the end
    assert VERDICT["text"] in rlhf("eval", "-r", "r.yaml").out
    assert VERDICT["text"] in rlhf("runs", "show", "eval").out
    assert rlhf("eval", "-r", "r.yaml", "--json").json["verdict"] == VERDICT
    assert rlhf("run", "-r", "r.yaml", "--json").json["verdict"] == VERDICT
    assert rlhf("runs", "show", "eval", "--json").json["run"]["verdict"] == VERDICT
    assert rlhf("sft", "-r", "r.yaml", "--json").json["verdict"] is None


# --- errors before a stage runs ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("words", [("check",), ("run",), ("run", "--dry-run")])
def test_reference_to_missing_run_is_reported_at_its_line_before_a_stage_runs(
    rlhf: Rlhf, recipe_file: Path, calls: list[str], words: tuple[str, ...]
) -> None:
    recipe_file.write_text(recipe_file.read_text().replace("ppo:\n", "ppo:\n  start: sft@v0003\n"))
    result = rlhf(*words, "-r", "r.yaml", "--json")
    assert result.code == 2
    assert (result.issue["code"], result.issue["location"]) == ("recipe.run-not-found", "r.yaml:7:3")
    assert calls == []


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("words", [("run",), ("run", "--dry-run")])
def test_function_that_cannot_be_loaded_is_reported_before_the_first_stage(
    rlhf: Rlhf, recipe_file: Path, calls: list[str], words: tuple[str, ...]
) -> None:
    (recipe_file.parent / "f.py").write_text("def score(): ...\nprint(no_such_name)\n")
    recipe_file.write_text(recipe_file.read_text().replace("eval: {", "eval: {python: ['f.py:score'], "))
    assert rlhf("check", "-r", "r.yaml").code == 0  # `check` runs no user code
    result = rlhf(*words, "-r", "r.yaml", "--json")
    assert (result.code, result.json["issues"][0]["location"]) == (2, "f.py:2")
    assert calls == []


@pytest.mark.usefixtures("existing_chain")
def test_check_searches_runs_in_the_given_directory(rlhf: Rlhf) -> None:
    assert rlhf("check", "-r", "r.yaml", "ppo").code == 0
    result = rlhf("check", "-r", "r.yaml", "ppo", "--runs-dir", "elsewhere", "--json")
    assert result.code == 2
    assert {issue["code"] for issue in result.json["issues"]} == {"recipe.run-not-found"}


def test_issues_of_all_data_files_are_reported_at_once(rlhf: Rlhf, recipe_file: Path) -> None:
    (recipe_file.parent / "bad1.jsonl").write_text("{\n")
    (recipe_file.parent / "bad2.jsonl").write_text('{"prompt": 3}\n')
    words = ("--set", "data.sft.path=bad1.jsonl", "--set", "data.preferences.path=bad2.jsonl")
    result = rlhf("check", "-r", "r.yaml", *words, "--json")
    assert result.code == result.json["exit_code"] == 3
    locations = " ".join(issue["location"] for issue in result.json["issues"])
    assert "bad1.jsonl:1" in locations
    assert "bad2.jsonl" in locations


@pytest.mark.parametrize("name", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
@pytest.mark.usefixtures("stand_ins")
def test_accelerate_configured_to_shard_exits_2(
    rlhf: Rlhf, recipe_file: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "true")
    result = rlhf("sft", "-r", "r.yaml", "--json")
    assert (result.code, result.issue["code"], result.issue["location"]) == (2, "recipe.unsupported-launcher", name)
    assert "launch.strategy: fsdp" in result.issue["hint"]
    assert not (recipe_file.parent / "runs").exists()


# --- output --------------------------------------------------------------------------------------------------------


def test_what_a_stage_and_its_children_print_goes_to_stderr_in_json_mode(rlhf: Rlhf, set_stage: SetStage) -> None:
    def run(_stage: ResolvedStage, run: Run) -> StageMetrics:
        print("a reward function prints")
        subprocess.run(["echo", "and so does its child"], check=True)
        run.model_dir.joinpath("weights").touch()
        return StageMetrics({})

    set_stage("sft", run)
    result = rlhf("sft", "-r", "r.yaml", "--json")
    assert result.json["status"] == "ok"
    assert "a reward function prints" in result.err
    assert "and so does its child" in result.err


@pytest.mark.usefixtures("stand_ins")
def test_output_without_terminal_has_no_control_characters(rlhf: Rlhf) -> None:
    results = [rlhf("run", "-r", "r.yaml"), rlhf("runs", "list"), rlhf("runs", "show", "sft")]
    results += [rlhf("check", "-r", "no"), rlhf("--help"), rlhf("check", "-r", "r.yaml", "sft"), rlhf("sft")]
    for result in results:
        assert result.out + result.err
        assert "\x1b" not in result.out + result.err
        assert "\r" not in result.out + result.err


@pytest.mark.usefixtures("stand_ins")
def test_quiet_prints_one_line_per_stage(rlhf: Rlhf) -> None:
    assert "sft      1 step\n" in rlhf("sft", "-r", "r.yaml").out
    assert rlhf("sft", "-r", "r.yaml", "-q").out == "sft      done in 0:00: runs/bot/sft/v0002\n"
    lines = rlhf("run", "-r", "r.yaml", "-q").out.splitlines()
    assert [line.split()[0] for line in lines] == [*CHAIN]


@pytest.mark.usefixtures("stand_ins")
def test_long_lines_are_not_wrapped_without_terminal(
    rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    folder = tmp_path / ("long-" * 10) / ("name-" * 10)
    out = rlhf("run", "-r", "r.yaml", "--runs-dir", folder).out
    listed = rlhf("runs", "list", "--runs-dir", folder).out
    assert out.count(f"{folder.relative_to(tmp_path)}/bot/export/v0001") == 3  # when done, in the table, and below it
    assert len(listed.splitlines()) == 2 + len(CHAIN)  # the header and its rule
    (row,) = (line for line in listed.splitlines() if "bot/reward@v0001" in line)
    assert row.rstrip().endswith("reward.accuracy 0.75")
