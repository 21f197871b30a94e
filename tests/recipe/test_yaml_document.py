"""YAML with positions: the scalars of YAML 1.2, and everything that a file may hold but a recipe may not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_cli.errors import RecipeError
from rlhf_cli.recipe.yaml_document import Dumper, read, scalar


def document_of(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "r.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return read(path)


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
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_nan_is_a_float() -> None:
    assert math.isnan(scalar(".nan"))


def test_every_key_has_its_place(tmp_path: Path) -> None:
    document = document_of(tmp_path, "a:\n  b: [1, {c: 2}]\n")
    lines = {key: place.location.rsplit("r.yaml", 1)[1] for key, place in document.places.items()}
    assert lines == {("a",): ":1:1", ("a", "b"): ":2:3", ("a", "b", 0): ":2:7", ("a", "b", 1): ":2:10", **{
        ("a", "b", 1, "c"): ":2:11"
    }}  # fmt: skip


def test_a_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    assert document_of(tmp_path, "\ufeffa: 1\n").values == {"a": 1}


def test_duplicate_keys_name_both_places_at_every_depth(tmp_path: Path) -> None:
    issues = document_of(tmp_path, "a: 1\nb: {c: 1, c: 2}\na: 2\n").issues
    assert [issue.location.rsplit("r.yaml", 1)[1] for issue in issues] == [":2:11", ":3:1"]
    assert "b.c: duplicate key" in issues[0].message
    assert "r.yaml:2:5" in issues[0].message


@pytest.mark.parametrize(
    ("text", "location", "says"),
    [
        ("", "", "empty"),
        ("# nothing\n", "", "empty"),
        ("- a\n", "", "not a mapping"),
        ("hello\n", "", "not a mapping"),
        ("a:\n\tb: 1\n", ":2:1", "Indent with spaces"),
        ("a: 1\n  b: 2\n", ":2:4", "not YAML"),
        ("a: 'x\n", ":2:1", "not YAML"),
        ("a: *b\n", ":1:4", "undefined alias"),
        ("a: 1\n---\na: 2\n", ":2:1", "another document"),
        ("é: 1\nb: x\x07\n", ":2:5", "U+0007"),
        ('a: "\\ud800"\n', ":1:7", "not YAML"),
        ("a: " + "[" * 100_000 + "]" * 100_000, "", "nests more than"),  # PyYAML's C loader would take Python down
        ("a: &a {b: *a}\n", ":1:4", "nests more than"),
    ],
)
def test_what_is_no_recipe_at_all_is_told_with_its_place(tmp_path: Path, text: str, location: str, says: str) -> None:
    with pytest.raises(RecipeError) as raised:
        document_of(tmp_path, text)
    (issue,) = raised.value.issues
    assert issue.location.endswith(f"r.yaml{location}")
    assert says in str(issue)


def test_an_alias_bomb_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    levels = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 10)]  # 10^9 values
    with pytest.raises(RecipeError, match="unfolds to more than 100,000 values"):
        document_of(tmp_path, "\n".join(["l0: &l0 x", *levels]))


def test_an_alias_is_a_copy(tmp_path: Path) -> None:
    assert document_of(tmp_path, "a: &a {b: 1}\nc: *a\n").values == {"a": {"b": 1}, "c": {"b": 1}}


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
def test_tags_are_refused(tmp_path: Path, text: str) -> None:
    (issue,) = document_of(tmp_path, text).issues
    assert issue.location.endswith("r.yaml:1:4")
    assert "is not allowed" in issue.message


@pytest.mark.parametrize("text", ["a: !!int abc", "a: !!float abc", "a: !!int 0o9", "a: 1" + "0" * 5000])
def test_what_cannot_be_read_as_a_number_is_a_fault(tmp_path: Path, text: str) -> None:
    (issue,) = document_of(tmp_path, text).issues
    assert "cannot be read as a number" in issue.message
    assert len(issue.message) < 120


@pytest.mark.parametrize("text", ["? [a, b]\n: 1\n", "? {a: 1}\n: 1\n"])
def test_a_key_is_plain_text(tmp_path: Path, text: str) -> None:
    (issue,) = document_of(tmp_path, text).issues
    assert "a key must be plain text" in issue.message


def test_keys_are_text_whatever_they_look_like(tmp_path: Path) -> None:
    assert document_of(tmp_path, "1: a\ntrue: b\nno: c\n").values == {"1": "a", "true": "b", "no": "c"}


def test_a_file_that_is_absent_names_the_recipes_beside_it(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").touch()
    with pytest.raises(RecipeError, match=r"no such recipe file.*other\.yaml"):
        read(tmp_path / "r.yaml")


def test_a_file_that_is_not_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="UTF-8"):
        read(tmp_path / "r.yaml")


def test_a_folder_is_told_with_the_recipes_in_it(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"this is a folder\. Name a recipe file"):
        read(tmp_path)
    (tmp_path / "r.yaml").touch()
    with pytest.raises(RecipeError, match=r"this is a folder\. Name a file in it: r\.yaml\."):
        read(tmp_path)


def test_what_is_dumped_is_read_back_with_its_type(tmp_path: Path) -> None:
    texts = ["1e4", "12345678e9", "0o17", "010", "no", "null", "", "~", ".inf", "12:30:45", "<<", "é", "5.", "- a"]
    values = {"texts": texts, "numbers": [1e-5, 1e22, -0.5, 3, True, None]}
    read_back = document_of(tmp_path, yaml.dump(values, Dumper=Dumper)).values
    assert read_back == values
    assert [type(v) for v in read_back["numbers"]] == [type(v) for v in values["numbers"]]
