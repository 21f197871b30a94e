"""Tests of imports into a real store: counts, repetition, interruption, and rows that cannot be used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from rlhf_cli.errors import DataError
from rlhf_cli.feedback.formats import importing
from rlhf_cli.feedback.formats.dump import WRITABLE, dump, to_rows
from rlhf_cli.feedback.formats.importing import ImportResult, import_rows
from rlhf_cli.feedback.formats.reading import open_source
from rlhf_cli.feedback.store import Store
from rlhf_cli.recipe.schema import Feedback
from tests.support.datasets import find_no_run
from tests.support.feedback_rows import full_snapshot
from tests.support.issues import raises_issue
from tests.support.shared_data import require_shared


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(str(tmp_path / "feedback.db"), "project", Feedback()) as opened:
        yield opened


def load(store: Store, path: Path, *, format_name: str | None = None, skip_invalid: bool = False) -> ImportResult:
    return import_rows(store, open_source(str(path), find_no_run, format_name), skip_invalid=skip_invalid)


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_rows(count: int) -> list[dict[str, Any]]:
    """Return plain rows with one judgment each."""
    judgment = {"annotator": "ada", "ranking": [1, 0]}
    return [{"prompt": f"p{n}", "completions": [f"a{n}", f"b{n}"], "judgments": [judgment]} for n in range(count)]


def test_import_of_rows_twice_adds_nothing(store: Store, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", make_rows(3))
    assert load(store, path) == ImportResult(3, 0, 3, 0, {})
    assert load(store, path) == ImportResult(0, 3, 0, 3, {})
    assert len(store.snapshot().judgments) == 3


def test_import_of_pandalm_stores_the_votes_of_three_annotators(store: Store) -> None:
    path = require_shared("data", "pandalm", "testset-v1.json")
    raw = orjson.loads(path.read_bytes())
    names = ("annotator1", "annotator2", "annotator3")
    texts = {(row["instruction"], row["input"], str(row["response1"]), str(row["response2"])) for row in raw}
    assert len(raw) - len(texts) == 99  # comparisons of the same texts by other models
    assert load(store, path) == ImportResult(len(texts), 99, 2997, 0, {})
    assert load(store, path) == ImportResult(0, 999, 0, 2997, {})
    snapshot = store.snapshot()
    people = {annotator.id: annotator.name for annotator in snapshot.annotators}
    first = {item.id: item.completions[0].id for item in snapshot.items}
    votes: Counter[tuple[str, int]] = Counter()
    for judgment in snapshot.judgments:
        best, *others = judgment.answer.tiers
        vote = (1 if best == (first[judgment.item_id],) else 2) if others else 0
        votes[people[judgment.annotator_id], vote] += 1
    assert votes == Counter((name, row[name]) for row in raw for name in names)
    assert sum(judgment.is_repeat for judgment in snapshot.judgments) == 297
    assert {judgment.order for judgment in snapshot.judgments} == {()}  # the dataset does not tell it


def test_import_of_dump_stores_the_same_rows(store: Store, tmp_path: Path) -> None:
    snapshot = full_snapshot()
    path = tmp_path / "dump.jsonl"
    dump(snapshot, WRITABLE["jsonl"], path)
    assert load(store, path) == ImportResult(4, 0, 8, 0, {})
    stored, given = to_rows(store.snapshot()), to_rows(snapshot)
    assert [row.item for row in stored[:3]] == [row.item for row in given[:3]]
    assert stored[3].item.extra == {"author": ["annotator-001", "somebody"]}  # the new store's pseudonym
    assert [j.answer for row in stored for j in row.judgments] == [j.answer for row in given for j in row.judgments]


def test_import_with_invalid_rows_stores_nothing_and_reports_each(store: Store, tmp_path: Path) -> None:
    good, bad = make_rows(1)[0], {"prompt": "p", "completions": ["a"]}
    path = write_jsonl(tmp_path / "rows.jsonl", [good, bad, {"prompt": "p"}, good])
    with pytest.raises(DataError) as raised:
        load(store, path)
    assert [(issue.code, issue.location) for issue in raised.value.issues] == [
        ("feedback.invalid-item", f"{path}:2"),
        ("data.missing-field", f"{path}:3"),
    ]
    assert store.snapshot().items == []


def test_import_with_invalid_rows_to_skip_counts_them(store: Store, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [*make_rows(2), {"prompt": "p", "completions": ["a"]}])
    assert load(store, path, skip_invalid=True) == ImportResult(2, 0, 2, 0, {"invalid (feedback.invalid-item)": 1})


def test_import_of_three_completions_into_a_project_of_pairs_reports_the_row(tmp_path: Path) -> None:
    rows = [*make_rows(1), {"prompt": "p", "completions": ["a", "b", "c"]}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with Store(str(tmp_path / "feedback.db"), "project", Feedback(task="pair")) as store:
        with raises_issue("feedback.invalid-item", location=f"{path}:2"):
            load(store, path)
        assert load(store, path, skip_invalid=True).items_added == 1


def test_import_counts_judgments_that_cannot_be_used(store: Store, tmp_path: Path) -> None:
    rows = [{"fields": {"prompt": "p", "completion_0": "a", "completion_1": "b"}, "responses": {"x": [{"value": 3}]}}]
    path = write_jsonl(tmp_path / "records.jsonl", rows)
    reason = "a response without a ranking of all completions"
    assert load(store, path) == ImportResult(1, 0, 0, 0, {reason: 1})


def test_import_without_usable_row_raises(store: Store, tmp_path: Path) -> None:
    row = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}
    with raises_issue("data.no-rows"):
        load(store, write_jsonl(tmp_path / "rows.jsonl", [row]))


def test_import_that_stops_after_a_batch_can_be_repeated(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", make_rows(7))
    monkeypatch.setattr(importing, "BATCH_ROWS", 3)
    import_batch = store.import_batch
    batches = iter([import_batch, import_batch])

    def stop_after_two(*rows: Any) -> Any:
        return next(batches)(*rows)

    monkeypatch.setattr(store, "import_batch", stop_after_two)
    with pytest.raises(StopIteration):
        load(store, path)
    assert len(store.snapshot().judgments) == 6
    monkeypatch.setattr(store, "import_batch", import_batch)
    result = load(store, path)
    assert (result.judgments_added, result.judgments_existing) == (1, 6)
    assert len(store.snapshot().items) == 7


def test_import_of_any_text_keeps_it(store: Store, tmp_path: Path) -> None:
    texts = ["\0", "\ud800", "\u202e", "e\u0301", "\u00e9", "x" * 5_000_000]
    load(store, write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "p", "completions": texts}]))
    assert [completion.text for completion in store.snapshot().items[0].completions] == texts


def test_import_of_unknown_format_name_raises_usage(tmp_path: Path) -> None:
    with raises_issue("recipe.usage"):
        open_source(str(write_jsonl(tmp_path / "rows.jsonl", make_rows(1))), find_no_run, "hh_rlhf")


def test_import_of_missing_file_names_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with raises_issue("data.file-not-found", location=str(path)):
        open_source(str(path), find_no_run)


def test_import_of_run_directory_reads_its_rows(store: Store, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "project" / "sample" / "v0001"
    (run / "data").mkdir(parents=True)
    (run / "manifest.json").write_text("{}")
    write_jsonl(run / "data" / "train.jsonl", make_rows(2))
    assert load(store, run).items_added == 2
    rows = open_source("sample@latest", {"sample@latest": run}.__getitem__)
    assert import_rows(store, rows, skip_invalid=False).items_existing == 2
