"""What scripts hang on: exit codes, one JSON object, plain text where there is no terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from rlhf_cli import __version__
from rlhf_cli.errors import (
    DataError,
    DiskError,
    DivergedError,
    HardwareError,
    ModelError,
    RecipeError,
    RlhfError,
    StoppedError,
)
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.stages import STAGES
from tests.support.command import Rlhf
from tests.support.stand_ins import SetStage

COMMANDS = [*STAGES, "run", "check"]
WITH_RUNS = [*COMMANDS, "runs list", "runs show"]
CHAIN = ("sft", "reward", "ppo", "eval", "export")

FIVE_FAULTS = """name: x
base: {model: org/model, quantise: nf4}
sft:
  learning_rate: fast
  learning_rate: 1e-4
reward:
  batch_size: 12
data:
  sft: {path: absent.jsonl}
"""


@pytest.fixture
def chain_is_there(rlhf: Rlhf, stand_ins: None) -> None:
    """A run of every stage, so that each can run again."""
    assert rlhf("run", "-r", "r.yaml").code == 0


# --- success -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("chain_is_there")
@pytest.mark.parametrize("stage", CHAIN)
def test_a_stage_tells_its_end_in_one_object(rlhf: Rlhf, recipe_file: Path, stage: str) -> None:
    ended = rlhf(stage, "-r", "r.yaml", "--json")
    told = ended.json
    assert ended.code == 0
    assert told.pop("seconds") >= 0
    assert told == {
        "status": "ok",
        "stage": stage,
        "run": f"bot/{stage}@v0002",
        "path": str(recipe_file.parent / "runs" / "bot" / stage / "v0002"),
        "skipped": False,
        "smoke": False,
        "metrics": {f"{stage}.loss": 0.5, "reward.accuracy": 0.75},
    }


@pytest.mark.usefixtures("stand_ins")
def test_pretrain_tells_its_end_in_one_object(rlhf: Rlhf) -> None:
    Path("text.txt").write_text("one\n\ntwo\n")
    ended = rlhf("pretrain", "-r", "r.yaml", "--set", "data.pretrain={path: text.txt}", "--json")
    assert (ended.code, ended.json["run"]) == (0, "bot/pretrain@v0001")


@pytest.mark.usefixtures("stand_ins")
def test_the_chain_tells_its_stages_and_one_map_of_metrics(rlhf: Rlhf) -> None:
    first, again = rlhf("run", "-r", "r.yaml", "--json"), rlhf("run", "-r", "r.yaml", "--json")
    assert (first.code, again.code) == (0, 0)
    assert [stage["stage"] for stage in first.json["stages"]] == [*CHAIN]
    assert first.json["metrics"] == {**{f"{stage}.loss": 0.5 for stage in CHAIN}, "reward.accuracy": 0.75}
    assert all(stage["skipped"] for stage in again.json["stages"])
    assert again.json["seconds"] == 0


def test_check_tells_what_the_data_hold(rlhf: Rlhf) -> None:
    told = rlhf("check", "-r", "r.yaml", "sft", "reward", "--json", "--set", "data.sft.eval_fraction=0").json
    assert (told["status"], told["stages"], set(told["data"])) == ("ok", ["sft", "reward"], {"sft", "preferences"})
    assert told["data"]["sft"]["train"] == 2


@pytest.mark.usefixtures("stand_ins")
def test_runs_are_listed_and_shown_in_one_object(rlhf: Rlhf) -> None:
    assert rlhf("runs", "list", "--json").json["runs"] == []
    rlhf("sft", "-r", "r.yaml")
    (listed,) = rlhf("runs", "list", "--json").json["runs"]
    assert (listed["stage"], listed["version"], listed["state"]) == ("sft", "v0001", "complete")
    shown = rlhf("runs", "show", "sft", "--json").json["run"]
    assert shown["manifest"]["metrics"] == listed["metrics"] == {"sft.loss": 0.5, "reward.accuracy": 0.75}


def test_a_dry_run_tells_in_one_object(rlhf: Rlhf, recipe_file: Path, tiny_base: Path) -> None:
    words = ("-r", "r.yaml", "--set", f"base.model={tiny_base}", "--dry-run")
    told = rlhf("sft", *words, "--json").json
    (shown,) = told["dry_run"]
    assert (told["status"], told["stage"], shown["stage"]) == ("ok", "sft", "sft")
    assert "⟦" in shown["example"]
    rows = json.loads((recipe_file.parent / "rows.jsonl").read_text().splitlines()[0])
    assert shown["example"].endswith(f"⟦{rows['completion']}</s>⟧")
    assert shown["facts"]["end token of the example"] == "under the loss"
    plain = rlhf("sft", *words).out
    assert f"⟦{rows['completion']}</s>⟧" in plain
    # By PEFT: LoRA of rank 16 on seven layers of two blocks, A and B each.
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    adapted = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert sum(shown["trainable"].values()) == adapted.get_nb_trainable_parameters()[0]
    assert set(shown["trainable"]) == {f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down")}


def test_on_a_terminal_a_dry_run_colours_what_is_under_the_loss(
    rlhf: Rlhf, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = rlhf("sft", "-r", "r.yaml", "--set", f"base.model={tiny_base}", "--dry-run").out
    assert "⟦" not in out
    assert "\x1b[32mb</s>\x1b[0m" in out


def test_a_dry_run_counts_rows_that_are_there_twice(rlhf: Rlhf, recipe_file: Path, tiny_base: Path) -> None:
    row = (recipe_file.parent / "rows.jsonl").read_text().splitlines(keepends=True)[0]
    (recipe_file.parent / "rows.jsonl").write_text(row * 3 + row.replace('"a"', '"z"'))
    words = ("-r", "r.yaml", "--set", f"base.model={tiny_base}", "--set", "data.sft.eval_fraction=0", "--dry-run")
    assert facts(rlhf("sft", *words, "--json").json)["rows that repeat another one"] == 2
    assert facts(rlhf("sft", *words, "--json").json)["rows train"] == 4


def test_a_dry_run_makes_no_run(rlhf: Rlhf, recipe_file: Path, tiny_base: Path) -> None:
    rlhf("sft", "-r", "r.yaml", "--set", f"base.model={tiny_base}", "--dry-run")
    assert not (recipe_file.parent / "runs").exists()


@pytest.fixture
def real_base(rlhf: Rlhf, recipe_file: Path, tiny_base: Path) -> None:
    """The recipe on a base with a tokenizer, of 512 positions, and thirty rows; a run of sft and of reward."""
    rows = [
        {"prompt": f"User: {i} ", "completion": "good night. " * i, "chosen": "yes", "rejected": "no"}
        for i in range(1, 31)
    ]
    (recipe_file.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe_file.write_text(recipe_file.read_text().replace("./base", str(tiny_base)))
    for stage in ("sft", "reward"):
        assert rlhf(stage, "-r", "r.yaml").code == 0


def facts(told: dict[str, Any]) -> dict[str, Any]:
    (shown,) = told["dry_run"]
    found = shown["facts"]
    assert isinstance(found, dict)
    return found


@pytest.mark.usefixtures("stand_ins", "real_base")
def test_a_dry_run_shows_rows_as_the_stage_will_have_them(rlhf: Rlhf) -> None:
    words = ("-r", "r.yaml", "--dry-run")
    cut = rlhf("sft", *words, "--set", "sft.max_length=20", "--json").json
    found = facts(cut)
    assert found["tokens in the longest"] == 20
    assert found["rows train"] == 29
    assert "dropped: prompt of 20 tokens or more" not in found  # there are none
    assert found["truncated to 20 tokens"] > 20
    assert len(cut["dry_run"][0]["example"]) < len("User: 30 ⟦" + "good night. " * 6)
    asked = rlhf("ppo", *words, "--json").json
    assert facts(asked)["rows train"] == 29
    assert asked["dry_run"][0]["example"].startswith("User: ")
    assert "⟦" not in asked["dry_run"][0]["example"]
    assert facts(rlhf("ppo", *words, "--set", "ppo.max_new_tokens=480", "--json").json)["warning"].startswith(
        "ppo.max_new_tokens: a prompt with its answer may have 992 tokens, and the base has 512 positions"
    )


def test_a_dry_run_of_smoke_waits_for_what_smoke_makes(rlhf: Rlhf) -> None:
    assert facts(rlhf("ppo", "-r", "r.yaml", "--smoke", "--dry-run", "--json").json)["waits for"] == "sft, reward"


@pytest.mark.usefixtures("stand_ins", "real_base")
def test_a_dry_run_of_eval_counts_what_it_would_measure_on(rlhf: Rlhf) -> None:
    found = facts(
        rlhf(
            "eval", "-r", "r.yaml", "--dry-run", "--set", "eval.candidate=sft", "--set", "eval.samples=1", "--json"
        ).json
    )
    assert {name: n for name, n in found.items() if name.startswith("held out")} == {
        "held out sft": 1,
        "held out preferences": 1,
        "held out prompts": 1,
    }


@pytest.mark.usefixtures("stand_ins", "real_base")
@pytest.mark.parametrize(
    ("stage", "setting", "code", "says"),
    [
        ("sft", "sft.max_length=3", 3, "sft.max_length: no row is left to train on (dropped: prompt of 3 tokens or"),
        ("reward", "reward.max_length=3", 3, "reward.max_length: no row is left to train on (dropped: over 3 tokens"),
        ("ppo", "ppo.max_prompt_length=3", 3, "no row is left to train on (dropped: empty, or over 3 tokens: 29)"),
        ("ppo", "ppo.max_new_tokens=510", 2, "ppo.max_new_tokens: a prompt with its answer has 5"),
        ("eval", "data.sft.eval_fraction=0", 3, "data.sft: no row is held out"),
    ],
)
def test_a_dry_run_fails_where_the_stage_would(rlhf: Rlhf, stage: str, setting: str, code: int, says: str) -> None:
    ended = rlhf(stage, "-r", "r.yaml", "--dry-run", "--set", "eval.candidate=sft", "--set", setting)
    assert (ended.code, ended.out) == (code, "")
    assert says in ended.err


# --- failure -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "--recipe"),
        (("-r", "r.yaml", "--bogus"), "--bogus"),
        (("-r", "absent.yaml"), "no such recipe file"),
        (("-r", "r.yaml", "--set", "ppo.klip=3"), "Did you mean clip?"),
        (("-r", "r.yaml", "--set", "ppo.clip"), "is not KEY=VALUE"),
        (("--recipe",), "--recipe"),
    ],
)
def test_a_wrong_command_line_is_one_object_with_code_2(rlhf: Rlhf, command: str, words: tuple[str], says: str) -> None:
    ended = rlhf(command, "--json", *words)
    told = ended.json
    assert ended.code == told["code"] == 2
    assert told["status"] == "error"
    assert any(says in error["message"] + error["hint"] for error in told["issues"])
    assert says in ended.err  # for people, too
    plain = rlhf(command, *words)
    assert (plain.code, plain.out) == (2, "")
    assert says in plain.err


@pytest.mark.parametrize(
    "words",
    [("bogus",), ("runs", "bogus"), ("runs", "show"), ("runs", "show", "sft"), ("run", "-r", "r.yaml", "bogus")],
)
def test_what_there_is_not_is_one_object_with_code_2(rlhf: Rlhf, words: tuple[str, ...]) -> None:
    ended = rlhf(*words, "--json")
    assert ended.code == ended.json["exit_code"] == 2


@pytest.mark.parametrize(
    "kind", [RecipeError, DataError, ModelError, HardwareError, DiskError, DivergedError, StoppedError]
)
@pytest.mark.parametrize("command", ["sft", "run"])
def test_the_exit_code_is_the_kind_of_error(
    rlhf: Rlhf, set_stage: SetStage, kind: type[RlhfError], command: str
) -> None:
    def run(recipe: Recipe, run: Run) -> StageMetrics:
        raise kind("it broke.", location="here", hint="Mend it.")

    set_stage("sft", run)
    ended = rlhf(command, "-r", "r.yaml", "--json")
    assert ended.code == ended.json["exit_code"] == kind.code
    assert ended.json["issues"] == [{"location": "here", "message": "it broke.", "hint": "Mend it."}]
    plain = rlhf(command, "-r", "r.yaml")
    assert plain.code == kind.code
    assert "error  here  it broke. Mend it." in plain.err


@pytest.mark.usefixtures("chain_is_there")
@pytest.mark.parametrize("command", ["eval", "run"])
def test_a_gate_that_fails_exits_8_and_the_run_is_complete(rlhf: Rlhf, command: str) -> None:
    ended = rlhf(command, "-r", "r.yaml", "--set", "eval.gates.0.min=0.9", "--json")
    assert ended.code == ended.json["exit_code"] == 8
    (error,) = ended.json["issues"]
    assert error["location"] == "r.yaml:7:16"
    assert error["message"] == "eval.gates.0: gate failed: reward.accuracy = 0.75, wanted at least 0.9"
    assert ended.json["metrics"]["reward.accuracy"] == 0.75  # the figures are told all the same
    assert rlhf("runs", "show", "eval@v0002", "--json").json["run"]["state"] == "complete"


@pytest.mark.usefixtures("stand_ins")
def test_a_gate_that_failed_is_seen_wherever_its_evaluation_is(rlhf: Rlhf, calls: list[str]) -> None:
    words = ("run", "-r", "r.yaml", "--set", "eval.gates.0.min=0.9")
    for state in ("done in 0:00", "up to date"):
        ended = rlhf(*words)
        assert ended.code == 8
        assert f"eval     {state}, gate failed: runs/bot/eval/v0001" in ended.out
        assert "\n eval     gate failed " in ended.out  # in the table
    chain = rlhf(*words, "--json").json
    assert {stage["stage"]: stage["status"] for stage in chain["stages"]} == {
        "sft": "ok", "reward": "ok", "ppo": "ok", "eval": "gate failed",
    }  # fmt: skip
    (listed,) = (line for line in rlhf("runs", "list").out.splitlines() if "bot/eval@v0001" in line)
    assert " gate failed " in listed
    shown = rlhf("runs", "show", "eval").out
    assert "bot/eval@v0001  complete, gate failed" in shown
    assert "FAIL  reward.accuracy = 0.75, wanted at least 0.9" in shown
    (gate,) = rlhf("runs", "show", "eval", "--json").json["run"]["gates"]
    assert gate == {"metric": "reward.accuracy", "min": 0.9, "max": None, "value": 0.75, "passed": False}
    assert calls.count("eval") == 1


def test_a_bug_exits_1_with_its_traceback_and_says_so(rlhf: Rlhf, set_stage: SetStage) -> None:
    def run(recipe: Recipe, run: Run) -> StageMetrics:
        raise ZeroDivisionError("oh")

    set_stage("sft", run)
    ended = rlhf("sft", "-r", "r.yaml", "--json")
    assert ended.code == ended.json["exit_code"] == 1
    assert "bug" in ended.json["issues"][0]["hint"]
    assert "Traceback" in ended.err
    assert "raise ZeroDivisionError" in ended.err
    assert "bug" in rlhf("sft", "-r", "r.yaml").err


def test_ctrl_c_exits_75(rlhf: Rlhf, set_stage: SetStage) -> None:
    def run(recipe: Recipe, run: Run) -> StageMetrics:
        raise KeyboardInterrupt

    set_stage("sft", run)
    ended = rlhf("sft", "-r", "r.yaml", "--json")
    assert ended.code == ended.json["exit_code"] == 75


def test_a_traceback_of_what_a_user_caused_is_there_for_the_asking(rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Traceback" not in rlhf("check", "-r", "absent.yaml").err
    monkeypatch.setenv("RLHF_DEBUG", "1")
    ended = rlhf("check", "-r", "absent.yaml", "--json")
    assert "Traceback" in ended.err
    assert ended.json["exit_code"] == 2


def test_what_a_stage_prints_does_not_stand_beside_the_object(rlhf: Rlhf, set_stage: SetStage) -> None:
    def run(recipe: Recipe, run: Run) -> StageMetrics:
        print("a reward function talks")
        subprocess.run(["echo", "and so does its child"], check=True)
        run.model_dir.joinpath("weights").touch()
        return StageMetrics({})

    set_stage("sft", run)
    ended = rlhf("sft", "-r", "r.yaml", "--json")
    assert ended.json["status"] == "ok"
    assert "a reward function talks" in ended.err


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("words", [("check",), ("run",), ("run", "--dry-run")])
def test_a_reference_that_leads_nowhere_is_told_at_its_line_before_a_stage_runs(
    rlhf: Rlhf, recipe_file: Path, calls: list[str], words: tuple[str, ...]
) -> None:
    recipe_file.write_text(recipe_file.read_text().replace("ppo:\n", "ppo:\n  start: sft@v0003\n"))
    ended = rlhf(*words, "-r", "r.yaml", "--json")
    assert ended.code == 2
    (error,) = ended.json["issues"]
    assert (error["location"], error["message"]) == ("r.yaml:7:3", "ppo.start: the run sft@v0003 does not exist.")
    assert calls == []


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("words", [("run",), ("run", "--dry-run")])
def test_a_function_that_cannot_be_loaded_is_told_before_the_first_stage(
    rlhf: Rlhf, recipe_file: Path, calls: list[str], words: tuple[str, ...]
) -> None:
    (recipe_file.parent / "f.py").write_text("def score(): ...\nprint(no_such_name)\n")
    recipe_file.write_text(recipe_file.read_text().replace("eval: {", "eval: {python: ['f.py:score'], "))
    assert rlhf("check", "-r", "r.yaml").code == 0  # runs nobody's code
    ended = rlhf(*words, "-r", "r.yaml", "--json")
    assert ended.code == 2
    assert ended.json["issues"][0]["location"] == "f.py:2"
    assert calls == []


@pytest.mark.usefixtures("chain_is_there")
def test_check_looks_for_runs_where_they_are_written(rlhf: Rlhf) -> None:
    assert rlhf("check", "-r", "r.yaml", "ppo").code == 0
    ended = rlhf("check", "-r", "r.yaml", "ppo", "--runs-dir", "elsewhere")
    assert (ended.code, "there is no sft run of bot in" in ended.err) == (2, True)


def test_every_fault_of_every_data_file_is_told_in_one_go(rlhf: Rlhf, recipe_file: Path) -> None:
    (recipe_file.parent / "bad1.jsonl").write_text("{\n")
    (recipe_file.parent / "bad2.jsonl").write_text('{"prompt": 3}\n')
    words = ("--set", "data.sft.path=bad1.jsonl", "--set", "data.preferences.path=bad2.jsonl")
    ended = rlhf("check", "-r", "r.yaml", *words, "--json")
    assert ended.code == ended.json["exit_code"] == 3
    wheres = " ".join(error["location"] for error in ended.json["issues"])
    assert "bad1.jsonl:1" in wheres
    assert "bad2.jsonl" in wheres


# --- for people ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stand_ins")
def test_where_there_is_no_terminal_nothing_is_coloured_or_redrawn(rlhf: Rlhf) -> None:
    texts = [rlhf("run", "-r", "r.yaml"), rlhf("runs", "list"), rlhf("runs", "show", "sft"), rlhf("check", "-r", "no")]
    texts += [rlhf("--help"), rlhf("check", "-r", "r.yaml", "sft"), rlhf("sft")]
    for ended in texts:
        assert "\x1b" not in ended.out + ended.err
        assert "\r" not in ended.out + ended.err


@pytest.mark.usefixtures("stand_ins")
def test_quiet_tells_the_outcome_alone_in_a_line_a_stage(rlhf: Rlhf) -> None:
    assert "1 steps" in rlhf("sft", "-r", "r.yaml").out
    assert rlhf("sft", "-r", "r.yaml", "-q").out == "sft      done in 0:00: runs/bot/sft/v0002\n"
    lines = rlhf("run", "-r", "r.yaml", "-q").out.splitlines()
    assert [line.split()[0] for line in lines] == [*CHAIN]


@pytest.mark.usefixtures("stand_ins")
def test_where_there_is_no_terminal_a_line_is_a_line_however_long(
    rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    place = tmp_path / ("long-" * 10) / ("name-" * 10)
    out = rlhf("run", "-r", "r.yaml", "--runs-dir", place).out
    listed = rlhf("runs", "list", "--runs-dir", place).out
    assert out.count(f"{place.relative_to(tmp_path)}/bot/export/v0001") == 3  # as it ends, in the table, and below
    assert len(listed.splitlines()) == 2 + len(CHAIN)  # the head and its rule
    (listed_run,) = (line for line in listed.splitlines() if "bot/reward@v0001" in line)
    assert listed_run.rstrip().endswith("reward.accuracy 0.75")


@pytest.mark.usefixtures("stand_ins")
def test_the_folder_of_runs_is_an_option_or_a_variable(
    rlhf: Rlhf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rlhf("sft", "-r", "r.yaml", "--runs-dir", "one")
    monkeypatch.setenv("RLHF_RUNS", str(tmp_path / "two"))
    rlhf("sft", "-r", "r.yaml")
    assert (tmp_path / "one/bot/sft/v0001/manifest.json").is_file()
    assert (tmp_path / "two/bot/sft/v0001/manifest.json").is_file()
    assert len(rlhf("runs", "list", "--json").json["runs"]) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("stand_ins")
def test_skip_if_done_says_that_all_is_up_to_date(rlhf: Rlhf) -> None:
    rlhf("sft", "-r", "r.yaml")
    ended = rlhf("sft", "-r", "r.yaml", "--skip-if-done")
    assert "up to date" in ended.out
    assert rlhf("sft", "-r", "r.yaml", "--skip-if-done", "--json").json["skipped"] is True


@pytest.mark.usefixtures("stand_ins")
def test_a_chain_of_named_stages_runs_in_the_order_of_the_chain(rlhf: Rlhf, calls: list[str]) -> None:
    assert rlhf("run", "-r", "r.yaml", "reward", "sft").code == 0
    assert calls == ["sft", "reward"]


def test_a_recipe_without_stages_has_nothing_to_run(rlhf: Rlhf, recipe_file: Path) -> None:
    (recipe_file.parent / "bare.yaml").write_text("name: x\nbase: {model: a/b}\n")
    for command in ("run", "check"):
        ended = rlhf(command, "-r", "bare.yaml")
        assert ended.code == 2
        assert "no stage to run" in ended.err


def test_a_word_that_is_no_stage_is_told_with_what_was_meant(rlhf: Rlhf) -> None:
    ended = rlhf("run", "sft", "r.yaml", "ppoo", "zzz")
    assert ended.code == 2
    assert ended.err.splitlines() == [
        "error  r.yaml is no stage. A recipe is given as -r r.yaml.",
        "error  ppoo is no stage. Did you mean ppo?",
        "error  zzz is no stage. Stages are pretrain, sft, reward, ppo, eval, export.",
    ]


def test_help_gives_flags_no_type(rlhf: Rlhf) -> None:
    for command in COMMANDS:
        lines = rlhf(command, "--help").out.splitlines()
        assert [line for line in lines if "<bool>" in line and "--help" not in line] == []


@pytest.mark.usefixtures("stand_ins")
def test_smoke_says_that_it_is_one(rlhf: Rlhf) -> None:
    assert "smoke" in rlhf("sft", "-r", "r.yaml", "--smoke").out
    assert rlhf("sft", "-r", "r.yaml", "--smoke", "--json").json["smoke"] is True
    assert {run["state"] for run in rlhf("runs", "list", "--json").json["runs"]} == {"smoke"}


def test_help_names_every_command_and_version_the_version(rlhf: Rlhf) -> None:
    ended = rlhf("--help")
    assert ended.code == 0
    for command in (*COMMANDS, "runs"):
        assert f" {command} " in ended.out
    assert rlhf("--version") == (0, f"rlhf {__version__}\n", "")
    for command in COMMANDS:
        told = rlhf(command, "--help")
        assert told.code == 0
        assert "--recipe" in told.out


def test_bash_gets_its_completion() -> None:
    """Asked as a shell asks: `--show-completion` looks for the shell among its parents, where a CI job has none."""
    asked = {**os.environ, "_RLHF_COMPLETE": "source_bash"}
    command = [str(Path(sys.executable).parent / "rlhf")]
    told = subprocess.run(command, env=asked, capture_output=True, text=True, check=True)
    assert "complete " in told.stdout


@pytest.mark.parametrize(
    "words", [["--help"], ["check", "-r", "bad.yaml"], ["sft", "-r", "bad.yaml", "--json"], ["runs", "list"]]
)
def test_what_must_be_quick_loads_nothing_heavy(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "bad.yaml").write_text(FIVE_FAULTS)
    code = """
import json, sys
from rlhf_cli.cli.app import main
try:
    main()
except SystemExit as stopped:
    sys.stderr.write("\\n" + json.dumps([stopped.code, sorted(m for m in sys.modules if "." not in m)]))
"""
    command = [sys.executable, "-c", code, *words]
    told = subprocess.run(command, cwd=tmp_path, env=_environment(), capture_output=True, text=True, check=False)
    exit_code, modules = json.loads(told.stderr.splitlines()[-1])
    heavy = {
        "torch",
        "trl",
        "transformers",
        "peft",
        "datasets",
        "accelerate",
        "bitsandbytes",
        "scipy",
        "numpy",
        "pandas",
    }
    assert heavy & set(modules) == set()
    assert exit_code == (2 if "bad.yaml" in words else 0)


def _environment() -> dict[str, str]:
    """This test's own, and the package from where it lies, wherever the command runs."""
    import os

    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.mark.parametrize("name", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
@pytest.mark.usefixtures("stand_ins")
def test_a_configuration_of_accelerate_that_is_not_used_is_refused(
    rlhf: Rlhf, recipe_file: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "true")
    ended = rlhf("sft", "-r", "r.yaml", "--json")
    assert ended.code == 2
    (issue,) = ended.json["issues"]
    assert issue["location"] == name
    assert "launch.strategy: fsdp" in issue["hint"]
    assert not (recipe_file.parent / "runs").exists()
