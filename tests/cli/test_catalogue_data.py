"""Each issue of a data file, through `rlhf check` and the stage that reads it: where it is told, what fixes it, and
that nothing was written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.cli import test_catalogue_recipe
from tests.cli.test_catalogue_recipe import files
from tests.support.command import Rlhf

STAGE = {"pretrain": "pretrain", "sft": "sft", "preferences": "reward", "prompts": "ppo"}
RECIPE = (
    "name: bot\nbase: {{model: ./base}}\ndata:\n  {kind}: {{path: {path}{more}}}\npretrain:\nsft:\n"
    "reward: {{start: base}}\nppo: {{start: base, reward: [{{rule: {{length: {{max: 9}}}}}}]}}\n"
)
DEMO = '{"prompt": "a", "completion": "b"}'
PAIR = '{"prompt": "a", "chosen": "b", "rejected": "c"}'
USER, ANSWER = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}


class Case(NamedTuple):
    """Lines of a file of `kind`, and what is to be told of it; `where` stands behind the file's name."""

    kind: str
    content: str | bytes | tuple[str, ...]
    location: str
    says: str
    hint: str
    more: str = ""  # of the source
    name: str = "rows.jsonl"


def chat(*turns: dict[str, Any]) -> str:
    return json.dumps({"messages": turns})


CASES = {
    "broken line": Case("sft", (DEMO, DEMO[:-1], DEMO), ":2", "broken JSON at column 34", "one object a line"),
    "trailing comma": Case(
        "sft", ('{"prompt": "a", "completion": "b",}',), ":1", "broken JSON at column", "one object"
    ),
    "two rows on a line": Case("sft", (DEMO, DEMO + DEMO), ":2", "broken JSON at column 35: Extra data", "one object"),
    "cut inside a text": Case("sft", f"{DEMO}\n{DEMO[:-5]}", ":2", "the last line is truncated", "a copy cut off?"),
    "cut behind a value": Case("sft", f"{DEMO}\n{DEMO[:-1]}", ":2", "the last line is truncated", "a copy cut off?"),
    "Latin-1": Case(
        "sft", f"{DEMO}\n{DEMO.replace('b', 'ä')}".encode("latin-1"), ":2", "not UTF-8: byte 0xe4", "iconv"
    ),
    "UTF-16": Case("sft", DEMO.encode("utf-16"), ":1", "looks like UTF-16", "iconv"),
    "UTF-16 without a mark": Case("sft", DEMO.encode("utf-16-be"), ":1", "looks like UTF-16", "iconv"),
    "lone surrogate": Case("sft", (DEMO, DEMO.replace("b", "\\udc00")), ":2", "a lone surrogate", "take it out"),
    "empty file": Case("sft", b"", "", "the file is empty.", "Name another one"),
    "blank lines": Case("sft", b"\n\n", "", "the file holds no rows.", "Name another one"),
    "wrong columns": Case(
        "sft",
        ('{"instruction": "a", "output": "b"}',),
        "",
        "wrong columns for sft rows: found instruction, output; needed `prompt` and `completion`",
        "`columns: {prompt: instruction, completion: output}`",
    ),
    "columns of another kind": Case(
        "sft",
        (PAIR,),
        "",
        "found prompt, chosen, rejected",
        "These are preferences rows: they belong under data.preferences",
    ),
    "a mapping of what is not there": Case(
        "sft",
        (DEMO,),
        "",
        "`columns` names the column 'prompts'",
        "Did you mean prompt?",
        ", columns: {prompt: prompts}",
    ),
    "missing field": Case(
        "preferences", (PAIR, '{"prompt": "a", "chosen": "b"}'), ":2", "`rejected` is missing", "Fill it"
    ),
    "missing prompt": Case(
        "preferences",
        (PAIR, '{"chosen": "a b", "rejected": "a c"}'),
        ":2",
        "the field `prompt` is missing",
        "Fill it in",
    ),
    "null": Case("sft", (DEMO, DEMO.replace('"b"', "null")), ":2", "`completion` is null.", "Fill it in"),
    "a number for a text": Case(
        "sft", (DEMO, DEMO.replace('"b"', "3")), ":2", "must be text, found a number", "in quotes"
    ),
    "a list for a text": Case("pretrain", ('{"text": ["a"]}',), ":1", "`text` must be text, found a list", "in quotes"),
    "a list of texts for turns": Case("sft", ('{"messages": ["a"]}',), ":1", "found text", "A message is {"),
    "huge integer": Case("sft", (DEMO, f'{DEMO[:-1]}, "id": {10**30}}}'), ":2", "beyond 64 bits", "Write it as text"),
    "huge number": Case("sft", (DEMO, f'{DEMO[:-1]}, "id": 1e999}}'), ":2", "beyond what 64 bits hold", "as text"),
    "not a number": Case("sft", (f'{DEMO[:-1]}, "id": NaN}}',), ":1", "NaN is not a number that JSON knows", "null"),
    "duplicate key": Case(
        "sft", ('{"prompt": "a", "completion": "b", "prompt": "c"}',), ":1", "the key 'prompt' stands twice", "Keep one"
    ),
    "nested without end": Case(
        "sft", (f'{DEMO[:-1]}, "x": {"[" * 5000}{"]" * 5000}}}',), ":1", "nested too deeply", "as text"
    ),
    "a row that is a list": Case(
        "sft", (DEMO, "[1]"), ":2", "must be an object {…}, found a list", "one object a line"
    ),
    "a row of nothing": Case("sft", (DEMO, "{}"), ":2", "the row has no fields.", "Take it out."),
    "all answers equal": Case("preferences", (PAIR.replace('c"}', 'b"}'),), "", "no rows are left to train on", ""),
    "empty text": Case("sft", (DEMO, DEMO.replace("b", " ")), ":2", "`completion` is empty.", "Fill it in"),
    "empty turn": Case(
        "sft", (chat(USER, {**ANSWER, "content": ""}),), ":1", "`messages[1].content` is empty", "Fill it"
    ),
    "unknown role": Case(
        "sft", (chat({**USER, "role": "human"}, ANSWER),), ":1", "`messages[0].role` is 'human'", "Did you mean user?"
    ),
    "misspelt role": Case("sft", (chat({**USER, "role": "usr"}, ANSWER),), ":1", "is 'usr'; roles are", "mean user?"),
    "roles out of order": Case(
        "sft", (chat(USER, ANSWER), chat(USER, USER, ANSWER)), ":2", "turn 2 is user, expected assistant", "take turns"
    ),
    "conversation without an answer": Case("sft", (chat(USER),), ":1", "must end with an assistant turn", "or the row"),
    "prompt that ends with an answer": Case(
        "prompts", (json.dumps({"prompt": [USER, ANSWER]}),), ":1", "`prompt` must end with a user turn", "Take out"
    ),
    "text and conversations": Case(
        "sft",
        (DEMO, json.dumps({"prompt": [USER], "completion": [ANSWER]})),
        ":2",
        "rows.jsonl:1 is text.",
        "bring all rows to one form",
    ),
    "a text beside a conversation": Case(
        "sft", (json.dumps({"prompt": "a", "completion": [ANSWER]}),), ":1", "a conversation beside text", "in one form"
    ),
    "margin that is no number": Case(
        "preferences", (f'{PAIR[:-1]}, "margin": "nan"}}',), ":1", "`margin` must be a finite number", "Write a number"
    ),
    "NaN margin": Case(
        "preferences", (f'{PAIR[:-1]}, "margin": NaN}}',), ":1", "NaN is not a number", "Write a number"
    ),
    "margin on some rows": Case(
        "preferences", (PAIR, f'{PAIR[:-1]}, "margin": 1}}'), ":1", "`margin` is missing here", "all rows or none"
    ),
    "a name that reward functions need": Case(
        "prompts", ('{"prompt": "a", "completions": 1}',), "", "must not be called completions", "another name"
    ),
    "every prompt of the training held out": Case(
        "sft",
        (DEMO,),
        "",
        "no rows are left to train on (read 2; dropped: prompt is held out elsewhere 1)",
        "",
        ", eval_split: test",
        "both",
    ),
    "split that is not there": Case(
        "sft", (DEMO,), "", "has no split 'validation'; found", "test.jsonl", ", eval_split: validation", "both"
    ),
    "format that is not known": Case("sft", (DEMO,), "", "a data file's name must end in .jsonl", "", "", "rows.xls"),
    "not parquet": Case("sft", b"PAR1 and no more", "", "not a readable parquet file", "", "", "rows.parquet"),
    "JSON that is no list": Case(
        "sft", (DEMO, DEMO), "", "must hold a list of objects", "name it .jsonl", "", "rows.json"
    ),
    "broken CSV": Case(
        "sft", b"prompt,completion\na,b,c\n", ":2", "3 fields, the header 2", 'in "quotes"', "", "rows.csv"
    ),
}


def write(folder: Path, case: Case, recipe: str = "bad.yaml") -> None:
    """The data, where its name has no suffix as both splits of a folder, and the recipe."""
    content = "".join(line + "\n" for line in case.content) if isinstance(case.content, tuple) else case.content
    content = content.encode() if isinstance(content, str) else content
    paths = [folder / case.name] if "." in case.name else [folder / case.name / f"{s}.jsonl" for s in ("train", "test")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    (folder / recipe).write_text(RECIPE.format(kind=case.kind, path=case.name, more=case.more))


@pytest.mark.parametrize("name", CASES)
def test_a_fault_of_the_data_is_told_at_its_row_with_its_mend_and_nothing_is_written(
    rlhf: Rlhf, recipe_file: Path, name: str
) -> None:
    case, folder = CASES[name], recipe_file.parent
    write(folder, case)
    before = files(folder)
    stage = STAGE[case.kind]
    for words in (("check", "-r", "bad.yaml", stage, "--json"), (stage, "-r", "bad.yaml", "--json")):
        ended = rlhf(*words)
        assert (ended.code, ended.json["exit_code"]) == (3, 3), words
        (issue,) = ended.json["issues"]
        assert case.says in issue["message"]
        assert issue["location"] == f"{case.name}{case.location}"
        assert case.hint in issue["hint"] + issue["message"]
        assert "Traceback" not in ended.err
        assert issue["message"] in ended.err
    assert files(folder) == before


@pytest.mark.parametrize(
    ("kind", "content", "more", "name", "counts"),
    [
        ("sft", "\ufeff" + DEMO, "", "rows.jsonl", {"read": 1, "train": 1, "held out": 0}),
        ("sft", f"\r\n{DEMO} \r\n\r\n", "", "rows.jsonl", {"read": 1, "train": 1, "held out": 0}),
        (
            "preferences",
            (PAIR, PAIR.replace('"c"', '"b"')),
            ", eval_fraction: 0",
            "rows.jsonl",
            {"read": 2, "dropped: chosen equals rejected": 1, "train": 1, "held out": 0},
        ),
        (
            "prompts",
            ('{"prompt": "a"}', '{"prompt": " a\\n"}'),
            "",
            "rows.jsonl",
            {"read": 2, "dropped: prompt seen before": 1, "train": 1, "held out": 0},
        ),
    ],
)
def test_what_is_taken_or_dropped_is_counted(
    rlhf: Rlhf, recipe_file: Path, kind: str, content: Any, more: str, name: str, counts: dict[str, int]
) -> None:
    write(recipe_file.parent, Case(kind, content, "", "", "", more, name))
    ended = rlhf("check", "-r", "bad.yaml", STAGE[kind], "--json")
    assert (ended.code, ended.json["data"][kind]) == (0, counts)


def test_a_prompt_in_both_splits_is_taken_from_the_training_and_counted(rlhf: Rlhf, recipe_file: Path) -> None:
    folder = recipe_file.parent
    write(folder, Case("sft", (DEMO,), "", "", "", ", eval_split: test", "both"))
    (folder / "both" / "train.jsonl").write_text(DEMO + "\n" + DEMO.replace('"a"', '"other"'))
    told = rlhf("check", "-r", "bad.yaml", "sft", "--json").json["data"]["sft"]
    assert told == {"read": 3, "dropped: prompt is held out elsewhere": 1, "train": 1, "held out": 1}


@pytest.mark.parametrize(
    ("stage", "key"), [("sft", "sft.max_length"), ("reward", "reward.max_length"), ("ppo", "ppo.max_prompt_length")]
)
def test_more_rows_over_the_limit_than_the_recipe_allows_are_refused(
    rlhf: Rlhf, recipe_file: Path, tiny_base: Path, stage: str, key: str
) -> None:
    long = "many words of one row " * 9
    rows = [
        {"prompt": f"{n} {long if n < 4 else ''}", "completion": "b", "chosen": "b", "rejected": "c"} for n in range(10)
    ]
    (recipe_file.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe_file.write_text(
        f"name: bot\nbase: {{model: {tiny_base}}}\ndata:\n  max_overlong: 0.4\n"
        + "".join(f"  {kind}: {{path: rows.jsonl, eval_fraction: 0}}\n" for kind in ("sft", "preferences", "prompts"))
        + "sft: {max_length: 30}\nreward: {start: base, max_length: 30}\n"
        + "ppo: {start: base, max_prompt_length: 30, max_new_tokens: 8, reward: [{rule: {length: {max: 9}}}]}\n"
    )
    before = files(recipe_file.parent)
    assert rlhf(stage, "-r", "r.yaml", "--dry-run", "--json").code == 0
    ended = rlhf(stage, "-r", "r.yaml", "--dry-run", "--json", "--set", "data.max_overlong=0.3")
    (issue,) = ended.json["issues"]
    assert ended.code == 3
    assert issue["location"].startswith("r.yaml:")
    assert issue["message"].startswith(f"{key}: 4 of 10 rows are over 30 tokens, and data.max_overlong is 0.3.")
    assert "Raise" in issue["hint"]
    assert files(recipe_file.parent) == before


WITHOUT_TORCH = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from rlhf_cli.cli.app import main
told = {}
for folder, name, stages in json.loads(sys.argv[2]):
    os.chdir(folder)
    sys.argv = ["rlhf", "check", "-r", name, *stages]
    try:
        main()
    except SystemExit as stopped:
        told[f"{folder} {name}"] = stopped.code
heavy = {"torch", "trl", "transformers", "peft", "datasets", "accelerate", "bitsandbytes"} & set(sys.modules)
print(json.dumps([told, sorted(heavy)]))
"""


def test_every_fault_of_recipe_and_data_is_told_without_torch(recipe_file: Path) -> None:
    top, asked, codes = recipe_file.parent, [], []
    for index, (recipe, data) in enumerate([
        *((case, None) for case in test_catalogue_recipe.CASES.values()), *((None, case) for case in CASES.values())
    ]):  # fmt: skip
        folder = top / str(index)
        (folder / "base").mkdir(parents=True)
        (folder / "base" / "config.json").touch()
        (folder / "rows.jsonl").write_text((top / "rows.jsonl").read_text())
        if recipe is not None:
            (folder / "bad.yaml").write_bytes(recipe.text.encode("latin-1", "replace"))
        elif data is not None:
            write(folder, data)
        asked.append([str(folder), "bad.yaml", list(recipe.stages) if recipe else [STAGE[data.kind]] if data else []])
        codes.append(2 if recipe else 3)
    here = str(Path(__file__).parents[2])
    told = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, here, json.dumps(asked)], capture_output=True, text=True, check=True
    )
    ended, heavy = json.loads(told.stdout.splitlines()[-1])
    assert heavy == []
    assert list(ended.values()) == codes
