"""Where rows come from, what is wrong with them, and which are held out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.data import sources
from rlhf_cli.data.rows import PreferenceRow, SftRow, Split, TextRow
from rlhf_cli.errors import DataError, ModelError
from rlhf_cli.recipe.schema import Source

Jsonl = Callable[..., Path]


def find(ref: str) -> Path:
    raise ModelError(f"no run {ref}")


def load(source: Source | list[Source], kind: Any = "sft", **options: Any) -> Split[Any]:
    return sources.load(source, kind, **{"seed": 0, "find": find, **options})


def read(path: Path, kind: Any = "sft", **fields: Any) -> Split[Any]:
    return load(Source(path=str(path), **{"eval_fraction": 0, **fields}), kind)


def counted(path: Path, kind: Any, **fields: Any) -> dict[str, int]:
    """What `count` says, which must be what `load` says."""
    source = Source(path=str(path), **fields)
    counts = sources.count([source], kind, find=find)
    assert counts == load([source], kind).counts
    return counts


def faults_of(path: Path, kind: Any = "sft", **fields: Any) -> list[str]:
    with pytest.raises(DataError) as raised:
        read(path, kind, **fields)
    with pytest.raises(DataError) as counting:
        sources.count([Source(path=str(path), **{"eval_fraction": 0, **fields})], kind, find=find)
    assert counting.value.issues == raised.value.issues
    return [str(issue) for issue in raised.value.issues]


def demonstrations(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(start, start + count)]


def prompts_of(rows: list[Any]) -> list[str]:
    return [row.prompt for row in rows]


PAIR = {"prompt": 'äh, 1, "2"\n3?', "completion": "so\nso"}


def test_the_same_rows_from_every_format(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.jsonl").write_text(json.dumps(PAIR) + "\n\n" + json.dumps(PAIR, ensure_ascii=False))
    (tmp_path / "b.json").write_text(json.dumps([PAIR, PAIR], indent=1))
    row = '"äh, 1, ""2""\n3?","so\nso"\n'
    (tmp_path / "c.csv").write_text("prompt,completion\n" + row + row)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([PAIR, PAIR]), tmp_path / "d.parquet")
    for name in ("a.jsonl", "b.json", "c.csv", "d.parquet"):
        assert read(tmp_path / name).train == [SftRow(**PAIR)] * 2, name
    assert len(read(tmp_path).train) == 8


def test_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    for name, text in (
        ("a.jsonl", json.dumps(PAIR)),
        ("b.json", json.dumps([PAIR])),
        ("c.csv", "prompt,completion\na,b"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert len(read(tmp_path / name).train) == 1


def test_paragraphs_of_a_text_file_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    path.write_text("\nOnce\nupon.\n\n \nThe end.")
    assert read(path, "pretrain").train == [TextRow("Once\nupon."), TextRow("The end.")]
    assert "not sft rows" in faults_of(path)[0]


@pytest.mark.parametrize("end", ['{"prompt": "a", "comp', '{"prompt": "a", "completion": tr', '{"prompt": {"a": "b"}'])
def test_truncated_last_line(tmp_path: Path, end: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(PAIR) + "\n" + end)
    assert faults_of(path) == [f"{path}:2  the last line is truncated: the file ends inside a row. Was a copy cut off?"]


def test_twenty_faults_are_shown_and_the_others_counted(jsonl: Jsonl) -> None:
    told = faults_of(jsonl(*[{"prompt": "a", "completion": ""}] * 50))
    assert len(told) == 21
    assert "30 more issues" in told[-1]


def test_other_encodings_are_refused_with_the_line(tmp_path: Path) -> None:
    for name, text in (
        ("a.jsonl", '{"prompt": "a", "completion": "b"}\n{"prompt": "ä", "completion": "b"}\n'),
        ("b.csv", "prompt,completion\nä,b\n"),
    ):
        path = tmp_path / name
        path.write_text(text, encoding="latin-1")
        assert faults_of(path)[0].startswith(f"{path}:2  not UTF-8: byte 0xe4 at column")
        path.write_text(text, encoding="utf-16")
        assert "looks like UTF-16" in faults_of(path)[0]


def test_empty_files(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", ""), ("b.json", "[]"), ("c.csv", "prompt,completion\n"), ("d.jsonl", "\n\n")):
        (tmp_path / name).write_text(content)
        told = faults_of(tmp_path / name)
        (issue,) = told
        assert issue.startswith(f"{tmp_path / name}  the file {'is empty' if not content else 'holds no rows'}.")


@pytest.mark.parametrize(
    ("text", "location", "message"),
    [
        ('{"prompt": "a"}', "", "must hold a list of objects"),
        ('{"prompt": "a"}\n{"prompt": "b"}', "", "name it .jsonl"),
        ('[\n{"prompt": "a", "completion": "b"},\n3]', ":3", "found a number"),
        ('[\n{"prompt": "a", "completion": "b"},\n{"prompt": \n', ":", "ends inside a row"),
        ('[{"prompt": "a", "completion": "b"}\n{}]', ":2", "expected ',' or ']'"),
        ('[{"prompt": "a", "completion": "b"}] x', "", "behind the closing"),
        ('[{"prompt": "a", "completion": "b"}', ":", "expected ',' or ']'"),
    ],
)
def test_broken_json_list(tmp_path: Path, text: str, location: str, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    told = faults_of(path)
    assert told[0].startswith(f"{path}{location}")
    assert message in told[0]


def test_broken_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion\n"a\nb",c\na,b,c\na,\n')
    told = faults_of(path)
    assert told[0].startswith(f"{path}:4  the row has 3 fields, the header 2.")
    assert told[1].startswith(f"{path}:5  `completion` is empty")
    path.write_text("prompt,prompt\na,b\n")
    assert "stands twice in the header" in faults_of(path)[0]


def test_long_cell_of_a_csv_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\na," + "b" * 200_000 + "\n")
    assert read(path).train == [SftRow("a", "b" * 200_000)]


def test_broken_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    assert faults_of(path)[0].startswith(f"{path}  not a readable parquet file")


def test_absent_file_names_the_closest_one(jsonl: Jsonl, tmp_path: Path) -> None:
    jsonl(PAIR, name="preferences.jsonl")
    path = tmp_path / "preference.jsonl"
    assert faults_of(path) == [f"{path}  there is no such file. Did you mean preferences.jsonl?"]
    (tmp_path / "rows.xlsx").write_text("x")
    assert "must end in .jsonl" in faults_of(tmp_path / "rows.xlsx")[0]


def test_faults_of_all_sources_are_told_together(jsonl: Jsonl, tmp_path: Path) -> None:
    broken = jsonl("{", PAIR, name="a.jsonl")
    with pytest.raises(DataError) as raised:
        load([Source(path=str(tmp_path / "b.jsonl")), Source(path=str(broken))])
    assert [issue.location for issue in raised.value.issues] == [str(tmp_path / "b.jsonl"), f"{broken}:1"]


def test_folder_is_read_by_split(jsonl: Jsonl, tmp_path: Path) -> None:
    jsonl(*demonstrations(4), name="train-00000-of-00002.jsonl")
    jsonl(*demonstrations(4, 4), name="train-00001-of-00002.jsonl")
    jsonl(*demonstrations(2, 8), name="test.jsonl")
    split = read(tmp_path, eval_split="test")
    assert prompts_of(split.train) == [f"p{n}" for n in range(8)]
    assert prompts_of(split.held_out) == ["p8", "p9"]
    assert prompts_of(read(tmp_path, split="train[:25%]").train) == ["p0", "p1"]
    assert prompts_of(read(tmp_path, split="train[2:5]").train) == ["p2", "p3", "p4"]
    assert faults_of(tmp_path, eval_split="validation")[0].startswith(
        f"{tmp_path}  the folder has no split 'validation'; found test, train"
    )


def test_single_file_has_no_splits_but_slices(jsonl: Jsonl) -> None:
    path = jsonl(*demonstrations(5))
    assert prompts_of(read(path, split="train[:2]").train) == ["p0", "p1"]
    assert "has no split 'test'" in faults_of(path, eval_split="test")[0]


def test_prompt_of_the_held_out_split_is_dropped_from_training(jsonl: Jsonl, tmp_path: Path) -> None:
    jsonl(*demonstrations(3), name="train.jsonl")
    jsonl(*demonstrations(1), name="test.jsonl")
    split = read(tmp_path, eval_split="test")
    assert prompts_of(split.train) == ["p1", "p2"]
    assert split.counts["dropped: prompt is held out elsewhere"] == 1


def test_rows_of_a_run_without_its_records(jsonl: Jsonl, tmp_path: Path) -> None:
    jsonl(*demonstrations(3), name="rows.jsonl")
    jsonl({"step": 1}, name="metrics.jsonl")
    jsonl({"step": 1}, name="samples.jsonl")
    (tmp_path / "manifest.json").write_text("{}")
    refs = []
    source = Source(run="feedback@latest", eval_fraction=0)
    split = load(source, find=lambda ref: refs.append(ref) or tmp_path)
    assert (prompts_of(split.train), refs) == (["p0", "p1", "p2"], ["feedback@latest"])


def test_hub_data_set(jsonl: Jsonl, tmp_path: Path) -> None:
    jsonl(*demonstrations(3), {"prompt": "", "completion": "a"}, name="train.jsonl")
    jsonl(*demonstrations(2, 5), name="test.jsonl")
    split = load(Source(hub=str(tmp_path), eval_split="test"))  # the library takes a folder for a hub id
    assert prompts_of(split.train) == ["p0", "p1", "p2"]
    assert prompts_of(split.held_out) == ["p5", "p6"]
    assert split.counts["dropped: empty prompt"] == 1
    with pytest.raises(DataError, match="cannot load the hub data set") as raised:
        load(Source(hub=str(tmp_path), split="absent"))
    assert raised.value.issues[0].location == str(tmp_path)


def test_hub_data_set_is_loaded_at_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(name: str, config: str, *, split: str, revision: str) -> list[dict[str, str]]:
        asked.append((name, config, split, revision))
        return demonstrations(2, 2 * len(asked))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    load(Source(hub="org/set", config="en", revision="4f1c", split="train[:2]", eval_split="test"))
    assert asked == [("org/set", "en", "train[:2]", "4f1c"), ("org/set", "en", "test", "4f1c")]


def test_rows_of_one_prompt_are_held_out_together(jsonl: Jsonl) -> None:
    pairs = [
        {"prompt": f"p{n % 40}" + (" " if n > 40 else ""), "chosen": f"a{n}", "rejected": f"b{n}"} for n in range(120)
    ]
    split = read(jsonl(*pairs), "preferences", eval_fraction=0.3)
    held_out = {prompt.strip() for prompt in prompts_of(split.held_out)}
    assert held_out
    assert len(split.held_out) == 3 * len(held_out)
    assert not held_out & {prompt.strip() for prompt in prompts_of(split.train)}
    assert split.counts == {"read": 120, "train": len(split.train), "held out": len(split.held_out)}
    assert len(split.train) + len(split.held_out) == 120


@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_share_of_the_prompts_that_is_held_out(jsonl: Jsonl, fraction: float) -> None:
    held_out = len(read(jsonl(*demonstrations(4000)), eval_fraction=fraction).held_out)
    deviation = (4000 * fraction * (1 - fraction)) ** 0.5  # of the number of heads in 4,000 throws
    assert abs(held_out - 4000 * fraction) < 4 * deviation


def test_what_is_held_out_depends_on_neither_seed_nor_order(jsonl: Jsonl) -> None:
    rows = demonstrations(60)
    source = Source(path=str(jsonl(*rows)), eval_fraction=0.2)
    first, other = load(source), load(source, seed=1)
    jsonl(*reversed(rows))
    assert set(prompts_of(load(source).held_out)) == set(prompts_of(first.held_out))
    assert prompts_of(other.held_out) == prompts_of(first.held_out)


def test_prompts_keep_their_side_when_the_data_grows(jsonl: Jsonl) -> None:
    few = read(jsonl(*demonstrations(60)), eval_fraction=0.2)
    many = read(jsonl(*demonstrations(300)), eval_fraction=0.2)
    assert set(prompts_of(few.held_out)) < set(prompts_of(many.held_out))
    assert set(prompts_of(few.train)) < set(prompts_of(many.train))


@pytest.mark.parametrize(
    ("count", "fraction", "held_out"), [(2, 1e-9, 1), (1, 1e-9, 0), (1, 1 - 1e-9, 0), (10, 0, 0), (10, 1 - 1e-9, 9)]
)
def test_both_sides_have_a_prompt_where_there_are_two(jsonl: Jsonl, count: int, fraction: float, held_out: int) -> None:
    assert len(read(jsonl(*demonstrations(count)), eval_fraction=fraction).held_out) == held_out


def test_text_is_held_out_by_row(jsonl: Jsonl) -> None:
    path = jsonl(*[{"text": f"story {n}"} for n in range(20)])
    held_out = [row.text for row in read(path, "pretrain", eval_fraction=0.3).held_out]
    assert 0 < len(held_out) < 20
    assert [row.completion for row in read(path, eval_fraction=0.3).held_out] == held_out


def test_prompts_are_asked_once(jsonl: Jsonl) -> None:
    split = read(jsonl({"prompt": "a"}, {"prompt": "b"}, {"prompt": "a", "n": 1}), "prompts")
    assert prompts_of(split.train) == ["a", "b"]
    assert split.counts == {"read": 3, "dropped: prompt seen before": 1, "train": 2, "held out": 0}


def test_mixture_without_weights_has_every_row_in_shuffled_order(jsonl: Jsonl) -> None:
    one, two = jsonl(*demonstrations(100), name="one.jsonl"), jsonl(*demonstrations(3, 100), name="two.jsonl")
    mixture = [Source(path=str(path), eval_fraction=0) for path in (one, two)]
    split = load(mixture)
    assert sorted(prompts_of(split.train)) == sorted(f"p{n}" for n in range(103))
    assert split.counts == {"read": 103, f"used of {one}": 100, f"used of {two}": 3, "train": 103, "held out": 0}
    assert load(mixture).train == split.train
    assert load(mixture, seed=1).train != split.train


def test_mixture_follows_the_weights_and_repeats_nothing(jsonl: Jsonl) -> None:
    one, two = jsonl(*demonstrations(100), name="one.jsonl"), jsonl(*demonstrations(3, 100), name="two.jsonl")
    mixture = [
        Source(path=str(one), weight=7, eval_fraction=0),
        Source(path=str(two), weight=0.7, eval_fraction=0),
    ]
    split = load(mixture)
    prompts = prompts_of(split.train)
    assert len(set(prompts)) == len(prompts) == 33
    assert (split.counts[f"used of {one}"], split.counts[f"used of {two}"]) == (30, 3)
    dropped = {name: count for name, count in split.counts.items() if name.startswith("dropped")}
    assert dropped == {f"dropped: of {one}, to keep the weights": 70}
    assert load(mixture).train == split.train
    assert load(mixture, seed=1).train != split.train


def test_source_without_a_weight_has_weight_one_beside_one_that_has(jsonl: Jsonl) -> None:
    one, two = jsonl(*demonstrations(20), name="one.jsonl"), jsonl(*demonstrations(20, 20), name="two.jsonl")
    split = load([Source(path=str(one), eval_fraction=0), Source(path=str(two), weight=2, eval_fraction=0)])
    assert (split.counts[f"used of {one}"], split.counts[f"used of {two}"]) == (10, 20)


def test_sources_of_a_mixture_share_no_prompt_across_the_sides(jsonl: Jsonl) -> None:
    one, two = jsonl(*demonstrations(40), name="one.jsonl"), jsonl(*demonstrations(60), name="two.jsonl")
    split = load([Source(path=str(one), eval_fraction=0.1), Source(path=str(two), eval_fraction=0.4)])
    assert split.counts["dropped: prompt is held out elsewhere"]
    assert not set(prompts_of(split.held_out)) & set(prompts_of(split.train))


def test_sources_of_a_mixture_have_one_form(jsonl: Jsonl) -> None:
    one = jsonl(*demonstrations(3), name="one.jsonl")
    two = jsonl(
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, name="two.jsonl"
    )
    with pytest.raises(DataError, match=r"two.jsonl  the rows are a conversation, and those of .*one.jsonl are text"):
        load([Source(path=str(one)), Source(path=str(two))])


def test_limit_reads_the_first_rows_alone(jsonl: Jsonl) -> None:
    path = jsonl(*demonstrations(20), "{")
    split = load(Source(path=str(path), eval_fraction=0.1), limit=10)
    assert sorted(prompts_of(split.train + split.held_out)) == [f"p{n}" for n in range(10)]
    assert split.held_out


def test_limit_holds_for_a_mixture_too(jsonl: Jsonl) -> None:
    paths = [jsonl(*demonstrations(20, 20 * n), name=f"{n}.jsonl") for n in range(3)]
    assert len(load([Source(path=str(path), eval_fraction=0) for path in paths], limit=10).train) == 10


def test_nothing_left_to_train_on(jsonl: Jsonl) -> None:
    told = faults_of(jsonl({"prompt": "a", "chosen": "b", "rejected": "b"}), "preferences")
    assert "no rows are left to train on" in told[0]
    assert "dropped: chosen equals rejected 1" in told[0]


def test_counting_is_loading_without_the_rows(jsonl: Jsonl, tmp_path: Path) -> None:
    pairs = [{"prompt": f"p{n % 700}", "chosen": f"a{n}", "rejected": f"b{n}"} for n in range(5000)]
    pairs[1234]["rejected"] = pairs[1234]["chosen"]
    pairs[4321]["prompt"] = "two  words \n"
    counts = counted(jsonl(*pairs), "preferences")
    assert (counts["read"], counts["dropped: chosen equals rejected"]) == (5000, 1)
    assert counted(jsonl(*pairs), "prompts")["dropped: prompt seen before"] == 4299
    chats = [[{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}] for n in range(500)]
    assert counted(jsonl(*[{"messages": chat} for chat in chats]), "sft")["read"] == 500
    assert counted(jsonl(*[{"text": f"t{n}"} for n in range(500)]), "sft")["read"] == 500
    assert counted(jsonl(*[{"text": f"t{n}"} for n in range(500)]), "pretrain", split="train[:50%]")["read"] == 250
    jsonl(*demonstrations(500), name="train.jsonl")
    jsonl(*demonstrations(50, 480), name="test.jsonl")
    assert counted(tmp_path, "sft", eval_split="test")["dropped: prompt is held out elsewhere"] == 20


def test_a_column_that_comes_late_counts_for_all_rows(jsonl: Jsonl) -> None:
    early = [{"text": f"t{n}", "n": "x" * 1000} for n in range(5000)]  # more than tell the columns
    path = jsonl(*early, {"prompt": "a", "completion": "b"})
    assert faults_of(path)[0].startswith(f"{path}:1  the field `prompt` is missing.")
    assert counted(jsonl(*early, {"text": "t", "late": 3}), "pretrain")["read"] == 5001
    assert (
        "must not be called prompts"
        in faults_of(jsonl(*demonstrations(5000), {"prompt": "b", "prompts": 1}), "prompts")[0]
    )


def test_real_preferences(tmp_path: Path) -> None:
    file = Path(__file__).parents[3] / "shared/data/pandalm/testset-v1.json"
    if not file.is_file():
        pytest.skip(f"{file} is absent")
    columns = {"prompt": "instruction", "chosen": "response1", "rejected": "response2"}
    told = faults_of(file, "preferences", columns=columns)
    assert told[0].startswith(f"{file}:218  `chosen` is empty.")
    rows = json.loads(file.read_text(encoding="utf-8"))
    rows = [row for row in rows if all(isinstance(row[c], str) and row[c].strip() for c in columns.values())]
    (tmp_path / "clean.json").write_text(json.dumps(rows))
    split = read(tmp_path / "clean.json", "preferences", columns=columns, eval_fraction=0.1)
    equal = sum(row["response1"] == row["response2"] for row in rows)
    assert len(split.train) + len(split.held_out) == len(rows) - equal
    assert split.counts.get("dropped: chosen equals rejected", 0) == equal
    assert isinstance(split.train[0], PreferenceRow)
    assert split.train[0].extra.keys() == set(rows[0]) - set(columns.values())
    assert not set(prompts_of(split.train)) & set(prompts_of(split.held_out))


def test_reading_data_imports_neither_torch_nor_datasets(jsonl: Jsonl) -> None:
    path = jsonl(*demonstrations(3))
    code = (
        "import sys; from pathlib import Path; from rlhf_cli.data import sources, template;"
        "from rlhf_cli.recipe.schema import Source;"
        f"sources.load(Source(path={str(path)!r}), 'sft', seed=0, find=Path);"
        "print([name for name in ('torch', 'transformers', 'datasets', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
