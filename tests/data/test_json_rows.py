"""JSON lines that orjson would read differently from how they are written, and lines that only look so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rlhf_cli.data.issues import IssueCollector
from rlhf_cli.data.json_rows import LINE_HINT, TEXT_HINT
from rlhf_cli.data.readers import read_file
from rlhf_cli.errors import Issue
from tests.support.datasets import file_issues

VALID = [
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


class Invalid(NamedTuple):
    """A line, and the code, message and hint of its issue."""

    line: str
    code: str
    message: str
    hint: str


INVALID = [
    *(
        Invalid(line, "data.duplicate-key", f"duplicate key {key!r} in an object.", "Keep one of them.")
        for line, key in (
            ('{"a": 1, "a": 2}', "a"),
            ('{"a": "x", "a": "x"}', "a"),
            (r'{"a": "x", "\u0061": "x"}', "a"),
            (r'{"a": "\"", "b": "", "a": "\\"}', "a"),
            (r'{"a" : "\":", "a" : ""}', "a"),
            (r'{"a\\": 1, "a\\": 2}', "a\\"),
            ('{"a": [{"b": [{"c": 1, "c": 2}]}]}', "c"),
            ('{"a": {"b": 1}, "a": {}}', "a"),
            ('{"a": 1, "b": {"": 0, "": 0}}', ""),
        )
    ),
    *(
        Invalid(line, "data.invalid-number", f"integer {digits}: does not fit in 64 bits.", TEXT_HINT)
        for line, digits in (
            ('{"a": 9223372036854775808}', "9223372036854775808"),
            ('{"a": {"b": [18446744073709551616]}}', "18446744073709551616"),
            ('{"a": -9223372036854775809}', "-9223372036854775809"),
            (f'{{"a": {"1" * 5000}}}', "1" * 25),
        )
    ),
    Invalid('{"a": 1e999}', "data.invalid-number", "number 1e999: does not fit in 64 bits.", TEXT_HINT),
    *(
        Invalid(line, "data.invalid-number", f"{name} is not a JSON number.", "Write a number, or null.")
        for line, name in (('{"a": [-Infinity]}', "-Infinity"), ('{"a": NaN}', "NaN"))
    ),
    *(
        Invalid(
            line,
            "data.lone-surrogate",
            "row: contains a lone surrogate, such as \\ud800, which cannot be encoded as UTF-8.",
            "Remove it.",
        )
        for line in (r'{"a": ["\udc00"]}', r'{"\ud800": 1}')
    ),
    Invalid("[1, 2]", "data.invalid-row", "row: found a list, expected an object {…}.", LINE_HINT),
    Invalid("{}", "data.invalid-row", "row: found an empty object, expected fields.", "Remove the row."),
    *(
        Invalid(line, "data.invalid-json", f"invalid JSON at column {column}: {problem}.", LINE_HINT)
        for line, column, problem in (
            ('{"a": 1} {"a": 2}', 10, "Extra data"),
            ('{"a": 01}', 8, "Expecting ',' delimiter"),
            ('{"a": "\t"}', 8, "Invalid control character at"),
        )
    ),
    Invalid(
        '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "data.nested-too-deeply",
        "row: nested too deeply to be parsed.",
        "Write the inner values as text.",
    ),
]


def read_lines(path: Path, lines: list[str]) -> tuple[list[dict[str, Any]], list[Issue]]:
    path.write_bytes("\n".join(lines).encode())
    issues = IssueCollector()
    rows = [fields for batch in read_file(path, issues) for fields in batch.rows]
    return rows, issues.shown


@pytest.mark.parametrize("line", VALID)
def test_read_jsonl_line_that_looks_invalid_is_read_as_written(tmp_path: Path, line: str) -> None:
    assert read_lines(tmp_path / "x.jsonl", [line]) == ([json.loads(line)], [])


@pytest.mark.parametrize("invalid", INVALID, ids=[f"{n}-{invalid.code}" for n, invalid in enumerate(INVALID)])
def test_read_jsonl_invalid_line_among_valid_ones_adds_issue(tmp_path: Path, invalid: Invalid) -> None:
    path = tmp_path / "x.jsonl"
    rows, issues = read_lines(path, [*VALID[:2], invalid.line, VALID[0]])
    assert rows == [json.loads(line) for line in (*VALID[:2], VALID[0])]
    assert issues == [Issue(invalid.code, invalid.message, f"{path}:3", invalid.hint)]


@pytest.mark.parametrize("end", ['{"prompt": "a", "comp', '{"prompt": "a", "completion": tr', '{"prompt": {"a": "b"}'])
def test_read_jsonl_truncated_last_line_adds_issue(tmp_path: Path, end: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' + end)
    assert file_issues(path) == [
        Issue(
            "data.truncated-file",
            "last line: truncated; the file ends inside a row.",
            f"{path}:2",
            "Check whether the file was copied or downloaded completely.",
        )
    ]


ROW = '{"prompt": "a", "completion": "b"}'


@pytest.mark.parametrize(
    ("text", "line", "code", "message", "hint"),
    [
        (
            '{"prompt": "a"}',
            "",
            "data.invalid-json",
            "file: expected a list of objects [{…}, …].",
            "Write a list, or one object per line in a .jsonl file.",
        ),
        (
            '{"prompt": "a"}\n{"prompt": "b"}',
            "",
            "data.invalid-json",
            "file: expected a list of objects [{…}, …].",
            "Rename it to .jsonl; it looks like JSON Lines.",
        ),
        (f"[\n{ROW},\n3]", ":3", "data.invalid-row", "row: found a number, expected an object {…}.", LINE_HINT),
        (
            f'[\n{ROW},\n{{"prompt": \n',
            ":4",
            "data.truncated-file",
            "the file ends inside a row.",
            "Check whether the file was cut off; the row starts on line 3.",
        ),
        (
            f'[\n{ROW},\n{{"prompt": "a" "b"}}, {ROW}]',
            ":3",
            "data.invalid-json",
            "invalid JSON at column 16: Expecting ',' delimiter.",
            "Fix the row that starts on line 3.",
        ),
        (f"[{ROW}\n{{}}]", ":2", "data.invalid-json", "invalid JSON at column 1: expected ',' or ']' after a row.", ""),
        (f"[{ROW}", ":1", "data.invalid-json", "invalid JSON at column 36: expected ',' or ']' after a row.", ""),
        (
            f"[\n{ROW},\n{ROW} ,\n]\n",
            ":3",
            "data.invalid-json",
            "invalid JSON at column 36: found ',' after the last row.",
            "Remove the comma.",
        ),
        (
            f"[{ROW}] x",
            "",
            "data.invalid-json",
            "unexpected text after the closing ']' of the list.",
            "Remove it.",
        ),
        (
            f'[{ROW},\n{{"a": NaN}},\n{{"a": NaN}}]',
            ":2",
            "data.invalid-number",
            "NaN is not a JSON number. The remaining rows were not read.",
            "Write a number, or null.",
        ),
    ],
)
def test_read_json_invalid_list_adds_issue(
    tmp_path: Path, text: str, line: str, code: str, message: str, hint: str
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    assert file_issues(path) == [Issue(code, message, f"{path}{line}", hint)]
