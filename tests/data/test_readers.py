"""Lines of JSON that a quick reader would take otherwise than they are written, and those that only look so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.data.readers import Batch, IssueCollector, cut, read_file

SOUND = [
    '{"a": "b"}',
    '{"a" :"b","c"\t: "d" }',
    r'{"a": "\"a\": 1, \"a\": 2"}',
    r'{"a": "\\", "b": "\\\"", "c": "\\\\"}',
    r'{"a": "ends in \\", "b\\": ":"}',
    r'{"\u0061": "\u0022a\u0022:", "b": "\u005c"}',
    r'{"a": "\ud83d\ude00", "b": "😀 \\ud800"}',
    '{"a": [{"a": {"a": "a"}}, {"a": [1, 2.5, true, null, "a"]}], "b": {}, "c": []}',
    '{"a": 9223372036854775807, "b": [-9223372036854775808], "c": 1e300, "d": -1E-400}',
    '{"messages": [{"role": "user", "content": "\\"q\\""}, {"role": "user", "content": ""}]}',
    ' {"a": 1}\t\r',
]
FAULTY = [
    ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
    ('{"a": "x", "a": "x"}', "the key 'a' stands twice"),
    (r'{"a": "x", "\u0061": "x"}', "the key 'a' stands twice"),
    (r'{"a": "\"", "b": "", "a": "\\"}', "the key 'a' stands twice"),
    (r'{"a" : "\":", "a" : ""}', "the key 'a' stands twice"),
    (r'{"a\\": 1, "a\\": 2}', r"the key 'a\\' stands twice"),
    ('{"a": [{"b": [{"c": 1, "c": 2}]}]}', "the key 'c' stands twice"),
    ('{"a": {"b": 1}, "a": {}}', "the key 'a' stands twice"),
    ('{"a": 1, "b": {"": 0, "": 0}}', "the key '' stands twice"),
    ('{"a": 9223372036854775808}', "the integer 9223372036854775808 is beyond 64 bits"),
    ('{"a": {"b": [18446744073709551616]}}', "the integer 18446744073709551616 is beyond 64 bits"),
    ('{"a": -9223372036854775809}', "the integer -9223372036854775809 is beyond 64 bits"),
    ('{"a": 1e999}', "the number 1e999 is beyond"),
    ('{"a": [-Infinity]}', "-Infinity is not a number that JSON knows"),
    ('{"a": NaN}', "NaN is not a number that JSON knows"),
    (r'{"a": ["\udc00"]}', "a lone surrogate"),
    (r'{"\ud800": 1}', "a lone surrogate"),
    ("[1, 2]", "found a list"),
    ("{}", "the row has no fields"),
    ('{"a": 1} {"a": 2}', "broken JSON at column 10: Extra data"),
    ('{"a": 01}', "broken JSON at column 8"),
    ('{"a": "\t"}', "broken JSON at column 8: Invalid control character"),
    ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
]


def read(path: Path, content: str) -> tuple[list[dict[str, Any]], list[str]]:
    path.write_bytes(content.encode())
    issues = IssueCollector()
    rows = [fields for batch in read_file(path, issues) for fields in batch.rows]
    return rows, [str(issue) for issue in issues.shown]


@pytest.mark.parametrize("line", SOUND)
def test_what_only_looks_faulty_is_read_as_it_stands(tmp_path: Path, line: str) -> None:
    assert read(tmp_path / "x.jsonl", line) == ([json.loads(line)], [])


@pytest.mark.parametrize(("line", "says"), FAULTY)
def test_no_fault_passes_among_rows_that_are_sound(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "x.jsonl"
    rows, told = read(path, "\n".join([*SOUND[:2], line, SOUND[0]]))
    assert rows == [json.loads(sound) for sound in (*SOUND[:2], SOUND[0])]
    assert len(told) == 1
    assert told[0].startswith(f"{path}:3  ")
    assert says in told[0]


def test_lines_are_counted_over_batches_and_blanks(tmp_path: Path) -> None:
    lines = [json.dumps({"n": n, "text": "x" * 1000}) for n in range(1, 301)]  # several batches
    lines[199] = ""
    lines[250] = "{"
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(lines))
    issues = IssueCollector()
    batches = list(read_file(path, issues))
    assert len(batches) > 3
    assert all(row["n"] == n for _, numbers, rows in batches for n, row in zip(numbers, rows, strict=True))
    assert [issue.location for issue in issues.shown] == [f"{path}:251"]


@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 0), (2, 5), (3, 3), (4, 100), (5, None), (9, None)])
def test_a_cut_of_batches_is_that_of_a_list(start: int, stop: int | None) -> None:
    rows = [{"n": n} for n in range(9)]
    batches = [Batch("x:", range(a, b), rows[a:b]) for a, b in ((0, 3), (3, 3), (3, 8), (8, 9))]
    found = [(n, row) for batch in cut(batches, start, stop) for n, row in zip(batch.numbers, batch.rows, strict=True)]
    assert found == list(enumerate(rows))[start:stop]
