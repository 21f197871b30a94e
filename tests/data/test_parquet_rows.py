"""Parquet files whose rows are far larger than the file: the memory of a batch is bounded."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from rlhf_cli.data.issues import IssueCollector
from rlhf_cli.data.parquet_rows import MAX_DECODED_BYTES, SLICE_BYTES, read_parquet

VALUE_BYTES = 1_000_000
ROWS = 3000  # 3 GB if all are decoded at once


def repeat_value(count: int) -> pyarrow.DictionaryArray:
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * count, pyarrow.int32()), ["x" * VALUE_BYTES])


def write_repeated(path: Path, encoding: str) -> None:
    """Write `ROWS` equal values of `VALUE_BYTES`, stored once."""
    if encoding == "dictionary":
        table = pyarrow.table({"text": repeat_value(ROWS)})
        pyarrow.parquet.write_table(table, path, compression="zstd", store_schema=False)
        return
    schema = pyarrow.schema({"text": pyarrow.string()})
    options = {"use_dictionary": False, "column_encoding": {"text": encoding}, "compression": "zstd"}
    with pyarrow.parquet.ParquetWriter(path, schema, **options) as writer:
        writer.write_table(pyarrow.table({"text": ["x" * VALUE_BYTES] * (ROWS // 10)}))


@pytest.mark.parametrize("encoding", ["dictionary", "DELTA_BYTE_ARRAY"])
def test_read_parquet_with_repeated_value_bounds_memory(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "rows.parquet"
    write_repeated(path, encoding)
    assert path.stat().st_size < 10_000
    before = pyarrow.total_allocated_bytes()
    row_count = 0
    for rows in read_parquet(path, IssueCollector()):
        row_count += len(rows)
        assert sum(len(row["text"]) for row in rows) <= 2 * SLICE_BYTES  # rows are not cut
        # The decoder grows its buffers to powers of two, and holds the page beside the rows.
        assert pyarrow.total_allocated_bytes() - before <= 3 * MAX_DECODED_BYTES
    assert row_count == (ROWS if encoding == "dictionary" else ROWS // 10)


def test_read_parquet_with_huge_row_adds_issue(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    texts = pyarrow.ListArray.from_arrays([0, ROWS], repeat_value(ROWS))
    pyarrow.parquet.write_table(pyarrow.table({"texts": texts}), path, compression="zstd", store_schema=False)
    issues = IssueCollector()
    before = pyarrow.total_allocated_bytes()
    assert list(read_parquet(path, issues)) == []
    assert pyarrow.total_allocated_bytes() - before < VALUE_BYTES
    assert [(issue.code, issue.location) for issue in issues.shown] == [("data.invalid-parquet", str(path))]


def test_read_parquet_of_many_small_rows_makes_few_batches(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    texts = [f"row {n} " + "x" * 100 for n in range(5000)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=2000)
    batches = list(read_parquet(path, IssueCollector()))
    assert [row["text"] for rows in batches for row in rows] == texts
    assert len(batches) <= 30  # with a dictionary of less than 1 MB, at least 60 rows fit
