"""Each issue of a recipe or a command line, through `rlhf check` and a stage: where it is told, what fixes it, and
that nothing was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.pipeline.test_inputs import make_run
from tests.support.command import Rlhf

DATA = "data: {sft: {path: rows.jsonl}, preferences: {path: rows.jsonl}, prompts: {path: rows.jsonl}}\n"
HEAD = f"name: bot\nbase: {{model: ./base}}\n{DATA}"  # lines 1 to 3


class Case(NamedTuple):
    """What is written, and what is to be told of it."""

    text: str
    location: str
    says: str
    hint: str
    stages: tuple[str, ...] = ("sft",)
    code: int = 2


BOMB = "l0: &l0 x\n" + "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 8))

CASES = {
    "unknown key": Case(
        f"{HEAD}sft: {{learnig_rate: 1}}", "4:7", "sft.learnig_rate: unknown key.", "Did you mean learning_rate?"
    ),
    "duplicate key": Case(
        f"{HEAD}sft:\n  epochs: 1\n  epochs: 2", "6:3", "sft.epochs: duplicate key, first at bad.yaml:5:3.", "Keep one"
    ),
    "tab indent": Case(f"{HEAD}sft:\n\tepochs: 1", "5:1", "not YAML", "Indent with spaces, not tabs."),
    "empty file": Case("", "", "the recipe is empty.", "Start with `name:`"),
    "comments alone": Case("# later\n", "", "the recipe is empty.", "Start with `name:`"),
    "a list": Case("- sft\n", "", "is not a mapping of keys to values.", "Start with `name:`"),
    "wrong type": Case(f"{HEAD}sft: {{epochs: many}}", "4:7", "sft.epochs: found many, expected a valid number", ""),
    "a number in quotes": Case(
        f"{HEAD}sft: {{batch_size: '8'}}", "4:7", "sft.batch_size: found '8', expected a valid integer", ""
    ),
    "tag that builds objects": Case(
        f"{HEAD}sft: !!python/object/apply:os.system ['touch owned']",
        "4:6",
        "tag:yaml.org,2002:python/object/apply:os.system is not allowed",
        "Write a plain value.",
    ),
    "alias bomb": Case(HEAD + BOMB, "", "unfolds to more than 100,000 values", "Use fewer aliases."),
    "not a number": Case(f"{HEAD}sft: {{learning_rate: .nan}}", "4:7", "found .nan, expected a finite number", ""),
    "infinite": Case(f"{HEAD}sft: {{learning_rate: .inf}}", "4:7", "found .inf, expected a finite number", ""),
    "huge integer": Case(
        f"{HEAD}seed: {10**30}", "4:1", "seed: found 1000000000000000000000000000000, expected less than", ""
    ),
    "integer of 5,000 digits": Case(
        f"{HEAD}seed: 1{'0' * 5000}", "4:7", "cannot be read as a number", "Write a number"
    ),
    "steps without end": Case(
        f"{HEAD}sft: {{max_steps: {2**70}}}", "4:7", f"sft.max_steps: found {2**70}, expected less than", ""
    ),
    "learning rate of zero": Case(f"{HEAD}sft: {{learning_rate: 0}}", "4:7", "found 0, expected greater than 0", ""),
    "learning rate below zero": Case(
        f"{HEAD}sft: {{learning_rate: -1e-4}}", "4:7", "found -0.0001, expected greater than 0", ""
    ),
    "batch of zero": Case(f"{HEAD}sft: {{batch_size: 0}}", "4:7", "found 0, expected greater than 0", ""),
    "zero steps": Case(f"{HEAD}sft: {{max_steps: 0}}", "4:7", "found 0, expected greater than 0", ""),
    "epochs and steps": Case(
        f"{HEAD}sft: {{epochs: 1, max_steps: 2}}", "4:18", "epochs and max_steps are both set", "Keep one of them."
    ),
    "absent data file": Case(
        HEAD.replace("rows.jsonl", "row.jsonl", 1) + "sft:",
        "3:14",
        "there is no row.jsonl.",
        "Did you mean rows.jsonl?",
    ),
    "absent base": Case(
        HEAD.replace("./base", "./bse") + "sft:", "2:8", "there is no folder bse.", "Did you mean base?"
    ),
    "absent template": Case(
        HEAD.replace("./base", "./base, chat_template: chat.jinja") + "sft:",
        "2:23",
        "no file chat.jinja",
        ".jinja file",
    ),
    "absent parent": Case("extends: up.yaml\n" + HEAD, "1:1", "there is no file up.yaml.", "Check the path."),
    "parents in a circle": Case("extends: bad.yaml\n" + HEAD, "1:1", "extends: goes in a circle", "Take one of them"),
    "name with a slash": Case(HEAD.replace("bot", "../bot") + "sft:", "1:1", "name: found ../bot, expected", "letters"),
    "name of dots": Case(HEAD.replace("bot", "..") + "sft:", "1:1", "name: found .., expected letters", ""),
    "name with a control character": Case(HEAD.replace("bot", '"b\\x1bot"') + "sft:", "1:1", "name: found", "letters"),
    "control character": Case(f"{HEAD}sft: # \x1b[2J", "4:8", "not YAML: the character U+001B.", "Remove it."),
    "another encoding": Case("# caf\u00e9\n" + HEAD, "", "cannot be read", "Save it as UTF-8 text."),
    "schema from the future": Case(
        "schema: 2\n" + HEAD, "1:1", "schema: found 2, and this rlhf reads 1.", "newer rlhf"
    ),
    "schema that is none": Case(
        "schema: one\n" + HEAD, "1:1", "schema: found one, and this rlhf reads 1.", "schema: 1"
    ),
    "trainer key that there is not": Case(
        f"{HEAD}sft: {{trainer: {{warmup_stepz: 1}}}}",
        "4:17",
        "SFTConfig has no such key.",
        "Did you mean warmup_steps?",
    ),
    "trainer key that the run owns": Case(
        f"{HEAD}sft: {{trainer: {{output_dir: x}}}}", "4:17", "the run owns this key.", "Set --runs-dir."
    ),
    "trainer key that a field sets": Case(
        f"{HEAD}sft: {{trainer: {{num_train_epochs: 1}}}}", "4:17", "the run owns this key.", "Set epochs."
    ),
    "trainer value of a wrong type": Case(
        f"{HEAD}sft: {{trainer: {{weight_decay: much}}}}",
        "4:17",
        "sft.trainer.weight_decay: found much, expected a number.",
        "",
    ),
    "batch that does not divide": Case(
        f"{HEAD}sft: {{batch_size: 12}}", "4:7", "12 is not a multiple of micro_batch_size 8.", "a divisor of 12"
    ),
    "batch that does not divide over processes": Case(
        f"{HEAD}sft: {{batch_size: 32}}\nppo: {{rollout_batch_size: 120}}\nlaunch: {{processes: 3}}",
        "4:7",
        "micro_batch_size 8 × 3 processes",
        "a multiple of 3",
    ),
    "absent run": Case(
        f"{HEAD}ppo: {{start: sft@v0009, reward: [{{run: reward}}]}}",
        "4:7",
        "the run sft@v0009 does not exist.",
        "",
        ("ppo",),
    ),
    "no run of a stage yet": Case(
        f"{HEAD}reward: {{start: sft}}", "4:10", "there is no sft run of bot in", "Run `rlhf sft` first", ("reward",)
    ),
    "incomplete run": Case(f"{HEAD}export: {{of: sft@v0002}}", "4:10", "sft@v0002 is incomplete", "", ("export",)),
    "smoke run": Case(f"{HEAD}export: {{of: sft@v0003}}", "4:10", "sft@v0003 is a smoke run", "", ("export",)),
    "run of the wrong kind": Case(
        f"{HEAD}export: {{of: reward}}",
        "4:10",
        "reward is a reward run, expected sft or ppo.",
        "Name another",
        ("export",),
    ),
    "stage without data": Case(
        "name: bot\nbase: {model: ./base}\nsft:", "3:1", "data.sft: is missing, and sft needs it.", "Add data.sft"
    ),
    "no stage": Case(HEAD, "", "the recipe has no stage to run.", "Add one of the sections", ()),
}
NEEDS_RUNS = {"absent run", "incomplete run", "smoke run", "run of the wrong kind"}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", CASES)
def test_a_fault_of_the_recipe_is_told_at_its_place_with_its_mend_and_nothing_is_written(
    rlhf: Rlhf, recipe_file: Path, name: str
) -> None:
    case, folder = CASES[name], recipe_file.parent
    (folder / "bad.yaml").write_bytes(case.text.encode("latin-1" if name == "another encoding" else "utf-8"))
    if name in NEEDS_RUNS:
        runs = folder / "runs"
        make_run(runs, "sft")
        (make_run(runs, "sft") / "manifest.json").unlink()
        make_run(runs, "sft", smoke=True)
        make_run(runs, "reward")
    before = files(folder)
    ways = [("check", "-r", "bad.yaml", *case.stages, "--json")]
    ways += [(stage, "-r", "bad.yaml", *more, "--json") for stage in case.stages for more in ((), ("--dry-run",))]
    for words in ways:
        ended = rlhf(*words)
        assert (ended.code, ended.json["exit_code"]) == (case.code, case.code), words
        told = ended.json["issues"]
        (issue,) = [error for error in told if case.says in error["message"]] or [{"location": told}]
        assert issue["location"].startswith(f"bad.yaml:{case.location}" if case.location else ""), words
        assert case.hint in issue["hint"] + issue["message"], words
        assert len(told) == 1, told
        assert "Traceback" not in ended.err
        assert issue["message"].split("\n")[0] in ended.err
    assert files(folder) == before


def test_all_faults_of_a_recipe_are_told_at_once_from_its_top_to_its_end(rlhf: Rlhf, recipe_file: Path) -> None:
    (recipe_file.parent / "bad.yaml").write_text(
        "name: x\nbase: {model: ./base, quantise: nf4}\nsft:\n  learning_rate: fast\n  learning_rate: 1e-4\n"
        "reward:\n  batch_size: 12\ndata:\n  sft: {path: absent.jsonl}\n"
    )
    ended = rlhf("sft", "-r", "bad.yaml")
    assert (ended.code, ended.out) == (2, "")
    assert [line.split()[:2] for line in ended.err.splitlines()] == [
        ["error", f"bad.yaml:{place}"] for place in ("2:23", "4:3", "5:3", "7:3", "9:9")
    ]


@pytest.mark.parametrize("text", ["schema: 1\n" + HEAD + "sft:", "\ufeff" + HEAD + "sft:", HEAD + "sft:\r\n"])
def test_what_changes_no_meaning_is_taken(rlhf: Rlhf, recipe_file: Path, text: str) -> None:
    (recipe_file.parent / "good.yaml").write_text(text)
    assert json.loads(rlhf("check", "-r", "good.yaml", "--json").out)["data"]["sft"]["train"] == 1
