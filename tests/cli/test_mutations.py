"""Valid recipes and data with random changes: `rlhf check` has no internal error and accepts no mistake.

A mistake is a change that cannot be meant: a misspelled or duplicate key, a value of another type, a required field
that is removed from a row, a truncated row, another encoding. Changes without a meaning must not change the result.
"""

from __future__ import annotations

import atexit
import functools
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.command import CommandResult, Rlhf

ROWS = 12  # of each of the demo's files
DATA = ("demonstrations", "preferences", "prompts")
EXTRA_COLUMNS = ("annotator",)  # columns with an arbitrary name
REQUIRED = [  # keys that the demo's recipe cannot do without
    ("name",), ("base",), ("base", "model"), ("data",), ("data", "sft"), ("data", "preferences", "path"),
    ("data", "prompts"), ("ppo", "reward", 0, "run"), ("eval", "gates", 0, "metric"), ("eval", "gates", 1, "min"),
]  # fmt: skip
Check = Callable[..., CommandResult]
Draw = Callable[..., Any]
Key = tuple[str | int, ...]


@functools.cache
def recipes() -> Path:
    """Return a copy of `recipes/` in which the demo's preferences are a file of few rows, and nobody is asked."""
    folder = Path(tempfile.mkdtemp()) / "recipes"
    atexit.register(shutil.rmtree, folder.parent)
    shutil.copytree(Path(__file__).parents[2] / "recipes", folder)
    recipe, data = folder / "demo" / "recipe.yaml", folder / "demo" / "data"
    text = recipe.read_text().replace("{run: feedback@latest}", "{path: data/preferences.jsonl, eval_fraction: 0.12}")
    before, _, after = text.partition("sample:")
    recipe.write_text(f"{before}reward:{after.partition('reward:')[2]}")
    rows = [json.loads(line) for line in (data / "gold.jsonl").read_text().splitlines()[:ROWS]]
    (data / "preferences.jsonl").write_text("".join(json.dumps(pair(row)) + "\n" for row in rows))
    return folder


def pair(row: dict[str, Any]) -> dict[str, Any]:
    """Return the best and the worst completion of an item with a known answer."""
    best, worst = (row["completions"][tier[0]]["text"] for tier in (row["answer"][0], row["answer"][-1]))
    return {"prompt": row["prompt"], "chosen": best, "rejected": worst, "annotator": "ada"}


def examples(count: int) -> settings:
    """Return settings for `count` examples, which are the same in every run."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=checks)


@pytest.fixture
def check(rlhf: Rlhf, tmp_path: Path) -> Check:
    """Return a function that checks a copy of `recipes/` in which one file is replaced. The demo has few rows."""
    copy = tmp_path / "recipes"
    shutil.copytree(recipes(), copy)
    for name in DATA:
        file = copy / "demo" / "data" / f"{name}.jsonl"
        file.write_text("\n".join(file.read_text().splitlines()[:ROWS]) + "\n")
    text = copy / "demo" / "data" / "pretrain.txt"
    text.write_text(text.read_text()[:2000])

    def run(file: str, content: str | bytes, recipe: str = "demo/recipe.yaml") -> CommandResult:
        path = copy / file
        before = path.read_bytes()
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        try:
            ended = rlhf("check", "-r", copy / recipe, "--json")
        finally:
            path.write_bytes(before)
        assert "Traceback" not in ended.err
        assert ended.code in (0, 2, 3), ended
        if ended.code:
            assert all(issue["message"] for issue in ended.json["issues"])
        return ended

    return run


def misspell_word(text: str, draw: Draw) -> str:
    """Return a word in which a letter is dropped, doubled, swapped with the next one, or inserted."""
    at = draw(st.integers(0, len(text) - 1))
    change = draw(st.sampled_from(("drop", "double", "swap", "insert")))
    if change == "drop":
        return text[:at] + text[at + 1 :]
    if change == "swap":
        return text[:at] + text[at : at + 2][::-1] + text[at + 2 :]
    return text[:at] + (text[at] if change == "double" else draw(st.sampled_from("aexz_"))) + text[at:]


def iter_keys(value: Any, key: Key = ()) -> Iterator[Key]:
    """Yield the key of every value and item, outermost first."""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for part, inner in items:
        yield (*key, part)
        yield from iter_keys(inner, (*key, part))


def value_at(value: Any, key: Key) -> Any:
    """Return the value at a key."""
    for part in key:
        value = value[part]
    return value


def change_type(value: Any, draw: Draw) -> Any:
    """Return a value of a type that no field accepts in place of this one."""
    if isinstance(value, str):
        return draw(st.sampled_from((7.5, True, [7], {"a": 1})))
    if isinstance(value, bool | int | float):
        return draw(st.sampled_from(("fast", [value], {"a": value}, str(value))))
    return draw(st.sampled_from((7, "text", True)))


def misspell_key(mapping: dict[str, Any], key: str, draw: Draw) -> dict[str, Any]:
    """Return the mapping with a misspelled `key` at the same position."""
    name = misspell_word(key, draw)
    return {name if k == key else k: v for k, v in mapping.items()}


def dump(recipe: Any) -> str:
    """Return a recipe as YAML."""
    return yaml.safe_dump(recipe, sort_keys=False)


# --- recipes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["demo", "hh-rlhf", "qwen2.5-0.5b-qlora", "ultrafeedback", "llama-3.1-8b-qlora"])
def test_check_of_unchanged_recipe_succeeds(check: Check, folder: str) -> None:
    file = f"{folder}/recipe.yaml"
    assert check(file, (recipes() / file).read_text(), file).code == 0


def mutate_recipe(file: str, mistake: str, draw: Draw) -> str | bytes | None:
    """Return the content of a recipe with a mistake, or None if nothing changed."""
    text = (recipes() / file).read_text()
    recipe = yaml.safe_load(text)
    keys = list(iter_keys(recipe))
    if mistake == "misspell":
        key = draw(st.sampled_from([key for key in keys if isinstance(key[-1], str)]))
        mapping = value_at(recipe, key[:-1])
        changed = misspell_key(mapping, str(key[-1]), draw)
        if [*changed] == [*mapping]:
            return None  # two equal letters were swapped
        mapping.clear()
        mapping.update(changed)
        return dump(recipe)
    if mistake == "retype":
        key = draw(st.sampled_from([key for key in keys if key != ("extends",)]))
        value_at(recipe, key[:-1])[key[-1]] = change_type(value_at(recipe, key), draw)
        return dump(recipe)
    if mistake == "duplicate":
        lines = text.splitlines()
        at = draw(st.sampled_from([i for i, line in enumerate(lines) if re.match(r" *\w+:", line)]))
        return "\n".join([*lines[: at + 1], lines[at], *lines[at + 1 :]])
    if mistake == "omit":
        key = draw(st.sampled_from(REQUIRED))
        del value_at(recipe, key[:-1])[key[-1]]
        return dump(recipe)
    encoding = draw(st.sampled_from(["utf-16", "utf-16-le", "utf-32", "latin-1", "cp037"]))
    return f"# café\n{text}".encode(encoding, "replace")


@pytest.mark.slow
@examples(90)
@given(st.data())
def test_check_of_recipe_with_a_mistake_exits_2(check: Check, data: st.DataObject) -> None:
    mistake = data.draw(st.sampled_from(("misspell", "retype", "duplicate", "omit", "encode")))
    folders = ["demo", "demo", "hh-rlhf", "qwen2.5-0.5b-qlora", "llama-3.1-8b-qlora"]
    file = f"{'demo' if mistake == 'omit' else data.draw(st.sampled_from(folders))}/recipe.yaml"
    content = mutate_recipe(file, mistake, data.draw)
    if content is not None:
        assert check(file, content, file).code == 2, (mistake, content)


@pytest.mark.slow
@examples(40)
@given(st.data())
def test_check_of_recipe_with_arbitrary_bytes_has_no_internal_error(check: Check, data: st.DataObject) -> None:
    draw = data.draw
    text = (recipes() / "demo/recipe.yaml").read_bytes()
    start = draw(st.integers(0, len(text)))
    removed = draw(st.integers(0, 40)) if draw(st.booleans()) else len(text)
    yaml_syntax = [b"\t", b"- ", b": ", b"{", b"]", b"&a ", b"*a", b"!!x ", b"? "]
    inserted = draw(st.binary(max_size=6) | st.sampled_from(yaml_syntax))
    check("demo/recipe.yaml", text[:start] + inserted + text[start + removed :])


# --- data ----------------------------------------------------------------------------------------------------------


def mutate_row(line: str, mistake: str, draw: Draw) -> str | None:
    """Return a row with a mistake, or None if nothing changed."""
    row = json.loads(line)
    fields = [key for key in iter_keys(row) if key[0] not in EXTRA_COLUMNS]
    if mistake in ("drop", "misspell"):
        key = draw(st.sampled_from([key for key in fields if isinstance(key[-1], str)]))
        mapping = value_at(row, key[:-1])
        changed = {name: value for name, value in mapping.items() if name != key[-1]}
        if mistake == "misspell":
            changed = misspell_key(mapping, str(key[-1]), draw)
        if [*changed] == [*mapping]:
            return None  # two equal letters were swapped
        mapping.clear()
        mapping.update(changed)
        return json.dumps(row)
    if mistake == "retype":
        key = draw(st.sampled_from(fields))
        values: tuple[Any, ...] = (7, None, True, [], {}, "", ["a"], {"a": 1}, 1.5)
        value_at(row, key[:-1])[key[-1]] = draw(st.sampled_from(values))
        return json.dumps(row)
    if mistake == "duplicate":
        starts = [match.end() for match in re.finditer(r'[{ ](?="\w+": )', line)]
        start = draw(st.sampled_from(starts))
        name = re.match(r'"\w+": ', line[start:])
        assert name is not None
        return line[:start] + name[0] + draw(st.sampled_from(('"x"', "1", "[]"))) + ", " + line[start:]
    if mistake == "truncate":
        return line[: draw(st.integers(1, len(line) - 1))]
    if mistake == "number":
        number = draw(st.sampled_from(["NaN", "-Infinity", "1e400", str(2**63), str(-(10**25)), "01", "0x10", "1."]))
        number = draw(st.sampled_from([number, f"[{number}]", f"[[{number}]"]))  # the last one lacks a bracket
        return f'{line[:-1]}, "n": {number}}}'
    return line.replace('"content": "', '"content": "ä ', 1)  # not ASCII, so that its encoding matters


@pytest.mark.slow
@examples(90)
@given(st.data())
def test_check_of_data_with_a_mistake_exits_3(check: Check, data: st.DataObject) -> None:
    draw = data.draw
    file = f"demo/data/{draw(st.sampled_from(DATA))}.jsonl"
    lines = (recipes() / file).read_text().splitlines()[:ROWS]
    at = draw(st.integers(0, ROWS - 1))
    mistake = draw(st.sampled_from(("drop", "misspell", "retype", "duplicate", "truncate", "encode", "number")))
    line = mutate_row(lines[at], mistake, draw)
    if line is None:
        return
    lines[at] = line
    text = "\n".join(lines) + "\n"
    if mistake == "truncate":
        text = "\n".join(lines[: at + 1])
    encoding = "utf-8"
    if mistake == "encode":
        encoding = draw(st.sampled_from(["latin-1", "utf-16", "utf-32", "cp1252"]))
    assert check(file, text.encode(encoding)).code == 3, (mistake, line)


@pytest.mark.slow
@examples(15)
@given(st.data())
def test_check_of_data_and_recipe_in_another_form_has_the_same_result(check: Check, data: st.DataObject) -> None:
    draw = data.draw
    file = f"demo/data/{draw(st.sampled_from(DATA))}.jsonl"
    lines = (recipes() / file).read_text().splitlines()[:ROWS]
    before = check(file, "\n".join(lines))
    assert before.code == 0
    after = check(file, reformat_rows(lines, draw))
    assert (after.code, after.json["data"]) == (0, before.json["data"])
    recipe = yaml.safe_load((recipes() / "demo/recipe.yaml").read_text())
    shuffled = dump({key: recipe[key] for key in draw(st.permutations(list(recipe)))})
    start = draw(st.sampled_from(["", "\ufeff", "# comment\n"]))
    same = check("demo/recipe.yaml", start + shuffled.replace("\n", draw(st.sampled_from(["\n", "\r\n"]))))
    assert {**same.json, "recipe": ""} == {**before.json, "recipe": ""}


def reformat_rows(lines: list[str], draw: Draw) -> str:
    """Return the same rows in another order and with other whitespace, escapes and order of keys."""
    rows = draw(st.permutations([json.loads(line) for line in lines]))
    separators = draw(st.sampled_from([(",", ":"), (" ,\t", " : "), (", ", ": ")]))
    ascii_only = draw(st.booleans())
    texts = [
        json.dumps(
            {k: row[k] for k in draw(st.permutations(list(row)))}, separators=separators, ensure_ascii=ascii_only
        )
        for row in rows
    ]
    start = draw(st.sampled_from(["", "\ufeff"]))
    blank = draw(st.sampled_from(["", " ", "\t", "\r"]))
    end = draw(st.sampled_from(["", "\n", "\n\n"]))
    return start + f"{blank}\n".join(texts) + end
