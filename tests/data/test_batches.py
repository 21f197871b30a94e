"""Slices of batches equal slices of their rows."""

from __future__ import annotations

import pytest

from rlhf_cli.data.batches import Batch, slice_batches


@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 0), (2, 5), (3, 3), (4, 100), (5, None), (9, None)])
def test_slice_batches_any_bounds_equals_slice_of_rows(start: int, stop: int | None) -> None:
    rows = [{"n": n} for n in range(9)]
    batches = [Batch("x:", range(a, b), rows[a:b]) for a, b in ((0, 3), (3, 3), (3, 8), (8, 9))]
    found = [
        (n, row)
        for batch in slice_batches(batches, start, stop)
        for n, row in zip(batch.numbers, batch.rows, strict=True)
    ]
    assert found == list(enumerate(rows))[start:stop]
