"""`rlhf runs`: what was made, by every form of its name, complete or not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rlhf_cli.runs.run import Run
from tests.support.command import Rlhf
from tests.support.reporters import RecordingReporter


def make(runs: Path, stage: str = "sft", name: str = "bot", *, smoke: bool = False, complete: bool = True) -> Run:
    run = Run.create(runs, name, stage, smoke=smoke, base="b", reporter=RecordingReporter())
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


def test_a_run_is_shown_by_every_form_of_its_name(rlhf: Rlhf, runs: Path) -> None:
    for _ in range(2):
        make(runs)
    make(runs, smoke=True)
    make(runs, complete=False)
    for text in ("sft", "bot/sft", "sft@latest", "bot/sft@latest", "runs/bot/sft/latest", runs / "bot/sft/v0002"):
        assert shown(rlhf, text) == "bot/sft@v0002"
    assert shown(rlhf, "sft@v0001") == "bot/sft@v0001"
    assert shown(rlhf, "bot/sft@v0003") == "bot/sft@v0003"
    assert shown(rlhf, "runs/bot/sft/v0004") == "bot/sft@v0004"


def test_a_name_that_two_recipes_share_must_be_written_out(rlhf: Rlhf, runs: Path) -> None:
    make(runs)
    make(runs, name="cat")
    ended = rlhf("runs", "show", "sft")
    assert ended.code == 2
    assert "bot/sft, cat/sft" in ended.err
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
def test_a_run_that_there_is_not_is_told(rlhf: Rlhf, runs: Path, text: str, hint: str) -> None:
    make(runs)
    ended = rlhf("runs", "show", text)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"error  there is no run {text} in {runs}. {hint}\n"


def test_a_folder_that_happens_to_have_the_name_is_no_run(rlhf: Rlhf, runs: Path) -> None:
    make(runs)
    (runs.parent / "sft").mkdir()
    assert shown(rlhf, "sft") == "bot/sft@v0001"
    assert rlhf("runs", "show", ".").code == 2


def test_a_run_that_was_killed_in_the_middle_of_a_line_is_shown(rlhf: Rlhf, runs: Path) -> None:
    run = make(runs, complete=False)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    told = rlhf("runs", "show", "sft", "--json").json["run"]
    assert (told["state"], told["manifest"], told["last_step"]["step"]) == ("incomplete", None, 2)
    assert "incomplete" in rlhf("runs", "show", "sft").out


def test_a_run_is_shown_with_figures_and_samples(rlhf: Rlhf, runs: Path) -> None:
    make(runs)
    out = rlhf("runs", "show", "sft").out
    for text in ("bot/sft@v0001  complete", "sft.loss", "0.25", "good [night]"):
        assert text in out


def test_samples_and_inputs_are_shown_for_people(rlhf: Rlhf, runs: Path) -> None:
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


def test_a_listing_tells_the_state_of_each(rlhf: Rlhf, runs: Path) -> None:
    make(runs)
    make(runs, smoke=True)
    make(runs, complete=False)
    states = [(run["version"], run["state"]) for run in rlhf("runs", "list", "--json").json["runs"]]
    assert states == [("v0001", "complete"), ("v0002", "smoke"), ("v0003", "incomplete")]
    out = rlhf("runs", "list").out
    assert [word for word in out.split() if word in ("complete", "smoke", "incomplete")] == [s for _, s in states]


def test_a_listing_goes_from_the_oldest_run_to_the_newest(rlhf: Rlhf, runs: Path) -> None:
    made = [make(runs, "sft"), make(runs, "reward"), make(runs, "ppo", complete=False), make(runs, "eval")]
    for at, run in zip((400, 100, 300, 200), made, strict=True):
        file = run.path / ("manifest.json" if run.stage != "ppo" else "started.json")
        started = f"1970-01-01T00:{at // 60:02}:{at % 60:02}Z" if run.stage != "ppo" else at
        file.write_text(json.dumps({**json.loads(file.read_text()), "started": started}))
    listed = [run["stage"] for run in rlhf("runs", "list", "--json").json["runs"]]
    assert listed == ["reward", "eval", "ppo", "sft"]


def test_where_there_are_none_that_is_said(rlhf: Rlhf) -> None:
    assert "no runs in nowhere" in rlhf("runs", "list", "--runs-dir", "nowhere").out


def test_a_figure_that_is_not_finite_is_null_and_is_said(rlhf: Rlhf, runs: Path) -> None:
    run = make(runs, complete=False)
    run.complete({"sft.loss": float("nan")}, {"device": "cpu", "inputs": []})
    assert json.loads(rlhf("runs", "show", "sft", "--json").out)["run"]["metrics"] == {"sft.loss": None}
    assert "not finite" in rlhf("runs", "show", "sft").out


def test_an_incomplete_run_tells_how_it_stands(rlhf: Rlhf, runs: Path) -> None:
    run = make(runs, complete=False)
    assert f"running, process {os.getpid()}" in rlhf("runs", "list").out
    with run.checkpoint(2) as folder:
        (folder / "state").touch()
    run.close()
    (listed,) = rlhf("runs", "list", "--json").json["runs"]
    assert (listed["state"], listed["detail"]) == ("incomplete", "stopped, saved at step 2")
    assert "stopped, saved at step 2; last step logged: 2" in rlhf("runs", "show", "sft").out


def test_verify_reads_every_byte(rlhf: Rlhf, runs: Path) -> None:
    make(runs)
    run = make(runs, "ppo", complete=False)
    (run.model_dir / "weights").write_bytes(b"abc")
    with run.checkpoint(2) as folder:
        (folder / "state").write_bytes(b"def")
    run.complete({}, {"device": "cpu", "inputs": []})
    told = rlhf("runs", "verify")
    assert told.code == 0
    assert "bot/ppo@v0001  whole: 2 files, 6 bytes" in told.out
    assert rlhf("runs", "verify", "--json").json["runs"] == [
        {"run": "bot/ppo@v0001", "files": 2, "bytes": 6},
        {"run": "bot/sft@v0001", "files": 0, "bytes": 0},
    ]
    (run.checkpoint_path(2) / "state").write_bytes(b"dex")
    (run.path / "model" / "weights").unlink()
    told = rlhf("runs", "verify")
    assert told.code == 4
    assert "bot/sft@v0001  whole" in told.out
    assert "bot/ppo@v0001" not in told.out
    for text in ("model/weights  cannot be read", "step-000002/state  has another content"):
        assert text in told.err
    assert rlhf("runs", "verify", "sft").code == 0
    failed = rlhf("runs", "verify", "ppo", "--json")
    assert (failed.code, len(failed.json["issues"])) == (4, 2)


def chained(rlhf: Rlhf) -> None:
    for stage in ("sft", "reward"):
        assert rlhf(stage, "-r", "r.yaml", "--quiet").code == 0


@pytest.mark.usefixtures("stand_ins")
def test_lineage_goes_back_to_base_and_data(rlhf: Rlhf) -> None:
    chained(rlhf)
    out = rlhf("runs", "lineage", "reward").out
    assert out.startswith("bot/reward@v0001\n")
    assert "\n  start            bot/sft@v0001  " in out
    assert "\n      base             " in out
    found = [(one["depth"], one["role"]) for one in rlhf("runs", "lineage", "reward", "--json").json["made_of"]]
    assert found == [(0, "base"), (0, "start"), (1, "base"), (1, "data.sft"), (0, "data.preferences")]


@pytest.mark.usefixtures("stand_ins")
def test_diff_tells_what_two_runs_have_not_in_common(rlhf: Rlhf) -> None:
    rlhf("sft", "-r", "r.yaml")
    rlhf("sft", "-r", "r.yaml", "--set", "sft.learning_rate=0.5", "--set", "seed=3")
    told = rlhf("runs", "diff", "sft@v0001", "sft@v0002")
    assert told.code == 0
    assert "sft.learning_rate" in told.out
    found = rlhf("runs", "diff", "sft@v0001", "sft@v0002", "--json").json["differs"]
    assert found == {"seed": [0, 3], "sft.learning_rate": [2e-4, 0.5]}
    assert "are alike" in rlhf("runs", "diff", "sft@v0001", "sft@v0001").out


@pytest.mark.usefixtures("stand_ins")
def test_rm_refuses_what_others_are_made_of(rlhf: Rlhf, runs: Path) -> None:
    chained(rlhf)
    told = rlhf("runs", "rm", "sft@v0001")
    assert told.code == 2
    assert "bot/reward@v0001 is made of bot/sft@v0001" in told.err
    told = rlhf("runs", "rm", "reward")
    assert (told.code, "Write bot/reward@v0001" in told.err) == (2, True)
    assert rlhf("runs", "rm", "reward@v0001").code == 0
    assert rlhf("runs", "rm", "sft@v0001", "--json").json["run"] == "bot/sft@v0001"
    assert "no runs in" in rlhf("runs", "list").out
