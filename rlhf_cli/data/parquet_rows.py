"""Read Parquet rows in batches whose decoded size is bounded, however well the file is compressed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rlhf_cli.data.batches import Fields
from rlhf_cli.data.issues import IssueCollector
from rlhf_cli.formatting import format_bytes, format_exception

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

MAX_BATCH_ROWS = 1000
MAX_DECODED_BYTES = 2**26  # of one batch in Arrow's memory: dictionaries can make it a million times the file's size
MAX_ROW_BYTES = 2**29  # of one row
SLICE_BYTES = 2**20  # of the rows that are Python objects at a time
STREAM_BYTES = 2**20  # that are read of a column at a time, not all of a row group
_PAGE_HEADER_BYTES = 32  # hold the type and the size of a page


def read_parquet(path: Path, issues: IssueCollector, *, row_by_row: bool = False) -> Iterator[list[Fields]]:
    """Yield the rows of a file, some at a time.

    Args:
        path: The file.
        issues: Where an issue is added if the file cannot be read.
        row_by_row: Yield one row at a time.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as raw, pyarrow.parquet.ParquetFile(path, buffer_size=STREAM_BYTES) as file:
            if not _check_columns(file.schema_arrow, path, issues):
                return
            for index in range(file.num_row_groups):
                row_bytes = _max_row_bytes(file.metadata.row_group(index), raw)
                if row_bytes > MAX_ROW_BYTES:
                    message = f"row group {index + 1}: rows may need {format_bytes(row_bytes)} of memory each."
                    issues.add("data.invalid-parquet", message, str(path), "Check how the file was made.")
                    return
                batch_rows = max(1, min(MAX_BATCH_ROWS, MAX_DECODED_BYTES // max(1, row_bytes)))
                for batch in file.iter_batches(batch_size=1 if row_by_row else batch_rows, row_groups=[index]):
                    yield from slice_rows(batch)
    except (pyarrow.ArrowException, OSError) as error:
        message = f"invalid Parquet file: {format_exception(error).rstrip('.')}."
        issues.add("data.invalid-parquet", message, str(path))


def slice_rows(batch: pyarrow.RecordBatch) -> Iterator[list[Fields]]:
    """Yield the rows of a batch in lists of about `SLICE_BYTES`."""
    slice_count = min(batch.num_rows, -(-batch.nbytes // SLICE_BYTES) or 1)
    for number in range(slice_count):
        start = batch.num_rows * number // slice_count
        stop = batch.num_rows * (number + 1) // slice_count
        yield batch.slice(start, stop - start).to_pylist()


def _check_columns(schema: pyarrow.Schema, path: Path, issues: IssueCollector) -> bool:
    """Return whether no two columns, and no two fields of a column, share a name; if two do, add an issue."""
    duplicate = _find_duplicate(list(schema))
    if duplicate is not None:
        message = f"columns: duplicate column {duplicate!r}; found {', '.join(schema.names)}."
        issues.add("data.duplicate-key", message, str(path), "Rename or remove one of them.")
    return duplicate is None


def _find_duplicate(fields: list[Any]) -> str | None:
    names = [field.name for field in fields]
    for field in fields:
        if names.count(field.name) > 1:
            return field.name
        children = [field.type.field(index) for index in range(field.type.num_fields)]
        if (found := _find_duplicate(children)) is not None:
            return found
    return None


def _max_row_bytes(row_group: pyarrow.parquet.RowGroupMetaData, file: BinaryIO) -> int:
    """Return how many bytes a row can have beyond those that the file stores for it.

    A value that is stored once and repeated by reference, in a dictionary or as a prefix, is as large as what is
    stored of it. The values of lists are assumed to be spread evenly over the rows.
    """
    total = 0
    for index in range(row_group.num_columns):
        column = row_group.column(index)
        stored = 0
        if "DELTA_BYTE_ARRAY" in column.encodings:
            stored = column.total_uncompressed_size
        elif column.has_dictionary_page and column.dictionary_page_offset is not None:
            stored = _page_size(file, column.dictionary_page_offset) or column.total_uncompressed_size
        total += stored * -(-column.num_values // max(1, row_group.num_rows))
    return total


def _page_size(file: BinaryIO, offset: int) -> int | None:
    """Return the uncompressed size in bytes of the page at `offset`, or None if its header is not as expected.

    The header is a Thrift structure in the compact protocol, of which the first two fields are integers: the type and
    the uncompressed size (https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift).
    """
    file.seek(offset)
    header = iter(file.read(_PAGE_HEADER_BYTES))
    size = None
    for _ in range(2):
        if next(header, None) != 0x15:  # the next field, an integer
            return None
        size = shift = 0
        for byte in header:
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
    return size // 2 if size is not None else None  # zigzag: even numbers are the non-negative ones
