"""Each issue of a data file, through `rlhf check` and the stage that reads it: code, location, and nothing written.

The messages and hints are asserted in tests/data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rlhf_cli.stages import STAGES, DatasetKind
from tests.support.catalogue import check_in_fresh_interpreter, list_files, make_check_folder
from tests.support.command import Rlhf

# The first stage that trains on each dataset.
STAGE_OF = {spec.dataset: stage for stage, spec in STAGES.items() if spec.dataset is not None}
RECIPE = (
    "name: bot\nbase: {{model: ./base}}\ndata:\n  {kind}: {{path: {path}{settings}}}\npretrain:\nsft:\n"
    "reward: {{start: base}}\nppo: {{start: base, reward: [{{rule: {{length: {{max: 9}}}}}}]}}\n"
)
DEMONSTRATION = '{"prompt": "a", "completion": "b"}'
PAIR = '{"prompt": "a", "chosen": "b", "rejected": "c"}'
USER = {"role": "user", "content": "Hi?"}
ASSISTANT = {"role": "assistant", "content": "Yes."}


class Case(NamedTuple):
    """A data file and its issue.

    Attributes:
        kind: The dataset kind.
        content: The file's content, or its lines.
        code: Code of the issue, without `data.`.
        line: What follows the file's name in the issue's location.
        settings: Further settings of the source.
        name: The file's name; without a suffix, a directory with the file as train.jsonl and as test.jsonl.
    """

    kind: DatasetKind
    content: str | bytes | tuple[str, ...]
    code: str
    line: str = ""
    settings: str = ""
    name: str = "rows.jsonl"


def chat(*turns: dict[str, Any]) -> str:
    """Return a row `messages`."""
    return json.dumps({"messages": turns})


CASES = {
    "invalid_line": Case("sft", (DEMONSTRATION, DEMONSTRATION[:-1], DEMONSTRATION), "invalid-json", ":2"),
    "trailing_comma": Case("sft", ('{"prompt": "a", "completion": "b",}',), "invalid-json", ":1"),
    "two_rows_on_a_line": Case("sft", (DEMONSTRATION, DEMONSTRATION + DEMONSTRATION), "invalid-json", ":2"),
    "truncated_in_a_text": Case("sft", f"{DEMONSTRATION}\n{DEMONSTRATION[:-5]}", "truncated-file", ":2"),
    "truncated_after_a_value": Case("sft", f"{DEMONSTRATION}\n{DEMONSTRATION[:-1]}", "truncated-file", ":2"),
    "latin_1": Case("sft", f"{DEMONSTRATION}\n{DEMONSTRATION.replace('b', 'ä')}".encode("latin-1"), "not-utf8", ":2"),
    "utf_16": Case("sft", DEMONSTRATION.encode("utf-16"), "not-utf8", ""),
    "utf_16_without_byte_order_mark": Case("sft", DEMONSTRATION.encode("utf-16-be"), "not-utf8", ""),
    "lone_surrogate": Case("sft", (DEMONSTRATION, DEMONSTRATION.replace("b", "\\udc00")), "lone-surrogate", ":2"),
    "empty_file": Case("sft", b"", "no-rows"),
    "blank_lines": Case("sft", b"\n\n", "no-rows"),
    "wrong_columns": Case("sft", ('{"instruction": "a", "output": "b"}',), "wrong-columns"),
    "columns_of_another_kind": Case("sft", (PAIR,), "wrong-columns"),
    "mapping_of_unknown_column": Case(
        "sft", (DEMONSTRATION,), "unknown-column", settings=", columns: {prompt: prompts}"
    ),
    "missing_field": Case("preferences", (PAIR, '{"prompt": "a", "chosen": "b"}'), "missing-field", ":2"),
    "missing_prompt": Case("preferences", (PAIR, '{"chosen": "a b", "rejected": "a c"}'), "missing-field", ":2"),
    "null": Case("sft", (DEMONSTRATION, DEMONSTRATION.replace('"b"', "null")), "empty-completion", ":2"),
    "number_instead_of_text": Case("sft", (DEMONSTRATION, DEMONSTRATION.replace('"b"', "3")), "wrong-type", ":2"),
    "list_instead_of_text": Case("pretrain", ('{"text": ["a"]}',), "wrong-type", ":1"),
    "texts_instead_of_messages": Case("sft", ('{"messages": ["a"]}',), "wrong-type", ":1"),
    "huge_integer": Case("sft", (DEMONSTRATION, f'{DEMONSTRATION[:-1]}, "id": {10**30}}}'), "invalid-number", ":2"),
    "huge_number": Case("sft", (DEMONSTRATION, f'{DEMONSTRATION[:-1]}, "id": 1e999}}'), "invalid-number", ":2"),
    "nan": Case("sft", (f'{DEMONSTRATION[:-1]}, "id": NaN}}',), "invalid-number", ":1"),
    "duplicate_key": Case("sft", ('{"prompt": "a", "completion": "b", "prompt": "c"}',), "duplicate-key", ":1"),
    "deep_nesting": Case("sft", (f'{DEMONSTRATION[:-1]}, "x": {"[" * 5000}{"]" * 5000}}}',), "nested-too-deeply", ":1"),
    "list_instead_of_row": Case("sft", (DEMONSTRATION, "[1]"), "invalid-row", ":2"),
    "empty_row": Case("sft", (DEMONSTRATION, "{}"), "invalid-row", ":2"),
    "all_completions_equal": Case("preferences", (PAIR.replace('c"}', 'b"}'),), "no-rows"),
    "empty_text": Case("sft", (DEMONSTRATION, DEMONSTRATION.replace("b", " ")), "empty-completion", ":2"),
    "empty_turn": Case("sft", (chat(USER, {**ASSISTANT, "content": ""}),), "empty-field", ":1"),
    "role_of_another_tool": Case("sft", (chat({**USER, "role": "human"}, ASSISTANT),), "unknown-role", ":1"),
    "misspelled_role": Case("sft", (chat({**USER, "role": "usr"}, ASSISTANT),), "unknown-role", ":1"),
    "roles_out_of_order": Case("sft", (chat(USER, ASSISTANT), chat(USER, USER, ASSISTANT)), "roles-out-of-order", ":2"),
    "conversation_without_completion": Case("sft", (chat(USER),), "roles-out-of-order", ":1"),
    "prompt_that_ends_with_assistant": Case(
        "prompts", (json.dumps({"prompt": [USER, ASSISTANT]}),), "roles-out-of-order", ":1"
    ),
    "multi_turn_completion": Case(
        "preferences",
        (json.dumps({"prompt": [USER], "chosen": [ASSISTANT, USER, ASSISTANT], "rejected": [ASSISTANT]}),),
        "multi-turn-completion",
        ":1",
    ),
    "no_common_prompt": Case("prompts", ('{"chosen": "a", "rejected": "b"}',), "no-common-prompt", ":1"),
    "text_and_conversations": Case(
        "sft",
        (DEMONSTRATION, json.dumps({"prompt": [USER], "completion": [ASSISTANT]})),
        "mixed-formats",
        ":2",
    ),
    "text_beside_a_conversation": Case(
        "sft", (json.dumps({"prompt": "a", "completion": [ASSISTANT]}),), "mixed-formats", ":1"
    ),
    "margin_that_is_not_a_number": Case("preferences", (f'{PAIR[:-1]}, "margin": "nan"}}',), "invalid-margin", ":1"),
    "margin_nan": Case("preferences", (f'{PAIR[:-1]}, "margin": NaN}}',), "invalid-number", ":1"),
    "margin_on_some_rows": Case("preferences", (PAIR, f'{PAIR[:-1]}, "margin": 1}}'), "missing-margin", ":1"),
    "column_named_like_reward_argument": Case("prompts", ('{"prompt": "a", "completions": 1}',), "reserved-column"),
    "every_prompt_held_out": Case("sft", (DEMONSTRATION,), "no-rows", settings=", eval_split: test", name="both"),
    "unknown_split": Case("sft", (DEMONSTRATION,), "unknown-split", settings=", eval_split: validation", name="both"),
    "malformed_split": Case("sft", (DEMONSTRATION,), "invalid-split", settings=", split: 'train['"),
    "empty_directory": Case("sft", ("",), "no-files", name="notes/rows.md"),
    "unknown_file_type": Case("sft", (DEMONSTRATION,), "unsupported-file-type", name="rows.xls"),
    "invalid_parquet": Case("sft", b"PAR1 and no more", "invalid-parquet", name="rows.parquet"),
    "json_without_list": Case("sft", (DEMONSTRATION, DEMONSTRATION), "invalid-json", name="rows.json"),
    "invalid_csv": Case("sft", b"prompt,completion\na,b,c\n", "invalid-csv", ":2", name="rows.csv"),
}


def write_case(folder: Path, case: Case) -> str:
    """Write the data of a case and `bad.yaml`. Return the source's path in the recipe."""
    content = "".join(line + "\n" for line in case.content) if isinstance(case.content, tuple) else case.content
    path = case.name if "/" not in case.name else case.name.partition("/")[0]
    names = [case.name] if "." in case.name else [f"{case.name}/{split}.jsonl" for split in ("train", "test")]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    (folder / "bad.yaml").write_text(RECIPE.format(kind=case.kind, path=path, settings=case.settings))
    return path


@pytest.mark.parametrize("name", CASES)
def test_check_and_stage_invalid_data_exits_3_with_code_and_location(rlhf: Rlhf, recipe_file: Path, name: str) -> None:
    case, folder = CASES[name], recipe_file.parent
    path = write_case(folder, case)
    before = list_files(folder)
    stage = STAGE_OF[case.kind]
    for words in (("check", "-r", "bad.yaml", stage, "--json"), (stage, "-r", "bad.yaml", "--json")):
        ended = rlhf(*words)
        assert (ended.code, ended.json["exit_code"]) == (3, 3), words
        assert ended.issue["code"] == f"data.{case.code}", words
        assert ended.issue["location"] == f"{path}{case.line}"
        assert ended.issue["message"] in ended.err
        assert f"[data.{case.code}]" in ended.err
        assert "Traceback" not in ended.err
    assert list_files(folder) == before


def test_check_invalid_data_loads_no_heavy_library(tmp_path: Path) -> None:
    checks = []
    for name, case in CASES.items():
        folder = tmp_path / name
        make_check_folder(folder)
        write_case(folder, case)
        checks.append((folder, [STAGE_OF[case.kind]]))
    result = check_in_fresh_interpreter(checks)
    assert result.heavy_modules == []
    assert result.exit_codes == [3] * len(checks)


@pytest.mark.parametrize(
    ("kind", "content", "settings", "counts"),
    [
        ("sft", "\ufeff" + DEMONSTRATION, "", {"read": 1, "train": 1, "held out": 0}),
        ("sft", f"\r\n{DEMONSTRATION} \r\n\r\n", "", {"read": 1, "train": 1, "held out": 0}),
        (
            "preferences",
            (PAIR, PAIR.replace('"c"', '"b"')),
            ", eval_fraction: 0",
            {"read": 2, "dropped: chosen equals rejected": 1, "train": 1, "held out": 0},
        ),
        (
            "prompts",
            ('{"prompt": "a"}', '{"prompt": " a\\n"}'),
            "",
            {"read": 2, "dropped: prompt seen before": 1, "train": 1, "held out": 0},
        ),
    ],
    ids=["byte_order_mark", "blank_lines", "equal_completions", "repeated_prompt"],
)
def test_check_usable_data_counts_read_and_dropped_rows(
    rlhf: Rlhf,
    recipe_file: Path,
    kind: DatasetKind,
    content: str | tuple[str, ...],
    settings: str,
    counts: dict[str, int],
) -> None:
    write_case(recipe_file.parent, Case(kind, content, "", settings=settings))
    ended = rlhf("check", "-r", "bad.yaml", STAGE_OF[kind], "--json")
    assert (ended.code, ended.json["data"][kind]) == (0, counts)


def test_check_prompt_in_both_splits_is_dropped_from_training(rlhf: Rlhf, recipe_file: Path) -> None:
    folder = recipe_file.parent
    write_case(folder, Case("sft", (DEMONSTRATION,), "", settings=", eval_split: test", name="both"))
    (folder / "both" / "train.jsonl").write_text(DEMONSTRATION + "\n" + DEMONSTRATION.replace('"a"', '"other"'))
    counts = rlhf("check", "-r", "bad.yaml", "sft", "--json").json["data"]["sft"]
    assert counts == {"read": 3, "dropped: prompt is held out elsewhere": 1, "train": 1, "held out": 1}


@pytest.mark.parametrize(
    ("stage", "key"), [("sft", "sft.max_length"), ("reward", "reward.max_length"), ("ppo", "ppo.max_prompt_length")]
)
def test_dry_run_too_many_long_rows_exits_3(
    rlhf: Rlhf, recipe_file: Path, tiny_base: Path, stage: str, key: str
) -> None:
    folder = recipe_file.parent
    long = "many words of one row " * 9
    rows = [
        {"prompt": f"{n} {long if n < 4 else ''}", "completion": "b", "chosen": "b", "rejected": "c"} for n in range(10)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe_file.write_text(
        f"name: bot\nbase: {{model: {tiny_base}}}\ndata:\n  max_overlong: 0.4\n"
        + "".join(f"  {kind}: {{path: rows.jsonl, eval_fraction: 0}}\n" for kind in ("sft", "preferences", "prompts"))
        + "sft: {max_length: 30}\nreward: {start: base, max_length: 30}\n"
        + "ppo: {start: base, max_prompt_length: 30, max_new_tokens: 8, reward: [{rule: {length: {max: 9}}}]}\n"
    )
    before = list_files(folder)
    assert rlhf(stage, "-r", "r.yaml", "--dry-run", "--json").code == 0
    ended = rlhf(stage, "-r", "r.yaml", "--dry-run", "--json", "--set", "data.max_overlong=0.3")
    assert (ended.code, ended.issue["code"]) == (3, "data.too-many-long-rows")
    assert ended.issue["location"].startswith("r.yaml:")
    assert ended.issue["message"].startswith(f"{key}: ")
    assert "4 of 10 rows" in ended.issue["message"]
    assert key in ended.issue["hint"]
    assert list_files(folder) == before
