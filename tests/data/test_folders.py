"""Directories: each file is read, is named as another split, or is an issue."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from rlhf_cli.errors import Issue
from tests.support.datasets import file_issues, load_file, make_demonstrations, sorted_prompts
from tests.support.issues import raises_issue


def write_files(directory: Path, *names: str) -> None:
    """Write files with one row each, whose prompt is the number of the file: p0, p1, …"""
    for number, name in enumerate(names):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = "".join(json.dumps(row) + "\n" for row in make_demonstrations(1, number)).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (["a.jsonl", "B.JSONL", "sub/c.jsonl", "sub/more/d.jsonl.gz"], "train", "0123"),
        (["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl.gz", "test.jsonl"], "train", "01"),
        (["train-00000-of-00001-6ef3991c06080e14.jsonl", "test-00000-of-00001-0123456789abcdef.jsonl"], "train", "0"),
        (["train_prefs-00000-of-00001.jsonl", "test_prefs-00000-of-00001.jsonl"], "train", "0"),
        (["train_prefs.jsonl", "test_prefs.jsonl", "train_sft.jsonl"], "train_prefs", "0"),
        (["train_prefs.jsonl", "test_prefs.jsonl", "train_sft.jsonl"], "test", "1"),
        (["train.jsonl", "train_extra.jsonl"], "train", "0"),
        (["sft_train.jsonl", "sft_test.jsonl"], "train", "0"),
        (["hh-train.jsonl", "hh-test.jsonl"], "hh-test", "1"),
        (["train/0.jsonl", "train/1.jsonl", "test/0.jsonl"], "train", "01"),
        (["default/train/0000.jsonl", "default/test/0000.jsonl"], "test", "1"),
        (["train1.jsonl", "train_2.jsonl", "train-part-3.jsonl", "test.jsonl"], "train", "012"),
        (["Train.jsonl", "Test.jsonl"], "train", "0"),
        (["data/train.jsonl", "README.md", "LICENSE", ".cache/x.jsonl", "dataset_infos.json"], "train", "0"),
    ],
)
def test_load_directory_reads_files_of_split(tmp_path: Path, names: list[str], split: str, expected: str) -> None:
    write_files(tmp_path, *names)
    assert sorted_prompts(load_file(tmp_path, split=split).train) == [f"p{number}" for number in expected]


@pytest.mark.parametrize(
    ("names", "split", "message", "hint"),
    [
        (
            ["train_prefs.jsonl", "test_prefs.jsonl", "train_sft.jsonl"],
            "train",
            "split 'train': found several: train_prefs, train_sft.",
            "Set `split: train_prefs`, or another one; list one source for each to use several.",
        ),
        (
            ["train.jsonl", "test.jsonl", "more.jsonl"],
            "train",
            "split: not clear for more.jsonl; found the splits test, train beside it.",
            "Rename it, for example to test-more, or move it out of the directory.",
        ),
    ],
)
def test_load_directory_with_unclear_split_adds_issue(
    tmp_path: Path, names: list[str], split: str, message: str, hint: str
) -> None:
    write_files(tmp_path, *names)
    issue = Issue("data.ambiguous-split", message, str(tmp_path), hint)
    assert file_issues(tmp_path, split=split) == [issue]


def test_load_directory_without_split_lists_the_others(tmp_path: Path) -> None:
    write_files(tmp_path, "train_prefs.jsonl", "test_prefs.jsonl")
    with raises_issue("data.unknown-split", location=str(tmp_path)) as issues:
        load_file(tmp_path, split="validation")
    assert "test_prefs, train_prefs" in issues[0].message


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl"],
            "shards: not found: train-00001-of-00003; found 2 of 3.",
        ),
        (["x-00001-of-00002.jsonl"], "shards: not found: x-00000-of-00002; found 1 of 2."),
        (["x-00002-of-00002.jsonl"], "shards: not found: x-00001-of-00002; found 1 of 2."),
        (["x.jsonl", "x.jsonl.gz"], "x.jsonl, x.jsonl.gz: found the same file twice."),
    ],
)
def test_load_directory_with_missing_or_repeated_file_adds_issue(
    tmp_path: Path, names: list[str], message: str
) -> None:
    write_files(tmp_path, *names)
    (issue,) = file_issues(tmp_path)
    assert (issue.code, issue.message, issue.location) == ("data.missing-shard", message, str(tmp_path))


def test_load_directory_with_missing_shard_of_other_split_ignores_it(tmp_path: Path) -> None:
    write_files(tmp_path, "train-00001-of-00002.jsonl", "train-00002-of-00002.jsonl", "test-00000-of-00002.jsonl")
    assert sorted_prompts(load_file(tmp_path).train) == ["p0", "p1"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("rows.tsv", "Convert the file."),
        ("rows", "Convert the file."),
        ("rows.parquet.gz", "Decompress it; Parquet compresses its columns by itself."),
        ("sub/rows.tar.gz", "Unpack it."),
        ("x.arrow", "Use the directory that `save_to_disk` wrote, or convert the file with `datasets` to .parquet."),
    ],
)
def test_load_directory_with_unreadable_file_adds_issue(tmp_path: Path, name: str, hint: str) -> None:
    write_files(tmp_path, "a.jsonl", name)
    (issue,) = file_issues(tmp_path)
    assert (issue.code, issue.location) == ("data.unsupported-file-type", str(tmp_path / name))
    assert issue.hint == f"{hint} If it holds no rows, move it out of the directory."


def test_load_directory_with_text_file_adds_issue_unless_it_holds_rows(tmp_path: Path) -> None:
    write_files(tmp_path, "a.jsonl")
    (tmp_path / "notes.txt").write_text("x")
    (issue,) = file_issues(tmp_path)
    assert (issue.code, issue.location) == ("data.unsupported-file-type", str(tmp_path / "notes.txt"))
    (tmp_path / "a.jsonl").unlink()
    assert [row.text for row in load_file(tmp_path, "pretrain").train] == ["x"]


def test_load_directory_with_linked_folder_adds_issue(tmp_path: Path) -> None:
    write_files(tmp_path / "elsewhere", "a.jsonl")
    write_files(tmp_path / "data", "a.jsonl")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    (issue,) = file_issues(tmp_path / "data")
    assert (issue.code, issue.location) == ("data.unsupported-file-type", str(tmp_path / "data" / "more"))
