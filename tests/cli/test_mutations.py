"""Sound recipes and data, changed at random: `rlhf check` has no bug, and never takes what means another thing.

A change of meaning is one that is surely a mistake: a key misspelt or written twice, a value of another type, a field
that every row needs taken out of one, a row cut short, another encoding. What keeps the meaning must keep the result.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.command import CommandResult, Rlhf

RECIPES = Path(__file__).parents[2] / "recipes"
ROWS = 12  # of each file of the demo
DATA = ("demonstrations", "preferences", "prompts")
EXTRA = ("annotator",)  # columns that may be called anything
REQUIRED = [  # keys of the demo's recipe without which it cannot be followed
    ("name",), ("base",), ("base", "model"), ("data",), ("data", "sft"), ("data", "preferences", "path"),
    ("data", "prompts"), ("ppo", "reward", 0, "run"), ("eval", "gates", 0, "metric"), ("eval", "gates", 1, "min"),
]  # fmt: skip
Check = Callable[..., CommandResult]
Path_ = tuple[str | int, ...]


def examples(count: int) -> settings:
    """The same ones at every run."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=checks)


@pytest.fixture
def check(rlhf: Rlhf, tmp_path: Path) -> Check:
    """Check a copy of `recipes/`, short data in the demo's, with one file's bytes replaced."""
    world = tmp_path / "recipes"
    shutil.copytree(RECIPES, world)
    for name in DATA:
        file = world / "demo" / "data" / f"{name}.jsonl"
        file.write_text("\n".join(file.read_text().splitlines()[:ROWS]) + "\n")
    stories = world / "demo" / "data" / "pretrain.txt"
    stories.write_text(stories.read_text()[:2000])

    def run(file: str, content: str | bytes, recipe: str = "demo/recipe.yaml") -> CommandResult:
        path = world / file
        before = path.read_bytes()
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        try:
            ended = rlhf("check", "-r", world / recipe, "--json")
        finally:
            path.write_bytes(before)
        assert "Traceback" not in ended.err
        assert ended.code in (0, 2, 3), ended
        if ended.code:
            assert all(error["message"] for error in ended.json["issues"])
        return ended

    return run


def mutated(text: str, draw: Callable[..., Any]) -> str:
    """A word with a letter left out, written twice, exchanged with the next, or put in."""
    at = draw(st.integers(0, len(text) - 1))
    way = draw(st.sampled_from(("drop", "double", "swap", "insert")))
    if way == "drop":
        return text[:at] + text[at + 1 :]
    if way == "swap":
        return text[:at] + text[at : at + 2][::-1] + text[at + 2 :]
    return text[:at] + (text[at] if way == "double" else draw(st.sampled_from("aexz_"))) + text[at:]


def paths(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Every key and item, outermost first."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from paths(inner, (*path, key))


def inside(value: Any, path: Path_) -> Any:
    for key in path:
        value = value[key]
    return value


def retyped(value: Any, draw: Callable[..., Any]) -> Any:
    """A value of a type that no field takes in the place of this one's."""
    if isinstance(value, str):
        return draw(st.sampled_from((7.5, True, [7], {"a": 1})))
    if isinstance(value, bool | int | float):
        return draw(st.sampled_from(("fast", [value], {"a": value}, str(value))))
    return draw(st.sampled_from((7, "text", True)))


def misspelt(holder: dict[str, Any], key: str, draw: Callable[..., Any]) -> dict[str, Any]:
    """The mapping with another name for `key`, in its place."""
    name = mutated(key, draw)
    return {name if k == key else k: v for k, v in holder.items()}


def dumped(recipe: Any) -> str:
    return yaml.safe_dump(recipe, sort_keys=False)


# --- recipes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["demo", "hh-rlhf", "qwen2.5-0.5b-qlora", "ultrafeedback", "llama-3.1-8b-qlora"])
def test_worked_recipes_are_sound_before_they_are_changed(check: Check, folder: str) -> None:
    file = f"{folder}/recipe.yaml"
    assert check(file, (RECIPES / file).read_text(), file).code == 0


@examples(90)
@given(st.data())
def test_a_recipe_that_means_another_thing_by_mistake_is_refused(check: Check, data: st.DataObject) -> None:
    draw = data.draw
    folder = draw(st.sampled_from(["demo", "demo", "hh-rlhf", "qwen2.5-0.5b-qlora", "llama-3.1-8b-qlora"]))
    file = f"{folder}/recipe.yaml"
    text = (RECIPES / file).read_text()
    recipe = yaml.safe_load(text)
    way = draw(st.sampled_from(("misspell", "retype", "duplicate", "require", "encode")))
    if way == "misspell":
        path = draw(st.sampled_from([path for path in paths(recipe) if isinstance(path[-1], str)]))
        holder = inside(recipe, path[:-1])
        changed = misspelt(holder, path[-1], draw)
        if [*changed] == [*holder]:
            return  # two equal letters changed places
        holder.clear()
        holder.update(changed)
        content: str | bytes = dumped(recipe)
    elif way == "retype":
        path = draw(st.sampled_from([path for path in paths(recipe) if path != ("extends",)]))
        inside(recipe, path[:-1])[path[-1]] = retyped(inside(recipe, path), draw)
        content = dumped(recipe)
    elif way == "duplicate":
        lines = text.splitlines()
        at = draw(st.sampled_from([i for i, line in enumerate(lines) if re.match(r" *\w+:", line)]))
        content = "\n".join([*lines[: at + 1], lines[at], *lines[at + 1 :]])
    elif way == "require":
        file, recipe = "demo/recipe.yaml", yaml.safe_load((RECIPES / "demo/recipe.yaml").read_text())
        path = draw(st.sampled_from(REQUIRED))
        del inside(recipe, path[:-1])[path[-1]]
        content = dumped(recipe)
    else:
        encoding = draw(st.sampled_from(["utf-16", "utf-16-le", "utf-32", "latin-1", "cp037"]))
        content = f"# café\n{text}".encode(encoding, "replace")
    assert check(file, content, file).code == 2, (way, content)


@examples(40)
@given(st.data())
def test_a_recipe_cut_or_changed_anywhere_is_no_bug(check: Check, data: st.DataObject) -> None:
    draw = data.draw
    text = (RECIPES / "demo/recipe.yaml").read_bytes()
    start = draw(st.integers(0, len(text)))
    cut = draw(st.integers(0, 40)) if draw(st.booleans()) else len(text)
    put = draw(
        st.binary(max_size=6) | st.sampled_from([b"\t", b"- ", b": ", b"{", b"]", b"&a ", b"*a", b"!!x ", b"? "])
    )
    check("demo/recipe.yaml", text[:start] + put + text[start + cut :])


# --- data ----------------------------------------------------------------------------------------------------------


@examples(90)
@given(st.data())
def test_data_that_mean_another_thing_by_mistake_are_refused(check: Check, data: st.DataObject) -> None:
    draw = data.draw
    file = f"demo/data/{draw(st.sampled_from(DATA))}.jsonl"
    lines = (RECIPES / file).read_text().splitlines()[:ROWS]
    at = draw(st.integers(0, ROWS - 1))
    row = json.loads(lines[at])
    fields = [path for path in paths(row) if path[0] not in EXTRA]
    way = draw(st.sampled_from(("drop", "misspell", "retype", "duplicate", "truncate", "encode", "number")))
    if way in ("drop", "misspell"):
        path = draw(st.sampled_from([path for path in fields if isinstance(path[-1], str)]))
        holder = inside(row, path[:-1])
        changed = {k: v for k, v in holder.items() if k != path[-1]}
        changed = changed if way == "drop" else misspelt(holder, path[-1], draw)
        if [*changed] == [*holder]:
            return
        holder.clear()
        holder.update(changed)
        lines[at] = json.dumps(row)
    elif way == "retype":
        path = draw(st.sampled_from(fields))
        inside(row, path[:-1])[path[-1]] = draw(st.sampled_from((7, None, True, [], {}, "", ["a"], {"a": 1}, 1.5)))
        lines[at] = json.dumps(row)
    elif way == "duplicate":
        keys = [match.end() for match in re.finditer(r'[{ ](?="\w+": )', lines[at])]
        start = draw(st.sampled_from(keys))
        name = re.match(r'"\w+": ', lines[at][start:])
        assert name is not None
        lines[at] = lines[at][:start] + name[0] + draw(st.sampled_from(('"x"', "1", "[]"))) + ", " + lines[at][start:]
    elif way == "truncate":
        lines = lines[: at + 1]
        lines[at] = lines[at][: draw(st.integers(1, len(lines[at]) - 1))]
    elif way == "number":
        number = draw(st.sampled_from(["NaN", "-Infinity", "1e400", str(2**63), str(-(10**25)), "01", "0x10", "1."]))
        lines[at] = f'{lines[at][:-1]}, "n": {draw(st.sampled_from(["", "[", "[["]))}{number}'
        lines[at] += "]" * lines[at].rpartition(number)[0].endswith("[") + "}"
    else:
        lines[at] = lines[at].replace("a", "ä", 1)
    encoding = draw(st.sampled_from(["latin-1", "utf-16", "utf-32", "cp1252"])) if way == "encode" else "utf-8"
    end = "" if way == "truncate" else "\n"
    assert check(file, ("\n".join(lines) + end).encode(encoding)).code == 3, (way, lines[at])


@examples(15)
@given(st.data())
def test_what_keeps_the_meaning_keeps_the_result(check: Check, data: st.DataObject) -> None:
    draw = data.draw
    file = f"demo/data/{draw(st.sampled_from(DATA))}.jsonl"
    lines = (RECIPES / file).read_text().splitlines()[:ROWS]
    rows = [json.loads(line) for line in lines]
    before = check(file, "\n".join(lines))
    shuffled = draw(st.permutations(rows))
    blank = draw(st.sampled_from(["", " ", "\t", "\r"]))
    indent = draw(st.sampled_from([(",", ":"), (" ,\t", " : "), (", ", ": ")]))
    ascii_only = draw(st.booleans())
    made = [
        json.dumps({k: row[k] for k in draw(st.permutations(list(row)))}, separators=indent, ensure_ascii=ascii_only)
        for row in shuffled
    ]
    content = (
        draw(st.sampled_from(["", "\ufeff"])) + (blank + "\n").join(made) + draw(st.sampled_from(["", "\n", "\n\n"]))
    )
    after = check(file, content)
    assert (before.code, after.code) == (0, 0)
    assert after.json["data"] == before.json["data"]
    recipe = yaml.safe_load((RECIPES / "demo/recipe.yaml").read_text())
    mark, end = draw(st.sampled_from(["", "\ufeff", "# said\n"])), draw(st.sampled_from(["\n", "\r\n"]))
    text = mark + dumped({key: recipe[key] for key in draw(st.permutations(list(recipe)))}).replace("\n", end)
    same = check("demo/recipe.yaml", text)
    assert {**same.json, "recipe": ""} == {**before.json, "recipe": ""}
