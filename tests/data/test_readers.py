"""Files of each type: equal rows from all of them, their encodings, and the issues of files that cannot be read."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest

from rlhf_cli.data.encodings import BYTE_HINT, encoding_hint
from rlhf_cli.data.issues import IssueCollector
from rlhf_cli.data.readers import EMPTY_HINT, read_file
from rlhf_cli.data.rows import SftRow, TextRow
from rlhf_cli.errors import Issue
from tests.support.datasets import file_issues, load_file
from tests.support.issues import raises_issue

ROW = {"prompt": 'äh, 1, "2"\n3?', "completion": "so\nso"}
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True),
}


def test_load_each_file_type_returns_same_rows(tmp_path: Path) -> None:
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
    for name, text, column in (
        ("a.jsonl", '{"prompt": "a", "completion": "b"}\n{"prompt": "ä", "completion": "b"}\n', 13),
        ("b.csv", "prompt,completion\nä,b\n", 1),
    ):
        path = tmp_path / name
        path.write_text(text, encoding="latin-1")
        message = f"not UTF-8: byte 0xe4 at column {column}."
        assert file_issues(path) == [Issue("data.not-utf8", message, f"{path}:2", BYTE_HINT)]


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE"), ("utf-32", "UTF-32")],
)
def test_load_file_in_wide_encoding_names_it_and_hint_converts_it(tmp_path: Path, encoding: str, name: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ROW, ensure_ascii=False), encoding=encoding)
    (issue,) = file_issues(path)
    assert issue == Issue("data.not-utf8", f"not UTF-8: looks like {name}.", str(path), encoding_hint(name))
    command = issue.hint.split("`")[1].split()
    path.write_bytes(subprocess.run([*command, str(path)], check=True, capture_output=True).stdout)
    assert load_file(path).train == [SftRow(**ROW)]


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


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("has_suffix", [True, False])
def test_load_compressed_file_returns_its_rows(tmp_path: Path, suffix: str, has_suffix: bool) -> None:
    path = tmp_path / f"a.jsonl{suffix if has_suffix else ''}"
    path.write_bytes(COMPRESS[suffix](json.dumps(ROW).encode()))
    assert load_file(path).train == [SftRow(**ROW)]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_load_truncated_compressed_file_adds_issue(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    lines = "".join(json.dumps({"prompt": f"p{n}", "completion": f"c{n * n}"}) + "\n" for n in range(1000))
    path.write_bytes(COMPRESS[suffix](lines.encode())[:-20])
    assert [(issue.code, issue.location) for issue in file_issues(path)][-1] == (
        "data.damaged-compression",
        str(path),
    )


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\f", "\v", "\x1c"])
def test_load_txt_file_breaks_lines_at_line_breaks_only(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "a.txt"
    text = f"one{separator}{separator}two"
    path.write_bytes(f"{text}\r\n\r\nthree\rfour\n\nfive".encode())
    assert sorted(row.text for row in load_file(path, "pretrain").train) == ["five", text, "three\nfour"]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_load_csv_with_other_delimiter_reads_its_columns(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f'\n"prompt"{delimiter}completion\n"a{delimiter}b"{delimiter}c, d\n')
    assert load_file(path).train == [SftRow(f"a{delimiter}b", "c, d")]


def test_load_csv_with_spaces_in_header_adds_issue(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt, completion\na, b\n")
    (issue,) = file_issues(path)
    assert (issue.code, issue.location) == ("data.invalid-csv", f"{path}:1")
    assert "' completion'" in issue.message


def test_load_parquet_with_duplicate_column_adds_issue(tmp_path: Path) -> None:
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    columns = [pyarrow.array(["a"]), pyarrow.array(["b"]), pyarrow.array(["c"])]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, ["prompt", "completion", "completion"]), path)
    message = "columns: duplicate column 'completion'; found prompt, completion, completion."
    hint = "Rename or remove one of them."
    assert file_issues(path) == [Issue("data.duplicate-key", message, str(path), hint)]
    turn = pyarrow.StructArray.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], ["role", "role"])
    messages = pyarrow.ListArray.from_arrays([0, 1], turn)
    pyarrow.parquet.write_table(pyarrow.table({"messages": messages}), path)
    (issue,) = file_issues(path)
    assert issue.message == "columns: duplicate column 'role'; found messages."
