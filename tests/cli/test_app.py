"""Tests of the command line as scripts use it: exit codes, errors, help, completion and start-up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

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
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.stages import STAGES
from tests.support.command import CommandResult, Rlhf
from tests.support.stand_ins import SetStage

if TYPE_CHECKING:
    from rlhf_cli.pipeline.resolve import ResolvedStage

RECIPE_COMMANDS = [*(name for name, spec in STAGES.items() if not spec.command), "run", "check"]
ROOT = Path(__file__).parents[2]
HEAVY_LIBRARIES = {
    "torch", "trl", "transformers", "peft", "datasets", "accelerate", "bitsandbytes", "scipy", "numpy", "pandas",
}  # fmt: skip

FIVE_ERRORS = """name: x
base: {model: org/model, quantise: nf4}
sft:
  learning_rate: fast
  learning_rate: 1e-4
reward:
  batch_size: 12
data:
  sft: {path: absent.jsonl}
"""


# --- exit codes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", RECIPE_COMMANDS)
@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ((), "recipe.not-found", "--recipe"),
        (("-r", "r.yaml", "--bogus"), "recipe.usage", "--bogus"),
        (("-r", "absent.yaml"), "recipe.not-found", "absent.yaml"),
        (("-r", "r.yaml", "--set", "ppo.klip=3"), "recipe.unknown-key", "clip"),
        (("-r", "r.yaml", "--set", "ppo.clip"), "recipe.invalid-override", "KEY=VALUE"),
        (("--recipe",), "recipe.usage", "--recipe"),
    ],
)
def test_invalid_command_line_exits_2_with_one_object(
    rlhf: Rlhf, command: str, words: tuple[str, ...], code: str, text: str
) -> None:
    result = rlhf(command, "--json", *words)
    assert result.code == result.json["exit_code"] == 2
    assert result.json["status"] == "error"
    assert [issue["code"] for issue in result.json["issues"]] == result.codes
    (issue,) = (issue for issue in result.json["issues"] if issue["code"] == code)
    assert text in " ".join(issue.values())
    plain = rlhf(command, *words)
    assert (plain.code, plain.out, plain.codes) == (2, "", result.codes)
    assert text in plain.err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("bogus",), "recipe.usage"),
        (("runs", "bogus"), "recipe.usage"),
        (("runs", "show"), "recipe.usage"),
        (("runs", "show", "sft"), "recipe.run-not-found"),
        (("run", "-r", "r.yaml", "bogus"), "recipe.unknown-stage"),
    ],
)
def test_unknown_command_run_or_stage_exits_2_with_one_object(rlhf: Rlhf, words: tuple[str, ...], code: str) -> None:
    result = rlhf(*words, "--json")
    assert result.code == result.json["exit_code"] == 2
    assert result.issue["code"] == code


def test_usage_error_names_the_option_and_the_help(rlhf: Rlhf) -> None:
    result = rlhf("sft", "--bogus")
    assert result.err == "error  no such option: --bogus. See `rlhf sft --help`. [recipe.usage]\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RecipeError, "recipe.unknown-key"),
        (DataError, "data.empty-completion"),
        (ModelError, "model.adapter-of-other-base"),
        (HardwareError, "hardware.out-of-memory"),
        (DiskError, "disk.full"),
        (DivergedError, "training.non-finite"),
        (StoppedError, "run.stopped"),
    ],
)
@pytest.mark.parametrize("command", ["sft", "run"])
def test_exit_code_follows_from_the_class_of_the_error(
    rlhf: Rlhf, set_stage: SetStage, error: type[RlhfError], code: str, command: str
) -> None:
    def run(_stage: ResolvedStage, _run: Run) -> StageMetrics:
        raise error(code, "it broke.", location="here", hint="Fix it.")

    set_stage("sft", run)
    result = rlhf(command, "-r", "r.yaml", "--json")
    assert result.code == result.json["exit_code"] == error.exit_code
    assert result.json["issues"] == [{"code": code, "message": "it broke.", "location": "here", "hint": "Fix it."}]
    plain = rlhf(command, "-r", "r.yaml")
    assert plain.code == error.exit_code
    assert f"error  here  it broke. Fix it. [{code}]\n" in plain.err


def test_internal_error_exits_1_with_traceback_and_asks_for_a_report(rlhf: Rlhf, set_stage: SetStage) -> None:
    def run(_stage: ResolvedStage, _run: Run) -> StageMetrics:
        raise ZeroDivisionError("oh")

    set_stage("sft", run)
    result = rlhf("sft", "-r", "r.yaml", "--json")
    assert result.code == result.json["exit_code"] == 1
    assert (result.issue["code"], result.issue["message"]) == ("internal.error", "ZeroDivisionError: oh.")
    assert "report it" in result.issue["hint"]
    assert "Traceback" in result.err
    assert "raise ZeroDivisionError" in result.err
    assert rlhf("sft", "-r", "r.yaml").codes == ["internal.error"]


def test_ctrl_c_exits_75(rlhf: Rlhf, set_stage: SetStage) -> None:
    def run(_stage: ResolvedStage, _run: Run) -> StageMetrics:
        raise KeyboardInterrupt

    set_stage("sft", run)
    result = rlhf("sft", "-r", "r.yaml", "--json")
    assert result.code == result.json["exit_code"] == 75
    assert result.issue["code"] == "run.stopped"


def test_ctrl_c_before_the_run_starts_exits_75(rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rlhf_cli.cli.options.recipe_path", interrupt)
    result = rlhf("sft", "-r", "r.yaml", "--json")
    assert (result.code, result.issue["code"]) == (75, "run.stopped")
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("redirection", "exit_code", "codes"),
    [
        ("| true", 0, []),  # the reader ends early, as `head` does
        (">&-", 0, []),  # closed, as under cron
        ("--json >&-", 0, []),
        ("> /dev/full", 6, ["disk.full"]),
        ("--json > /dev/full", 6, ["disk.full"]),
    ],
)
def test_command_whose_stdout_cannot_be_written_has_no_traceback(
    recipe_file: Path, redirection: str, exit_code: int, codes: list[str]
) -> None:
    command = f"{sys.executable} -m rlhf_cli check -r {recipe_file} sft {redirection}; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], env=environment(), capture_output=True, text=True, check=False)
    result = CommandResult(ended.returncode, ended.stdout, ended.stderr)
    assert (result.code, result.codes) == (exit_code, codes), result.err
    assert len(result.err.splitlines()) == len(codes)


def test_process_that_is_not_main_prints_nothing_to_stdout_in_json_mode(
    rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recipe_path(*_paths: object) -> Path:
        print("a library prints")
        return Path("r.yaml")

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("rlhf_cli.cli.options.recipe_path", recipe_path)
    result = rlhf("check", "-r", "r.yaml", "sft", "--json")
    assert (result.code, result.out) == (0, "")
    assert "a library prints" in result.err


def test_rlhf_debug_adds_traceback_to_user_errors(rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Traceback" not in rlhf("check", "-r", "absent.yaml").err
    monkeypatch.setenv("RLHF_DEBUG", "1")
    result = rlhf("check", "-r", "absent.yaml", "--json")
    assert "Traceback" in result.err
    assert result.json["exit_code"] == 2


# --- help, version, completion, schema -----------------------------------------------------------------------------


def test_help_lists_every_command(rlhf: Rlhf) -> None:
    result = rlhf("--help")
    assert result.code == 0
    for command in (*RECIPE_COMMANDS, "runs", "init", "doctor", "schema"):
        assert f" {command} " in result.out


@pytest.mark.parametrize("command", RECIPE_COMMANDS)
def test_help_of_recipe_command_names_the_option_and_no_type_of_flags(rlhf: Rlhf, command: str) -> None:
    result = rlhf(command, "--help")
    assert result.code == 0
    assert "--recipe" in result.out
    assert [line for line in result.out.splitlines() if "<bool>" in line and "--help" not in line] == []


@pytest.mark.parametrize("words", [(), ("runs",)])
def test_command_group_without_command_prints_help_and_no_error(rlhf: Rlhf, words: tuple[str, ...]) -> None:
    result = rlhf(*words)
    assert result.code == 2
    assert "Usage: rlhf" in result.out + result.err
    assert result.codes == []


def test_version_is_printed(rlhf: Rlhf) -> None:
    assert rlhf("--version") == (0, f"rlhf {__version__}\n", "")


def test_schema_prints_json_schema_of_the_recipe(rlhf: Rlhf) -> None:
    result = rlhf("schema")
    assert result.code == 0
    schema = json.loads(result.out)
    assert {*STAGES, "name", "base", "data"} <= schema["properties"].keys()
    assert schema["type"] == "object"


def test_bash_completion_script_is_printed() -> None:
    """Requested as a shell does: `--show-completion` looks for the shell among its parents, and CI jobs have none."""
    requested = {**os.environ, "_RLHF_COMPLETE": "source_bash"}
    command = [str(Path(sys.executable).parent / "rlhf")]
    ended = subprocess.run(command, env=requested, capture_output=True, text=True, check=True)
    assert "complete " in ended.stdout


# --- start-up ------------------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """Return the environment of a subprocess that runs this package from any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(
    ("words", "exit_code"),
    [
        (["--help"], 0),
        (["check", "-r", "bad.yaml"], 2),
        (["sft", "-r", "bad.yaml", "--json"], 2),
        (["runs", "list"], 0),
        (["schema"], 0),
    ],
)
def test_quick_command_loads_no_heavy_library(tmp_path: Path, words: list[str], exit_code: int) -> None:
    (tmp_path / "bad.yaml").write_text(FIVE_ERRORS)
    code = """
import json, sys
from rlhf_cli.cli.app import main
try:
    main()
except SystemExit as stopped:
    sys.stderr.write("\\n" + json.dumps([stopped.code, sorted(m for m in sys.modules if "." not in m)]))
"""
    command = [sys.executable, "-c", code, *words]
    ended = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    found, modules = json.loads(ended.stderr.splitlines()[-1])
    assert HEAVY_LIBRARIES & set(modules) == set()
    assert found == exit_code
