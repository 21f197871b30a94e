"""Tests of `rlhf runs`: every form of a run's name, complete or incomplete runs, verification and removal."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rlhf_cli.runs.run import Run
from tests.support.command import Rlhf
from tests.support.reporters import RecordingReporter


def make(runs: Path, stage: str = "sft", name: str = "bot", *, smoke: bool = False, complete: bool = True) -> Run:
    run = Run.create(runs, name, stage, smoke=smoke, reporter=RecordingReporter())
    run.log(1, {"loss": 2.0})
    run.log(2, {"loss": 1.0})
    run.sample({"prompt": "hello", "response": "good [night]"})
    if complete:
        run.complete({"sft.loss": 0.25}, {"device": "cpu", "inputs": []})
    return run


@pytest.fixture
def runs(recipe_file: Path) -> Path:
    return recipe_file.parent / "runs"


def shown(rlhf: Rlhf, text: str | Path) -> str:
    run = rlhf("runs", "show", text, "--json").json["run"]
    return f"{run['name']}/{run['stage']}@{run['version']}"


def test_show_accepts_every_form_of_a_run_reference(rlhf: Rlhf, runs: Path) -> None:
    for _ in range(2):
        make(runs)
    make(runs, smoke=True)
    make(runs, complete=False)
    for text in ("sft", "bot/sft", "sft@latest", "bot/sft@latest", "runs/bot/sft/latest", runs / "bot/sft/v0002"):
        assert shown(rlhf, text) == "bot/sft@v0002"
    assert shown(rlhf, "sft@v0001") == "bot/sft@v0001"
    assert shown(rlhf, "bot/sft@v0003") == "bot/sft@v0003"
    assert shown(rlhf, "runs/bot/sft/v0004") == "bot/sft@v0004"


def test_show_stage_of_two_recipes_exits_2_and_lists_both(rlhf: Rlhf, runs: Path) -> None:
    make(runs)
    make(runs, name="cat")
    result = rlhf("runs", "show", "sft", "--json")
    assert (result.code, result.issue["code"]) == (2, "recipe.ambiguous-run")
    assert result.issue["message"] == "sft is ambiguous; found bot/sft, cat/sft."
    assert shown(rlhf, "cat/sft") == "cat/sft@v0001"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("bot/sft@v0009", "See `rlhf runs list`."),
        ("bot/ppo", "See `rlhf runs list`."),
        ("ppo", "See `rlhf runs list`."),
        ("sfft", "Did you mean sft?"),
        ("bott/sft@v0001", "Did you mean bot/sft?"),
    ],
)
def test_show_run_that_does_not_exist_exits_2_with_suggestion(rlhf: Rlhf, runs: Path, text: str, hint: str) -> None:
    make(runs)
    result = rlhf("runs", "show", text)
    assert (result.code, result.out) == (2, "")
    assert result.err == f"error  run not found: {text} in runs. {hint} [recipe.run-not-found]\n"


def test_show_ignores_other_folder_with_the_name_of_a_stage(rlhf: Rlhf, runs: Path) -> None:
    make(runs)
    (runs.parent / "sft").mkdir()
    assert shown(rlhf, "sft") == "bot/sft@v0001"
    result = rlhf("runs", "show", ".")
    assert (result.code, result.codes) == (2, ["recipe.invalid-run-reference"])


def test_show_run_killed_in_the_middle_of_a_line_ignores_the_half_line(rlhf: Rlhf, runs: Path) -> None:
    run = make(runs, complete=False)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    content = rlhf("runs", "show", "sft", "--json").json["run"]
    assert (content["state"], content["manifest"], content["last_step"]["step"]) == ("incomplete", None, 2)
    assert "incomplete" in rlhf("runs", "show", "sft").out


def test_show_prints_metrics_and_samples(rlhf: Rlhf, runs: Path) -> None:
    make(runs)
    out = rlhf("runs", "show", "sft").out
    for text in ("bot/sft@v0001  complete", "\nmetrics\n", "sft.loss", "0.25", "good [night]"):
        assert text in out


def test_show_prints_conversations_by_message_escapes_control_characters_and_merges_inputs(
    rlhf: Rlhf, runs: Path
) -> None:
    run = make(runs, complete=False)
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
    run.sample({"step": 3, "prompt": turns, "response": "\x1b[2J", "reward": 0.12345678901234567})
    file = {"kind": "file", "ref": "gold.py", "path": "/a/gold.py", "version": None, "sha256": "0123456789abcdef"}
    roles = ["data.sft", "eval.python.0", "eval.python.1", "eval.python.2"]
    inputs = [{**file, "role": role, "path": "/a/gold.py" if "python" in role else "/a/rows.jsonl"} for role in roles]
    run.complete({}, {"device": "cpu", "inputs": inputs})
    out = rlhf("runs", "show", "sft").out
    assert "prompt           user: Hi?\n                   assistant: Yes.\n" in out
    assert "response         \\x1b[2J\n" in out
    assert "reward           0.123\n" in out
    assert "step             3\n" in out
    assert "  data.sft         0123456789ab  /a/rows.jsonl\n  eval.python.0–2  0123456789ab  /a/gold.py\n" in out


def test_list_shows_the_state_of_each_run(rlhf: Rlhf, runs: Path) -> None:
    make(runs)
    make(runs, smoke=True)
    make(runs, complete=False)
    states = [(run["version"], run["state"]) for run in rlhf("runs", "list", "--json").json["runs"]]
    assert states == [("v0001", "complete"), ("v0002", "smoke"), ("v0003", "incomplete")]
    out = rlhf("runs", "list").out
    assert [word for word in out.split() if word in ("complete", "smoke", "incomplete")] == [s for _, s in states]


def test_list_is_sorted_from_oldest_to_newest(rlhf: Rlhf, runs: Path) -> None:
    made = [make(runs, "sft"), make(runs, "reward"), make(runs, "ppo", complete=False), make(runs, "eval")]
    for seconds, run in zip((400, 100, 300, 200), made, strict=True):
        incomplete = run.stage == "ppo"
        file = run.path / ("started.json" if incomplete else "manifest.json")
        started = seconds if incomplete else f"1970-01-01T00:{seconds // 60:02}:{seconds % 60:02}Z"
        file.write_text(json.dumps({**json.loads(file.read_text()), "started": started}))
    listed = [run["stage"] for run in rlhf("runs", "list", "--json").json["runs"]]
    assert listed == ["reward", "eval", "ppo", "sft"]


def test_list_shows_damaged_run_with_reason_and_no_other_is_hidden(rlhf: Rlhf, runs: Path) -> None:
    make(runs)
    (make(runs).path / "manifest.json").write_text("{")
    listed = rlhf("runs", "list", "--json").json["runs"]
    assert sorted((run["version"], run["state"]) for run in listed) == [("v0001", "complete"), ("v0002", "damaged")]
    (damaged,) = (run for run in listed if run["state"] == "damaged")
    assert "v0002/manifest.json" in damaged["detail"]
    assert "  damaged  " in rlhf("runs", "list").out


def test_list_without_runs_names_the_directory(rlhf: Rlhf) -> None:
    assert rlhf("runs", "list", "--runs-dir", "nowhere").out == "no runs in nowhere\n"


def test_metric_that_is_not_finite_is_null_in_json_and_named_in_text(rlhf: Rlhf, runs: Path) -> None:
    run = make(runs, complete=False)
    run.complete({"sft.loss": float("nan")}, {"device": "cpu", "inputs": []})
    assert json.loads(rlhf("runs", "show", "sft", "--json").out)["run"]["metrics"] == {"sft.loss": None}
    assert "not finite" in rlhf("runs", "show", "sft").out


def test_incomplete_run_is_shown_as_running_or_stopped_with_its_last_checkpoint(rlhf: Rlhf, runs: Path) -> None:
    run = make(runs, complete=False)
    assert f"running, process {os.getpid()}" in rlhf("runs", "list").out
    with run.checkpoint(2) as folder:
        (folder / "state").touch()
    run.close()
    (listed,) = rlhf("runs", "list", "--json").json["runs"]
    assert (listed["state"], listed["detail"]) == ("incomplete", "stopped, saved at step 2")
    assert "stopped, saved at step 2; last logged step: 2" in rlhf("runs", "show", "sft").out


@pytest.fixture
def runs_with_files(runs: Path) -> Path:
    """Write an sft run without files and a ppo run with a model and a checkpoint; return the ppo run's folder."""
    make(runs)
    run = make(runs, "ppo", complete=False)
    (run.model_dir / "weights").write_bytes(b"abc")
    with run.checkpoint(2) as folder:
        (folder / "state").write_bytes(b"def")
    run.complete({}, {"device": "cpu", "inputs": []})
    return run.path


@pytest.mark.usefixtures("runs_with_files")
def test_verify_intact_runs_counts_files_and_bytes(rlhf: Rlhf) -> None:
    result = rlhf("runs", "verify")
    assert result.code == 0
    assert "bot/ppo@v0001  OK: 2 files, 6 bytes" in result.out
    assert rlhf("runs", "verify", "--json").json["runs"] == [
        {"run": "bot/ppo@v0001", "files": 2, "bytes": 6},
        {"run": "bot/sft@v0001", "files": 0, "bytes": 0},
    ]


def test_verify_damaged_run_exits_4_with_one_issue_per_file(rlhf: Rlhf, runs_with_files: Path) -> None:
    (checkpoint,) = (runs_with_files / "checkpoints").iterdir()
    (checkpoint / "state").write_bytes(b"dex")
    (runs_with_files / "model" / "weights").unlink()
    result = rlhf("runs", "verify")
    assert result.code == 4
    assert "bot/sft@v0001  OK" in result.out
    assert "bot/ppo@v0001" not in result.out
    assert rlhf("runs", "verify", "sft").code == 0
    failed = rlhf("runs", "verify", "ppo", "--json")
    assert failed.code == 4
    assert [(issue["code"], issue["location"]) for issue in failed.json["issues"]] == [
        ("model.damaged-file", str(runs_with_files / "model" / "weights")),
        ("model.damaged-file", str(checkpoint / "state")),
    ]


def run_sft_and_reward(rlhf: Rlhf) -> None:
    for stage in ("sft", "reward"):
        assert rlhf(stage, "-r", "r.yaml", "--quiet").code == 0


@pytest.mark.usefixtures("stand_ins")
def test_lineage_goes_back_to_base_and_data(rlhf: Rlhf) -> None:
    run_sft_and_reward(rlhf)
    out = rlhf("runs", "lineage", "reward").out
    assert out.startswith("bot/reward@v0001\n")
    assert "\n  start            bot/sft@v0001  " in out
    assert "\n      base             " in out
    ancestors = [(one["depth"], one["role"]) for one in rlhf("runs", "lineage", "reward", "--json").json["ancestors"]]
    assert ancestors == [(0, "base"), (0, "start"), (1, "base"), (1, "data.sft"), (0, "data.preferences")]


@pytest.mark.usefixtures("stand_ins")
def test_diff_shows_changed_settings_only(rlhf: Rlhf) -> None:
    rlhf("sft", "-r", "r.yaml")
    rlhf("sft", "-r", "r.yaml", "--set", "sft.learning_rate=0.5", "--set", "seed=3")
    result = rlhf("runs", "diff", "sft@v0001", "sft@v0002")
    assert result.code == 0
    assert "sft.learning_rate" in result.out
    content = rlhf("runs", "diff", "sft@v0001", "sft@v0002", "--json").json
    assert content["runs"] == ["bot/sft@v0001", "bot/sft@v0002"]
    assert content["differences"] == {"seed": [0, 3], "sft.learning_rate": [2e-4, 0.5]}
    assert "are identical" in rlhf("runs", "diff", "sft@v0001", "sft@v0001").out


@pytest.mark.usefixtures("stand_ins")
def test_diff_of_run_with_unreadable_recipe_exits_4(rlhf: Rlhf, runs: Path) -> None:
    rlhf("sft", "-r", "r.yaml")
    (runs / "bot/sft/v0001/recipe.yaml").write_text("{")
    result = rlhf("runs", "diff", "sft", "sft", "--json")
    assert (result.code, result.issue["code"]) == (4, "model.damaged-file")
    assert result.issue["location"] == str(runs / "bot/sft/v0001/recipe.yaml")


@pytest.mark.usefixtures("stand_ins")
def test_rm_of_run_that_others_depend_on_is_refused(rlhf: Rlhf) -> None:
    run_sft_and_reward(rlhf)
    result = rlhf("runs", "rm", "sft@v0001", "--json")
    assert (result.code, result.issue["code"]) == (2, "recipe.run-in-use")
    assert rlhf("runs", "rm", "reward@v0001").code == 0
    assert rlhf("runs", "rm", "sft@v0001", "--json").json["run"] == "bot/sft@v0001"
    assert rlhf("runs", "list").out == "no runs in runs\n"


@pytest.mark.usefixtures("stand_ins")
def test_rm_with_force_removes_run_that_others_depend_on(rlhf: Rlhf, runs: Path) -> None:
    run_sft_and_reward(rlhf)
    assert rlhf("runs", "rm", "sft@v0001", "--force").code == 0
    assert not (runs / "bot/sft/v0001").exists()


def test_rm_without_version_exits_2_and_names_it(rlhf: Rlhf, runs: Path) -> None:
    make(runs)
    result = rlhf("runs", "rm", "sft", "--json")
    assert (result.code, result.issue["code"]) == (2, "recipe.ambiguous-run")
    assert result.issue["message"] == "sft does not specify a version."
    assert result.issue["hint"] == "Use bot/sft@v0001."
