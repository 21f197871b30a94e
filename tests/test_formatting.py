"""Numbers, sizes and counts as text, in one way everywhere."""

from __future__ import annotations

import pytest

from rlhf_cli.formatting import format_bytes, format_count, format_metric, format_number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (9.95e-14, "< 1e-12"),
        (-9.95e-14, "> -1e-12"),
        (1e-12, "1e-12"),
        (None, "not finite"),
        (0.0, "0"),
        (0.123456, "0.123"),
        (12.0, "12"),
        (1234.5, "1,234"),
        (4600, "4,600"),
        (-0.5, "-0.5"),
    ],
)
def test_format_number_has_three_digits_or_thousands_separators(value: float | None, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(1, "1 byte"), (512, "512 bytes"), (12_345, "12 kB"), (751_304_704, "751 MB"), (7_513_047_040, "7.5 GB")],
)
def test_metric_in_bytes_is_formatted_as_a_size(count: float, text: str) -> None:
    assert format_metric("export.bytes", count) == format_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, "row", "0 rows"),
        (1, "held-out row", "1 held-out row"),
        (1234, "row", "1,234 rows"),
        (2, "process", "2 processes"),
    ],
)
def test_format_count_has_singular_and_plural(count: int, noun: str, text: str) -> None:
    assert format_count(count, noun) == text
