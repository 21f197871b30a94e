"""Each issue of a recipe, through `rlhf check` and the stage: code, location, and nothing written.

The messages and hints are asserted in tests/recipe and tests/pipeline.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.catalogue import check_in_fresh_interpreter, list_files, make_check_folder
from tests.support.command import Rlhf
from tests.support.made_runs import make_run

DATA = "data: {sft: {path: rows.jsonl}, preferences: {path: rows.jsonl}, prompts: {path: rows.jsonl}}\n"
HEAD = f"name: bot\nbase: {{model: ./base}}\n{DATA}"  # lines 1 to 3
ALIAS_BOMB = "l0: &l0 x\n" + "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 8))


class Case(NamedTuple):
    """A recipe and its issue.

    Attributes:
        text: The recipe.
        code: Code of the issue, without `recipe.`.
        position: Line and column of the issue, or "" for the whole file.
        stages: The stages that are checked and run; empty: those of the recipe are checked.
        encoding: The encoding of the file.
    """

    text: str
    code: str
    position: str = ""
    stages: tuple[str, ...] = ("sft",)
    encoding: str = "utf-8"


def sft_case(settings: str, code: str, position: str = "4:7") -> Case:
    """Return a recipe with an issue in its sft section."""
    return Case(f"{HEAD}sft: {settings}", code, position)


CASES = {
    # YAML
    "duplicate_key": Case(f"{HEAD}sft:\n  epochs: 1\n  epochs: 2", "duplicate-key", "6:3"),
    "tab_indent": Case(f"{HEAD}sft:\n\tepochs: 1", "invalid-yaml", "5:1"),
    "empty_file": Case("", "not-a-mapping"),
    "only_comments": Case("# later\n", "not-a-mapping"),
    "list": Case("- sft\n", "not-a-mapping"),
    "tag_that_builds_objects": Case(
        f"{HEAD}sft: !!python/object/apply:os.system ['touch owned']", "invalid-yaml", "4:6"
    ),
    "alias_bomb": Case(HEAD + ALIAS_BOMB, "too-complex"),
    "integer_of_5000_digits": Case(f"{HEAD}seed: 1{'0' * 5000}", "invalid-value", "4:7"),
    "control_character": Case(f"{HEAD}sft: # \x1b[2J", "invalid-yaml", "4:8"),
    "latin_1": Case(f"# caf\u00e9\n{HEAD}", "unreadable", encoding="latin-1"),
    # single fields
    "unknown_key": sft_case("{learnig_rate: 1}", "unknown-key"),
    "key_of_another_tool": sft_case("{cutoff_len: 512}", "unknown-key"),
    "wrong_type": sft_case("{epochs: many}", "invalid-value"),
    "number_in_quotes": sft_case("{batch_size: '8'}", "invalid-value"),
    "nan": sft_case("{learning_rate: .nan}", "invalid-value"),
    "infinity": sft_case("{learning_rate: .inf}", "invalid-value"),
    "huge_seed": Case(f"{HEAD}seed: {10**30}", "invalid-value", "4:1"),
    "huge_max_steps": sft_case(f"{{max_steps: {2**70}}}", "invalid-value"),
    "zero_learning_rate": sft_case("{learning_rate: 0}", "invalid-value"),
    "negative_learning_rate": sft_case("{learning_rate: -1e-4}", "invalid-value"),
    "zero_batch_size": sft_case("{batch_size: 0}", "invalid-value"),
    "zero_max_steps": sft_case("{max_steps: 0}", "invalid-value"),
    "name_with_slash": Case(HEAD.replace("bot", "../bot") + "sft:", "invalid-value", "1:1"),
    "name_of_dots": Case(HEAD.replace("bot", "..") + "sft:", "invalid-value", "1:1"),
    "name_with_control_character": Case(HEAD.replace("bot", '"b\\x1bot"') + "sft:", "invalid-value", "1:1"),
    "newer_schema": Case(f"schema: 2\n{HEAD}", "unsupported-schema", "1:1"),
    "schema_that_is_not_a_number": Case(f"schema: one\n{HEAD}", "unsupported-schema", "1:1"),
    # several fields
    "epochs_and_max_steps": sft_case("{epochs: 1, max_steps: 2}", "conflicting-keys", "4:18"),
    "batch_that_is_not_divisible": sft_case("{batch_size: 12}", "not-divisible"),
    "batch_that_is_not_divisible_by_processes": Case(
        f"{HEAD}sft: {{batch_size: 32}}\nppo: {{rollout_batch_size: 120}}\nlaunch: {{processes: 3}}",
        "not-divisible",
        "4:7",
    ),
    "unknown_trainer_option": sft_case("{trainer: {warmup_stepz: 1}}", "unknown-key", "4:17"),
    "trainer_option_of_the_run": sft_case("{trainer: {output_dir: x}}", "managed-key", "4:17"),
    "trainer_option_of_a_field": sft_case("{trainer: {num_train_epochs: 1}}", "managed-key", "4:17"),
    "trainer_value_of_wrong_type": sft_case("{trainer: {weight_decay: much}}", "invalid-value", "4:17"),
    "stage_without_data": Case("name: bot\nbase: {model: ./base}\nsft:", "missing-data", "3:1"),
    "no_stage": Case(HEAD, "no-stages", stages=()),
    # files
    "missing_data_file": Case(HEAD.replace("rows.jsonl", "row.jsonl", 1) + "sft:", "path-not-found", "3:14"),
    "missing_base": Case(HEAD.replace("./base", "./bse") + "sft:", "path-not-found", "2:8"),
    "missing_template": Case(
        HEAD.replace("./base", "./base, chat_template: chat.jinja") + "sft:", "path-not-found", "2:23"
    ),
    "missing_extended_file": Case(f"extends: up.yaml\n{HEAD}", "path-not-found", "1:1"),
    "circular_extends": Case(f"extends: bad.yaml\n{HEAD}", "circular-extends", "1:1"),
    # runs
    "missing_version": Case(
        f"{HEAD}ppo: {{start: sft@v0009, reward: [{{run: reward}}]}}", "run-not-found", "4:7", ("ppo",)
    ),
    "stage_without_runs": Case(f"{HEAD}reward: {{start: sft}}", "run-not-found", "4:10", ("reward",)),
    "incomplete_run": Case(f"{HEAD}export: {{of: sft@v0002}}", "incomplete-run", "4:10", ("export",)),
    "smoke_run": Case(f"{HEAD}export: {{of: sft@v0003}}", "smoke-run", "4:10", ("export",)),
    "run_of_wrong_stage": Case(f"{HEAD}export: {{of: reward}}", "wrong-stage", "4:10", ("export",)),
}
NEED_RUNS = {"missing_version", "incomplete_run", "smoke_run", "run_of_wrong_stage"}


def make_runs(runs: Path) -> None:
    """Make complete runs of sft and reward, an incomplete one and a smoke run of sft."""
    make_run(runs, "sft")
    (make_run(runs, "sft") / "manifest.json").unlink()
    make_run(runs, "sft", smoke=True)
    make_run(runs, "reward")


@pytest.mark.parametrize("name", CASES)
def test_check_and_stage_invalid_recipe_exits_2_with_code_and_location(
    rlhf: Rlhf, recipe_file: Path, name: str
) -> None:
    case, folder = CASES[name], recipe_file.parent
    (folder / "bad.yaml").write_bytes(case.text.encode(case.encoding))
    if name in NEED_RUNS:
        make_runs(folder / "runs")
    before = list_files(folder)
    commands = [("check", "-r", "bad.yaml", *case.stages, "--json")]
    commands += [(stage, "-r", "bad.yaml", *more, "--json") for stage in case.stages for more in ((), ("--dry-run",))]
    for words in commands:
        ended = rlhf(*words)
        assert (ended.code, ended.json["exit_code"]) == (2, 2), words
        assert ended.issue["code"] == f"recipe.{case.code}", words
        assert ended.issue["location"].startswith(f"bad.yaml:{case.position}" if case.position else ""), words
        assert ended.issue["message"].split("\n")[0] in ended.err
        assert f"[recipe.{case.code}]" in ended.err
        assert "Traceback" not in ended.err
    assert list_files(folder) == before


def test_check_invalid_recipe_loads_no_heavy_library(tmp_path: Path) -> None:
    checks = []
    for name, case in CASES.items():
        folder = tmp_path / name
        make_check_folder(folder)
        (folder / "bad.yaml").write_bytes(case.text.encode(case.encoding))
        if name in NEED_RUNS:
            make_runs(folder / "runs")
        checks.append((folder, case.stages))
    result = check_in_fresh_interpreter(checks)
    assert result.heavy_modules == []
    assert result.exit_codes == [2] * len(checks)


def test_stage_recipe_with_several_issues_prints_them_in_order_of_lines(rlhf: Rlhf, recipe_file: Path) -> None:
    (recipe_file.parent / "bad.yaml").write_text(
        "name: x\nbase: {model: ./base, quantise: nf4}\nsft:\n  learning_rate: fast\n  learning_rate: 1e-4\n"
        "reward:\n  batch_size: 12\ndata:\n  sft: {path: absent.jsonl}\n"
    )
    ended = rlhf("sft", "-r", "bad.yaml")
    assert (ended.code, ended.out) == (2, "")
    assert [line.split()[:2] for line in ended.err.splitlines()] == [
        ["error", f"bad.yaml:{position}"] for position in ("2:23", "4:3", "5:3", "7:3", "9:9")
    ]
    assert ended.codes == [
        f"recipe.{code}"
        for code in ("unknown-key", "invalid-value", "duplicate-key", "not-divisible", "path-not-found")
    ]


@pytest.mark.parametrize("text", [f"schema: 1\n{HEAD}sft:", f"\ufeff{HEAD}sft:", f"{HEAD}sft:\r\n"])
def test_check_recipe_with_schema_byte_order_mark_or_crlf_is_valid(rlhf: Rlhf, recipe_file: Path, text: str) -> None:
    (recipe_file.parent / "good.yaml").write_text(text)
    assert rlhf("check", "-r", "good.yaml", "--json").json["data"]["sft"]["train"] == 1
