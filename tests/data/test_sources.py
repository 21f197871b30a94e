"""Sources of a dataset: mixtures by weight, limits, counts, and the issues of all sources at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_cli.data import sources
from rlhf_cli.data.row_policy import RowPolicy
from rlhf_cli.data.rows import PreferenceRow
from rlhf_cli.errors import DataError, Issue
from rlhf_cli.recipe.schema import Source
from tests.support.datasets import (
    count_file,
    file_issues,
    find_no_run,
    load_file,
    load_sources,
    make_demonstrations,
    sorted_prompts,
)
from tests.support.issues import raises_issue
from tests.support.shared_data import require_shared

Jsonl = Callable[..., Path]


def test_load_invalid_sources_raises_issues_of_all(jsonl: Jsonl, tmp_path: Path) -> None:
    invalid = jsonl("{", *make_demonstrations(1), name="a.jsonl")
    with pytest.raises(DataError) as raised:
        load_sources([Source(path=str(tmp_path / "b.jsonl")), Source(path=str(invalid))])
    assert [(issue.code, issue.location) for issue in raised.value.issues] == [
        ("data.file-not-found", str(tmp_path / "b.jsonl")),
        ("data.invalid-json", f"{invalid}:1"),
    ]


def test_load_mixture_without_weights_shuffles_all_rows(jsonl: Jsonl) -> None:
    one = jsonl(*make_demonstrations(100), name="one.jsonl")
    two = jsonl(*make_demonstrations(3, 100), name="two.jsonl")
    mixture = [Source(path=str(path), eval_fraction=0) for path in (one, two)]
    split = load_sources(mixture)
    assert sorted_prompts(split.train) == [f"p{n}" for n in range(103)]
    assert split.counts == {"read": 103, f"used from {one}": 100, f"used from {two}": 3, "train": 103, "held out": 0}
    assert load_sources(mixture).train == split.train
    assert load_sources(mixture, seed=1).train != split.train


def test_load_mixture_with_weights_keeps_their_ratio_and_repeats_no_row(jsonl: Jsonl) -> None:
    one = jsonl(*make_demonstrations(100), name="one.jsonl")
    two = jsonl(*make_demonstrations(3, 100), name="two.jsonl")
    mixture = [
        Source(path=str(one), weight=7, eval_fraction=0),
        Source(path=str(two), weight=0.7, eval_fraction=0),
    ]
    split = load_sources(mixture)
    prompts = sorted_prompts(split.train)
    assert len(set(prompts)) == len(prompts) == 33
    assert (split.counts[f"used from {one}"], split.counts[f"used from {two}"]) == (30, 3)
    dropped = {name: count for name, count in split.counts.items() if name.startswith("dropped")}
    assert dropped == {f"dropped: from {one}, to match the weights": 70}
    assert load_sources(mixture).train == split.train
    assert load_sources(mixture, seed=1).train != split.train


def test_load_mixture_source_without_weight_has_weight_one(jsonl: Jsonl) -> None:
    one = jsonl(*make_demonstrations(20), name="one.jsonl")
    two = jsonl(*make_demonstrations(20, 20), name="two.jsonl")
    split = load_sources([Source(path=str(one), eval_fraction=0), Source(path=str(two), weight=2, eval_fraction=0)])
    assert (split.counts[f"used from {one}"], split.counts[f"used from {two}"]) == (10, 20)


def test_load_mixture_of_text_and_conversations_adds_issue(jsonl: Jsonl) -> None:
    one = jsonl(*make_demonstrations(3), name="one.jsonl")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    two = jsonl({"messages": messages}, name="two.jsonl")
    with pytest.raises(DataError) as raised:
        load_sources([Source(path=str(one)), Source(path=str(two))])
    message = f"format: found a conversation, expected text as in {one}."
    hint = "Use sources with the same format; a dataset cannot mix text and conversations."
    assert raised.value.issues == (Issue("data.mixed-formats", message, str(two), hint),)


def test_load_limit_reads_no_further_row(jsonl: Jsonl) -> None:
    path = jsonl(*make_demonstrations(20), "{")
    split = load_sources([Source(path=str(path), eval_fraction=0.1)], limit=10)
    assert sorted_prompts(split.train + split.held_out) == [f"p{n}" for n in range(10)]
    assert split.held_out


def test_load_limit_bounds_a_mixture(jsonl: Jsonl) -> None:
    paths = [jsonl(*make_demonstrations(20, 20 * n), name=f"{n}.jsonl") for n in range(3)]
    split = load_sources([Source(path=str(path), eval_fraction=0) for path in paths], limit=10)
    assert len(split.train) == split.counts["train"] == 10


def test_load_source_without_rows_left_adds_issue_with_counts(jsonl: Jsonl) -> None:
    path = jsonl({"prompt": "a", "chosen": "b", "rejected": "b"})
    (issue,) = file_issues(path, "preferences")
    message = "no rows left to train on (read 1; dropped: chosen equals rejected 1)."
    assert issue == Issue("data.no-rows", message, str(path), "Add rows, or lower eval_fraction.")


def test_load_slice_without_rows_adds_issue(jsonl: Jsonl) -> None:
    path = jsonl(*make_demonstrations(3))
    with raises_issue("data.no-rows", location=str(path)) as issues:
        load_file(path, split="train[5:9]")
    assert issues[0].message == "no rows; expected at least one."


def test_count_any_kind_returns_counts_of_load(jsonl: Jsonl, tmp_path: Path) -> None:
    pairs = [{"prompt": f"p{n % 700}", "chosen": f"a{n}", "rejected": f"b{n}"} for n in range(5000)]
    pairs[1234]["rejected"] = pairs[1234]["chosen"]
    pairs[4321]["prompt"] = "two  words \n"
    counts = count_file(jsonl(*pairs), "preferences")
    assert (counts["read"], counts["dropped: chosen equals rejected"]) == (5000, 1)
    assert count_file(jsonl(*pairs), "prompts")["dropped: prompt seen before"] == 4299
    chats = [[{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}] for n in range(500)]
    assert count_file(jsonl(*[{"messages": chat} for chat in chats]), "sft")["read"] == 500
    assert count_file(jsonl(*[{"text": f"t{n}"} for n in range(500)]), "sft")["read"] == 500
    assert count_file(jsonl(*[{"text": f"t{n}"} for n in range(500)]), "pretrain", split="train[:50%]")["read"] == 250
    (tmp_path / "splits").mkdir()
    jsonl(*make_demonstrations(500), name="splits/train.jsonl")
    jsonl(*make_demonstrations(50, 480), name="splits/test.jsonl")
    assert count_file(tmp_path / "splits", "sft", eval_split="test")["dropped: prompt is held out elsewhere"] == 20


def test_count_mixture_returns_counts_of_load(jsonl: Jsonl) -> None:
    given = [
        Source(path=str(jsonl(*make_demonstrations(40, 40 * n), name=f"{n}.jsonl")), weight=n + 1) for n in range(3)
    ]
    assert sources.count(given, "sft", find=find_no_run) == load_sources(given).counts


def test_load_column_that_appears_late_applies_to_all_rows(jsonl: Jsonl) -> None:
    early = [{"text": f"t{n}", "n": "x" * 1000} for n in range(5000)]  # more rows than HEAD_BATCHES hold
    path = jsonl(*early, {"prompt": "a", "completion": "b"})
    issues = file_issues(path)
    assert (issues[0].code, issues[0].location) == ("data.missing-field", f"{path}:1")
    assert count_file(jsonl(*early, {"text": "t", "late": 3}), "pretrain")["read"] == 5001
    path = jsonl(*make_demonstrations(5000), {"prompt": "b", "prompts": 1})
    assert [issue.code for issue in file_issues(path, "prompts")] == ["data.reserved-column"]


def test_load_real_preferences_keeps_all_usable_rows(tmp_path: Path) -> None:
    file = require_shared("data", "pandalm", "testset-v1.json")
    columns = {"prompt": "instruction", "chosen": "response1", "rejected": "response2"}
    unused = [
        issue for issue in file_issues(file, "preferences", columns=columns) if issue.code == "data.unused-column"
    ]
    assert [issue.message.partition(":")[0] for issue in unused] == ["input", "annotator1"]
    ignored = ["input", "annotator1"]
    issues = file_issues(file, "preferences", columns=columns, ignore_columns=ignored)
    assert (issues[0].code, issues[0].location) == ("data.empty-completion", f"{file}:218")
    rows = json.loads(file.read_text(encoding="utf-8"))
    rows = [row for row in rows if all(isinstance(row[c], str) and row[c].strip() for c in columns.values())]
    (tmp_path / "clean.json").write_text(json.dumps(rows))
    split = load_file(
        tmp_path / "clean.json", "preferences", columns=columns, ignore_columns=ignored, eval_fraction=0.1
    )
    equal = sum(row["response1"] == row["response2"] for row in rows)
    assert len(split.train) + len(split.held_out) == len(rows) - equal
    assert split.counts.get("dropped: chosen equals rejected", 0) == equal
    assert isinstance(split.train[0], PreferenceRow)
    assert split.train[0].extra.keys() == set(rows[0]) - set(columns.values())
    assert not set(sorted_prompts(split.train)) & set(sorted_prompts(split.held_out))


def test_load_imports_neither_torch_nor_datasets(jsonl: Jsonl) -> None:
    path = jsonl(*make_demonstrations(3))
    code = (
        "import sys; from pathlib import Path; from rlhf_cli.data import chat_template, sources;"
        "from rlhf_cli.recipe.schema import Source;"
        f"sources.load([Source(path={str(path)!r})], 'sft', seed=0, find=Path);"
        "print([name for name in ('torch', 'transformers', 'datasets', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_load_invalid_rows_are_skipped_listed_and_counted(jsonl: Jsonl, caplog: pytest.LogCaptureFixture) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    invalid = ["{", {"prompt": "a"}, {"prompt": chat[:1], "completion": chat[1:]}, {"prompt": "", "completion": "b"}]
    path = jsonl(*make_demonstrations(3), *invalid)
    source = Source(path=str(path), eval_fraction=0)
    split = load_sources([source], policy=RowPolicy(skip_invalid=True))
    assert split.counts == {
        "read": 6,
        "dropped: invalid (data.invalid-json)": 1,
        "dropped: invalid (data.missing-field)": 1,
        "dropped: invalid (data.mixed-formats)": 1,
        "dropped: invalid (data.empty-field)": 1,
        "train": 3,
        "held out": 0,
    }
    listed = [record.getMessage() for record in caplog.records]
    assert all(any(f"{path}:{line} " in message for message in listed) for line in (4, 5, 6, 7))
    assert sources.count([source], "sft", find=find_no_run, policy=RowPolicy(skip_invalid=True)) == split.counts


def test_load_csv_record_with_other_number_of_fields_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("prompt,completion\na,b\nc,d,e\nf,g\n", encoding="utf-8")
    split = load_sources([Source(path=str(path), eval_fraction=0)], policy=RowPolicy(skip_invalid=True))
    assert split.counts["dropped: invalid (data.invalid-csv)"] == 1
    assert sorted(row.prompt for row in split.train) == ["a", "f"]
