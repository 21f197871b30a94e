"""Tests of what is written for other tools: what is read back, what is not held, and that cells are no formulas."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.data.issues import IssueCollector
from rlhf_cli.feedback.formats.csv_table import escape_cell, unescape_cell
from rlhf_cli.feedback.formats.dump import WRITABLE, DumpResult, dump, to_rows
from rlhf_cli.feedback.formats.format import ParsedRow
from rlhf_cli.feedback.formats.reading import open_source
from rlhf_cli.feedback.types import NewItem, NewJudgment, Snapshot
from tests.support.datasets import find_no_run
from tests.support.feedback_rows import ANNOTATORS, full_snapshot, make_item, make_judgment
from tests.support.issues import raises_issue

SUFFIX = {"csv": ".csv", "jsonl": ".jsonl", "label-studio": ".json", "argilla": ".json"}


def write(tmp_path: Path, name: str, snapshot: Snapshot) -> tuple[Path, DumpResult]:
    path = tmp_path / f"dump{SUFFIX[name]}"
    return path, dump(snapshot, WRITABLE[name], path)


def read(path: Path) -> list[ParsedRow]:
    """Return the rows of a dump in the format that its columns tell; those of one item are joined."""
    issues, skipped = IssueCollector(), Counter[str]()
    items: list[NewItem] = []
    judgments: list[list[NewJudgment]] = []
    for row in open_source(str(path), find_no_run).read(issues, skipped):
        if not items or items[-1] != row.item:
            items.append(row.item)
            judgments.append([])
        judgments[-1] += row.judgments
    issues.raise_if_any()
    assert skipped == {}
    return [ParsedRow(item, tuple(given)) for item, given in zip(items, judgments, strict=True)]


def without(rows: list[ParsedRow], **fields: Any) -> list[ParsedRow]:
    """Return rows whose judgments have other values of some fields."""
    return [row._replace(judgments=tuple(replace(judgment, **fields) for judgment in row.judgments)) for row in rows]


@pytest.mark.parametrize("name", ["jsonl", "csv"])
def test_dump_of_plain_rows_reads_back_equal(tmp_path: Path, name: str) -> None:
    snapshot = full_snapshot()
    path, result = write(tmp_path, name, snapshot)
    assert read(path) == to_rows(snapshot)
    assert result == DumpResult(4, 8, {"decision of an expert": 1})


def test_dump_for_label_studio_reads_back_equal_but_for_what_it_names(tmp_path: Path) -> None:
    snapshot = full_snapshot()
    path, result = write(tmp_path, "label-studio", snapshot)
    lost = {"order": (), "key": "", "guideline": "", "principle": ""}
    assert without(read(path), **lost) == without(to_rows(snapshot), **lost)
    assert result.lost == {"decision of an expert": 1, "order in which completions were shown": 1}


def test_dump_for_argilla_reads_back_strict_rankings(tmp_path: Path) -> None:
    items = [make_item(1, "Say hi.", ["Hi", "Hey", "Ho"], language="en", kind="gold", answer=((10, 12), (11,)))]
    judgments = [
        make_judgment(1, 1, ((12,), (10,), (11,)), rationale="short"),
        make_judgment(2, 1, ((11,), (10,), (12,)), annotator=2),
        make_judgment(3, 1, ((10,), (11,), (12,)), annotator=3, source="ai"),
    ]
    snapshot = Snapshot(items, ANNOTATORS, judgments)
    path, result = write(tmp_path, "argilla", snapshot)
    assert without(read(path), key="", created="") == without(to_rows(snapshot), key="", created="")
    assert result.lost == {"time of a judgment": 3}


def test_dump_for_argilla_never_turns_a_tie_into_an_order(tmp_path: Path) -> None:
    path, result = write(tmp_path, "argilla", full_snapshot())
    assert [len(row.judgments) for row in read(path)] == [1, 1, 1, 0]
    # Judgments 1 and 5 have ties, 2 is of best and worst, 6 is skipped, 8 ranks nothing.
    assert result.lost["judgment with ties or of best and worst"] == 3
    assert result.lost["skipped item, or item of which all completions are bad"] == 2
    assert result.lost["flag"] == 1


@pytest.mark.parametrize("name", ["label-studio", "argilla"])
def test_dump_of_a_repeat_says_that_only_one_judgment_is_held(tmp_path: Path, name: str) -> None:
    judgments = [make_judgment(1, 1, ((10,), (11,)), task="pair"), make_judgment(2, 1, ((11,), (10,)), task="pair")]
    snapshot = Snapshot([make_item(1, "Say hi.", ["Hi", "Hey"])], ANNOTATORS, judgments)
    assert write(tmp_path, name, snapshot)[1].lost["repeated judgment"] == 1


@pytest.mark.parametrize("name", sorted(WRITABLE))
def test_dump_has_pseudonyms_and_no_names(tmp_path: Path, name: str) -> None:
    path, _ = write(tmp_path, name, full_snapshot())
    text = path.read_text(encoding="utf-8")
    assert "annotator-1" in text
    assert "Ada" not in text
    assert "Lovelace" not in text


def test_to_rows_maps_ids_to_indices() -> None:
    gold = to_rows(full_snapshot())[1]
    assert gold.item.answer == ((0,), (1,))
    first, second = gold.judgments
    assert first.answer.tiers == ((1,), (0,))
    assert first.answer.flags == {-1: ("unsafe",), 1: ("false", "broken")}
    assert (first.annotator, second.annotator) == ("annotator-1", "annotator-2")
    assert to_rows(full_snapshot())[0].judgments[0].order == (3, 0, 1, 2)


def test_to_rows_of_equal_judgments_have_different_keys() -> None:
    judgment = make_judgment(1, 1, ((10,), (11,)))
    snapshot = Snapshot([make_item(1, "Say hi.", ["Hi", "Hey"])], ANNOTATORS, [judgment, replace(judgment, id=2)])
    first, second = to_rows(snapshot)[0].judgments
    assert first.key != second.key


def test_to_rows_replaces_names_of_authors() -> None:
    assert to_rows(full_snapshot())[3].item.extra == {"author": ["annotator-1", "somebody"]}


@pytest.mark.parametrize("name", sorted(WRITABLE))
def test_dump_of_the_same_snapshot_has_the_same_bytes(tmp_path: Path, name: str) -> None:
    first = write(tmp_path, name, full_snapshot())[0].read_bytes()
    assert write(tmp_path, name, full_snapshot())[0].read_bytes() == first


@pytest.mark.parametrize("name", ["jsonl", "label-studio", "argilla"])
def test_dump_of_any_text_reads_back_equal(tmp_path: Path, name: str) -> None:
    texts = ["\0", "\ud800", "\u202e", "e\u0301", "\u00e9", "x" * 5_000_000]
    snapshot = Snapshot([make_item(1, "Say hi.", texts)], ANNOTATORS, [])
    path, _ = write(tmp_path, name, snapshot)
    assert [c.text for c in read(path)[0].item.completions] == texts


def test_dump_as_csv_of_text_that_csv_cannot_hold_says_so(tmp_path: Path) -> None:
    path, result = write(tmp_path, "csv", Snapshot([make_item(1, "a\0b", ["\ud800", "y"])], ANNOTATORS, []))
    assert read(path)[0].item.prompt == "a\ufffdb"
    assert result.lost == {"cell with NUL or a lone surrogate, written as U+FFFD": 2}


def test_dump_as_csv_has_no_cell_that_starts_a_formula(tmp_path: Path) -> None:
    path, _ = write(tmp_path, "csv", full_snapshot())
    with path.open(encoding="utf-8-sig", newline="") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    assert "'=better" in cells
    assert [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))] == []


@pytest.mark.parametrize(
    "text", ["=1", "+1", "-1", "@x", "\tx", "\rx", "'x", "''", "'=1", "''=1", "", "'", "x=1", "＝1"]
)
def test_unescape_cell_of_escaped_cell_returns_it(text: str) -> None:
    assert unescape_cell(escape_cell(text)) == text
    assert not escape_cell(text).startswith(("=", "+", "-", "@", "\t", "\r", "＝"))


def test_dump_for_label_studio_is_a_list_of_tasks(tmp_path: Path) -> None:
    path, _ = write(tmp_path, "label-studio", full_snapshot())
    first = json.loads(path.read_text(encoding="utf-8"))[0]
    assert first["data"]["completions"][1] == {"id": "1", "title": "1", "body": ""}
    assert first["annotations"][0]["result"][0] == {
        "from_name": "ranking",
        "to_name": "completions",
        "type": "ranker",
        "value": {"ranker": {"rank_1": ["1"], "rank_2": ["0", "2"], "rank_3": ["3"]}},
    }
    assert "run-0" not in json.dumps(first["data"])  # annotators see the data, not the meta


@pytest.mark.parametrize("name", ["none/dump.jsonl", "directory"])
def test_dump_to_unwritable_path_raises_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "directory").mkdir()
    with raises_issue("disk.not-writable"):
        dump(full_snapshot(), WRITABLE["jsonl"], tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]


def test_dump_as_csv_of_an_empty_last_completion_reads_it_back(tmp_path: Path) -> None:
    path, _ = write(tmp_path, "csv", Snapshot([make_item(1, "Say hi.", ["Hi", "Hey", ""])], ANNOTATORS, []))
    assert [completion.text for completion in read(path)[0].item.completions] == ["Hi", "Hey", ""]
