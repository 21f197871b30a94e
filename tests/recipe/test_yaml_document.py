"""YAML with positions: the scalars of YAML 1.2, and what YAML allows but a recipe does not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from rlhf_cli.errors import RecipeError
from rlhf_cli.recipe.yaml_document import Document, Dumper, parse_scalar, read_document
from tests.support.issues import raises_issue


def parse(tmp_path: Path, text: str) -> Document:
    path = tmp_path / "r.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return read_document(path)


def line_and_column(location: str) -> str:
    """Return the part of a location after the file's name."""
    return location.rsplit("r.yaml", 1)[1]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        ("2.5", 2.5),
        (".5", 0.5),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("Off", "Off"),
        ("true", True),
        ("FALSE", False),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-3", -3),
        ("12:30:45", "12:30:45"),
        ("2024-01-31", "2024-01-31"),
        ("1_000", "1_000"),
        ("~", None),
        ("null", None),
        ("", None),
        ("'null'", "null"),
        ("-.INF", -math.inf),
        ("'1e-4'", "1e-4"),
        ("[1, no]", [1, "no"]),
        ("{a: 1e2}", {"a": 100.0}),
    ],
)
def test_parse_scalar_follows_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    found = parse_scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_parse_scalar_nan_returns_float() -> None:
    assert math.isnan(parse_scalar(".nan"))


def test_document_has_position_of_every_key(tmp_path: Path) -> None:
    document = parse(tmp_path, "a:\n  b: [1, {c: 2}]\n")
    lines = {key: line_and_column(position.location) for key, position in document.positions.items()}
    assert lines == {
        ("a",): ":1:1",
        ("a", "b"): ":2:3",
        ("a", "b", 0): ":2:7",
        ("a", "b", 1): ":2:10",
        ("a", "b", 1, "c"): ":2:11",
    }


def test_document_position_of_missing_key_is_the_closest_containing_key(tmp_path: Path) -> None:
    document = parse(tmp_path, "a: {b: 1}\n")
    assert line_and_column(document.location(("a", "x", "y"))) == ":1:1"
    assert document.position(("z",)) is None
    assert document.location(("z",)) == str(tmp_path / "r.yaml")


def test_document_with_byte_order_mark_reads_first_key(tmp_path: Path) -> None:
    assert parse(tmp_path, "\ufeffa: 1\n").values == {"a": 1}


def test_document_with_duplicate_keys_locates_both_at_every_depth(tmp_path: Path) -> None:
    issues = parse(tmp_path, "a: 1\nb: {c: 1, c: 2}\na: 2\n").issues
    assert [(issue.code, line_and_column(issue.location)) for issue in issues] == [
        ("recipe.duplicate-key", ":2:11"),
        ("recipe.duplicate-key", ":3:1"),
    ]
    assert issues[0].message.startswith("b.c: duplicate key, first used at ")
    assert issues[0].message.endswith("r.yaml:2:5.")


@pytest.mark.parametrize(
    ("text", "code", "location", "words"),
    [
        ("", "not-a-mapping", "", "empty recipe."),
        ("# nothing\n", "not-a-mapping", "", "empty recipe."),
        ("- a\n", "not-a-mapping", "", "not a mapping of keys to values. Start with `name:` and `base:`."),
        ("hello\n", "not-a-mapping", "", "not a mapping"),
        ("a:\n\tb: 1\n", "invalid-yaml", ":2:1", "Indent with spaces, not tabs."),
        ("a: 1\n  b: 2\n", "invalid-yaml", ":2:4", "invalid YAML: mapping values are not allowed"),
        ("a: 'x\n", "invalid-yaml", ":2:1", "invalid YAML"),
        ("a: *b\n", "invalid-yaml", ":1:4", "undefined alias"),
        ("a: 1\n---\na: 2\n", "invalid-yaml", ":2:1", "another document"),
        ("é: 1\nb: x\x07\n", "invalid-yaml", ":2:5", "the character U+0007 is not allowed. Remove it."),
        ('a: "\\ud800"\n', "invalid-yaml", ":1:7", "invalid YAML"),
        # PyYAML's C loader would crash Python.
        ("a: " + "[" * 100_000 + "]" * 100_000, "too-complex", "", "nested too deeply; expected at most 50 levels."),
        ("a: &a {b: *a}\n", "too-complex", ":1:4", "nested too deeply"),
    ],
)
def test_read_document_of_invalid_file_raises_with_location(
    tmp_path: Path, text: str, code: str, location: str, words: str
) -> None:
    with raises_issue(f"recipe.{code}", error=RecipeError) as issues:
        parse(tmp_path, text)
    (issue,) = issues
    assert issue.location.endswith(f"r.yaml{location}")
    assert words in str(issue)


def test_read_document_of_alias_bomb_raises_before_expanding_it(tmp_path: Path) -> None:
    levels = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 10)]  # 10^9 values
    with raises_issue("recipe.too-complex") as issues:
        parse(tmp_path, "\n".join(["l0: &l0 x", *levels]))
    assert issues[0].message == "too many values after expanding aliases; expected at most 100,000."


def test_document_alias_is_a_copy(tmp_path: Path) -> None:
    assert parse(tmp_path, "a: &a {b: 1}\nc: *a\n").values == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    "text",
    [
        'a: !!python/object/apply:os.system ["true"]',
        "a: !!python/name:os.system x",
        "a: !!python/object:os.stat_result {b: 1}",
        "a: !!set {b}",
        "a: !!binary aGk=",
        "a: !mine 3",
    ],
)
def test_document_with_tag_has_issue(tmp_path: Path, text: str) -> None:
    (issue,) = parse(tmp_path, text).issues
    assert (issue.code, line_and_column(issue.location)) == ("recipe.invalid-yaml", ":1:4")
    assert issue.message.startswith("a: the tag ")


@pytest.mark.parametrize("text", ["a: !!int abc", "a: !!float abc", "a: !!int 0o9", "a: 1" + "0" * 5000])
def test_document_with_invalid_number_has_short_issue(tmp_path: Path, text: str) -> None:
    (issue,) = parse(tmp_path, text).issues
    assert issue.code == "recipe.invalid-value"
    assert issue.message.startswith("a: invalid number; found ")
    assert len(issue.message) < 120


@pytest.mark.parametrize("text", ["? [a, b]\n: 1\n", "? {a: 1}\n: 1\n"])
def test_document_with_key_that_is_not_text_has_issue(tmp_path: Path, text: str) -> None:
    (issue,) = parse(tmp_path, text).issues
    assert (issue.code, issue.message) == ("recipe.invalid-yaml", "invalid key; expected plain text.")


def test_document_keys_are_text_whatever_they_look_like(tmp_path: Path) -> None:
    assert parse(tmp_path, "1: a\ntrue: b\nno: c\n").values == {"1": "a", "true": "b", "no": "c"}


def test_read_document_of_missing_file_lists_recipes_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").touch()
    with raises_issue("recipe.not-found", location=str(tmp_path / "r.yaml")) as issues:
        read_document(tmp_path / "r.yaml")
    assert issues[0].message == "recipe file not found."
    assert issues[0].hint == f"Choose one of other.yaml in {tmp_path}."


def test_read_document_of_file_that_is_not_utf8_raises(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with raises_issue("recipe.unreadable") as issues:
        read_document(tmp_path / "r.yaml")
    assert issues[0].hint == "Save it as UTF-8 text."


def test_read_document_of_folder_lists_recipes_in_it(tmp_path: Path) -> None:
    with raises_issue("recipe.not-found", location=str(tmp_path)) as issues:
        read_document(tmp_path)
    assert str(issues[0]).endswith("recipe file not found; found a directory. Choose a recipe file.")
    (tmp_path / "r.yaml").touch()
    with raises_issue("recipe.not-found") as issues:
        read_document(tmp_path)
    assert issues[0].hint == "Choose a recipe in it: r.yaml."


def test_dumper_output_is_read_back_with_the_same_types(tmp_path: Path) -> None:
    texts = ["1e4", "12345678e9", "0o17", "010", "no", "null", "", "~", ".inf", "12:30:45", "<<", "é", "5.", "- a"]
    numbers = [1e-5, 1e22, -0.5, 3, True, None]
    read_back = parse(tmp_path, yaml.dump({"texts": texts, "numbers": numbers}, Dumper=Dumper)).values
    assert read_back == {"texts": texts, "numbers": numbers}
    assert [type(value) for value in read_back["numbers"]] == [type(value) for value in numbers]
