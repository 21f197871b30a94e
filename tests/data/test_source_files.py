"""Files of a source: missing ones, directories and their splits, runs, and Hub datasets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_cli.errors import DataError, Issue
from rlhf_cli.recipe.schema import Source
from tests.support.datasets import file_issues, load_file, load_sources, make_demonstrations, sorted_prompts
from tests.support.issues import raises_issue

Jsonl = Callable[..., Path]


def test_load_missing_file_suggests_closest_name(jsonl: Jsonl, tmp_path: Path) -> None:
    jsonl({"prompt": "a"}, name="preferences.jsonl")
    path = tmp_path / "preference.jsonl"
    hint = "Did you mean preferences.jsonl?"
    assert file_issues(path) == [Issue("data.file-not-found", "file not found.", str(path), hint)]


def test_load_missing_file_in_empty_directory_says_so(tmp_path: Path) -> None:
    with raises_issue("data.file-not-found") as issues:
        load_file(tmp_path / "rows.jsonl")
    assert issues[0].hint == f"The directory {tmp_path} has no files."


def test_load_unknown_file_type_adds_issue(tmp_path: Path) -> None:
    path = tmp_path / "rows.xlsx"
    path.write_text("x")
    message = "file type: found .xlsx, expected .jsonl, .json, .csv, .parquet or .txt."
    assert file_issues(path) == [Issue("data.unsupported-file-type", message, str(path), "Convert the file.")]


def test_load_txt_file_as_demonstrations_adds_issue(tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    path.write_text("Once.")
    message = "file type: .txt files hold text to pretrain on, not sft rows."
    assert file_issues(path) == [Issue("data.unsupported-file-type", message, str(path), "Use .jsonl.")]


def test_load_directory_without_data_files_adds_issue(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    message = "directory: no data file; found notes.txt, expected .jsonl, .json, .csv or .parquet."
    assert file_issues(tmp_path) == [Issue("data.no-files", message, str(tmp_path), "Check the path.")]


def test_load_directory_assigns_files_to_splits_by_name(jsonl: Jsonl, tmp_path: Path) -> None:
    jsonl(*make_demonstrations(4), name="train-00000-of-00002.jsonl")
    jsonl(*make_demonstrations(4, 4), name="train-00001-of-00002.jsonl")
    jsonl(*make_demonstrations(2, 8), name="test.jsonl")
    split = load_file(tmp_path, eval_fraction=None, eval_split="test")
    assert sorted_prompts(split.train) == [f"p{n}" for n in range(8)]
    assert [row.prompt for row in split.held_out] == ["p8", "p9"]


@pytest.mark.parametrize(
    ("split", "expected"), [("train[:25%]", ["p0", "p1"]), ("train[2:5]", ["p2", "p3", "p4"]), ("test", ["p8", "p9"])]
)
def test_load_split_slice_reads_rows_between_bounds(
    jsonl: Jsonl, tmp_path: Path, split: str, expected: list[str]
) -> None:
    jsonl(*make_demonstrations(4), name="train-00000-of-00002.jsonl")
    jsonl(*make_demonstrations(4, 4), name="train-00001-of-00002.jsonl")
    jsonl(*make_demonstrations(2, 8), name="test.jsonl")
    assert sorted_prompts(load_file(tmp_path, split=split).train) == expected


def test_load_directory_without_split_adds_issue(jsonl: Jsonl, tmp_path: Path) -> None:
    jsonl(*make_demonstrations(4), name="train.jsonl")
    jsonl(*make_demonstrations(2, 8), name="test.jsonl")
    message = "split 'validation': not found; found test, train."
    hint = "Set `split` to one of them, or name a file after the split, such as validation.jsonl."
    issues = file_issues(tmp_path, eval_fraction=None, eval_split="validation")
    assert issues == [Issue("data.unknown-split", message, str(tmp_path), hint)]


def test_load_single_file_reads_slice_of_train(jsonl: Jsonl) -> None:
    assert sorted_prompts(load_file(jsonl(*make_demonstrations(5)), split="train[:2]").train) == ["p0", "p1"]


def test_load_single_file_with_other_split_adds_issue(jsonl: Jsonl) -> None:
    path = jsonl(*make_demonstrations(5))
    message = "split 'test': not found; a file has only the split 'train'."
    hint = "Use a directory with one file per split, such as train.jsonl and test.jsonl."
    issues = file_issues(path, eval_fraction=None, eval_split="test")
    assert issues == [Issue("data.unknown-split", message, str(path), hint)]


def test_load_malformed_split_adds_issue(jsonl: Jsonl) -> None:
    path = jsonl(*make_demonstrations(5))
    message = "split 'train[2]': invalid; expected the name of a split or a slice of one."
    issue = Issue("data.invalid-split", message, str(path), "Write train or train[:1000].")
    assert file_issues(path, split="train[2]") == [issue]


def test_load_run_reads_its_rows_without_its_records(jsonl: Jsonl, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    jsonl(*make_demonstrations(3), name="data/train.jsonl")
    jsonl({"step": 1}, name="metrics.jsonl")
    jsonl({"step": 1}, name="samples.jsonl")
    (tmp_path / "data" / "README.md").write_text("# Card")
    (tmp_path / "manifest.json").write_text("{}")
    references: list[str] = []

    def find(reference: str) -> Path:
        references.append(reference)
        return tmp_path

    split = load_sources([Source(run="feedback@latest", eval_fraction=0)], find=find)
    assert sorted_prompts(split.train) == ["p0", "p1", "p2"]
    assert {*references} == {"feedback@latest"}


def test_load_run_with_held_out_splits_trains_on_none_of_them(jsonl: Jsonl, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    jsonl(*make_demonstrations(3), name="data/train.jsonl")
    jsonl(*make_demonstrations(2, 5), name="data/test.jsonl")
    jsonl(*make_demonstrations(1, 8), name="data/annotators.jsonl")
    split = load_sources([Source(run="feedback")], find=lambda _: tmp_path)
    assert sorted_prompts(split.train) == ["p0", "p1", "p2"]
    assert sorted_prompts(split.held_out) == ["p5", "p6", "p8"]


def test_load_run_with_held_out_splits_and_eval_fraction_adds_issue(jsonl: Jsonl, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    jsonl(*make_demonstrations(3), name="data/train.jsonl")
    jsonl(*make_demonstrations(2, 5), name="data/test.jsonl")
    with raises_issue("data.invalid-split", error=DataError, location=str(tmp_path)):
        load_sources([Source(run="feedback", eval_fraction=0.5)], find=lambda _: tmp_path)


def test_load_run_without_split_adds_issue(jsonl: Jsonl, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    jsonl(*make_demonstrations(3), name="data/train.jsonl")
    with raises_issue("data.unknown-split", error=DataError, location=str(tmp_path)) as issues:
        load_sources([Source(run="feedback", split="validation")], find=lambda _: tmp_path)
    assert "found train" in issues[0].message


def test_load_run_without_rows_adds_issue(jsonl: Jsonl, tmp_path: Path) -> None:
    jsonl({"step": 1}, name="metrics.jsonl")
    with raises_issue("data.no-files", error=DataError, location=str(tmp_path)):
        load_sources([Source(run="sft")], find=lambda _: tmp_path)


def test_load_hub_dataset_drops_empty_rows_and_holds_out_split(jsonl: Jsonl, tmp_path: Path) -> None:
    jsonl(*make_demonstrations(3), {"prompt": "", "completion": "a"}, name="train.jsonl")
    jsonl(*make_demonstrations(2, 5), name="test.jsonl")
    split = load_sources([Source(hub=str(tmp_path), eval_split="test")])  # `datasets` takes a directory for a Hub id
    assert sorted_prompts(split.train) == ["p0", "p1", "p2"]
    assert [row.prompt for row in split.held_out] == ["p5", "p6"]
    assert split.counts["dropped: empty prompt"] == 1


def test_load_hub_dataset_without_split_adds_issue(jsonl: Jsonl, tmp_path: Path) -> None:
    jsonl(*make_demonstrations(3), name="train.jsonl")
    with raises_issue("data.hub-not-loaded", error=DataError, location=str(tmp_path)) as issues:
        load_sources([Source(hub=str(tmp_path), split="absent")])
    assert issues[0].message.startswith("cannot load the Hub dataset: ValueError: ")
    assert "`hf auth login`" in issues[0].hint


def test_load_hub_dataset_passes_config_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    requests: list[tuple[str, str, str, str]] = []

    def load_dataset(name: str, config: str, *, split: str, revision: str) -> list[dict[str, str]]:
        requests.append((name, config, split, revision))
        return make_demonstrations(2, 2 * len(requests))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    load_sources([Source(hub="org/set", config="en", revision="4f1c", split="train[:2]", eval_split="test")])
    assert requests == [("org/set", "en", "train[:2]", "4f1c"), ("org/set", "en", "test", "4f1c")]


def test_load_saved_dataset_reads_its_splits(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list(make_demonstrations(30))
    rows.select(range(1, 20)).save_to_disk(tmp_path / "one")  # whose rows are a view of the stored table
    assert sorted_prompts(load_file(tmp_path / "one").train) == [f"p{n}" for n in range(1, 20)]
    datasets.DatasetDict(train=rows, test=rows.select([5])).save_to_disk(tmp_path / "splits")
    assert sorted_prompts(load_file(tmp_path / "splits", split="test").train) == ["p5"]
    assert len(load_file(tmp_path / "splits", split="train[:10]").train) == 10
    with raises_issue("data.unknown-split", location=str(tmp_path / "splits")):
        load_file(tmp_path / "splits", split="validation")


def test_load_damaged_saved_dataset_adds_issue(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    (tmp_path / "dataset_info.json").write_text("{}")
    (issue,) = file_issues(tmp_path)
    assert (issue.code, issue.location) == ("data.saved-not-loaded", str(tmp_path))
    assert "save_to_disk" in issue.message
