"""Files of each type: equal rows from all of them, their encodings, and the issues of files that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

from rlhf_cli.data.issues import IssueCollector
from rlhf_cli.data.readers import EMPTY_HINT, ENCODING_HINT, read_file
from rlhf_cli.data.rows import SftRow, TextRow
from rlhf_cli.errors import Issue
from tests.support.datasets import file_issues, load_file
from tests.support.issues import raises_issue

ROW = {"prompt": 'äh, 1, "2"\n3?', "completion": "so\nso"}


def test_load_each_file_type_returns_same_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.jsonl").write_text(json.dumps(ROW) + "\n\n" + json.dumps(ROW, ensure_ascii=False))
    (tmp_path / "b.json").write_text(json.dumps([ROW, ROW], indent=1))
    record = '"äh, 1, ""2""\n3?","so\nso"\n'
    (tmp_path / "c.csv").write_text("prompt,completion\n" + record + record)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROW, ROW]), tmp_path / "d.parquet")
    for name in ("a.jsonl", "b.json", "c.csv", "d.parquet"):
        assert load_file(tmp_path / name).train == [SftRow(**ROW)] * 2, name
    assert len(load_file(tmp_path).train) == 8


def test_load_file_with_byte_order_mark_ignores_it(tmp_path: Path) -> None:
    for name, text in (
        ("a.jsonl", json.dumps(ROW)),
        ("b.json", json.dumps([ROW])),
        ("c.csv", "prompt,completion\na,b"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert len(load_file(tmp_path / name).train) == 1


def test_load_txt_file_makes_row_of_each_paragraph(tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    path.write_text("\nOnce\nupon.\n\n \nThe end.")
    assert sorted(load_file(path, "pretrain").train) == [TextRow("Once\nupon."), TextRow("The end.")]


def test_read_jsonl_counts_lines_over_batches_and_blank_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"n": n, "text": "x" * 1000}) for n in range(1, 301)]  # several batches
    lines[199] = ""
    lines[250] = "{"
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(lines))
    issues = IssueCollector()
    batches = list(read_file(path, issues))
    assert len(batches) > 3
    assert all(row["n"] == n for batch in batches for n, row in zip(batch.numbers, batch.rows, strict=True))
    assert [issue.location for issue in issues.shown] == [f"{path}:251"]


def test_load_file_in_other_encoding_adds_issue(tmp_path: Path) -> None:
    for name, text, column, is_read_by_line in (
        ("a.jsonl", '{"prompt": "a", "completion": "b"}\n{"prompt": "ä", "completion": "b"}\n', 13, True),
        ("b.csv", "prompt,completion\nä,b\n", 1, False),
    ):
        path = tmp_path / name
        path.write_text(text, encoding="latin-1")
        message = f"not UTF-8: byte 0xe4 at column {column}."
        assert file_issues(path) == [Issue("data.not-utf8", message, f"{path}:2", ENCODING_HINT)]
        path.write_text(text, encoding="utf-16")
        location = f"{path}:1" if is_read_by_line else str(path)
        assert file_issues(path) == [Issue("data.not-utf8", "not UTF-8: looks like UTF-16.", location, ENCODING_HINT)]


def test_load_file_without_rows_adds_issue(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", ""), ("b.json", "[]"), ("c.csv", "prompt,completion\n"), ("d.jsonl", "\n\n")):
        path = tmp_path / name
        path.write_text(content)
        message = "file has no rows; expected at least one." if content else "file is empty; expected rows."
        assert file_issues(path) == [Issue("data.no-rows", message, str(path), EMPTY_HINT)]


def test_load_csv_row_with_wrong_field_count_adds_issue_with_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion\n"a\nb",c\na,b,c\na,\n')
    first, second = file_issues(path)
    hint = 'Put a field that contains a comma, a quote or a line break in "quotes".'
    assert first == Issue("data.invalid-csv", "row: found 3 fields, expected 2 as in the header.", f"{path}:4", hint)
    assert (second.code, second.location) == ("data.empty-completion", f"{path}:5")


def test_load_csv_with_duplicate_column_adds_issue(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,prompt\na,b\n")
    message = "header: duplicate column; found prompt, prompt."
    assert file_issues(path) == [Issue("data.duplicate-key", message, f"{path}:1", "Rename one of them.")]


def test_load_csv_with_unclosed_quote_adds_issue(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion\na,b\na,"b\n')
    (issue,) = file_issues(path)
    assert (issue.code, issue.location) == ("data.invalid-csv", f"{path}:3")
    assert issue.message == "invalid CSV: unexpected end of data."


def test_load_csv_long_cell_is_not_truncated(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\na," + "b" * 200_000 + "\n")
    assert load_file(path).train == [SftRow("a", "b" * 200_000)]


def test_load_invalid_parquet_file_adds_issue(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    with raises_issue("data.invalid-parquet", location=str(path)) as issues:
        load_file(path)
    assert issues[0].message.startswith("invalid Parquet file: ArrowInvalid: ")
