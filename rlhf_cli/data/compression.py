"""Open files that may be compressed with gzip, bzip2, xz or Zstandard, which their first bytes tell."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

COMPRESSION_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
_MAGIC = {  # the first bytes of a file; bzip2's go on with the block size and the first block's magic number
    b"\x1f\x8b\x08": ".gz",
    **{f"BZh{size}1AY&SY".encode(): ".bz2" for size in range(1, 10)},
    b"\xfd7zXZ\0": ".xz",
    b"\x28\xb5\x2f\xfd": ".zst",
}


class DamagedFileError(Exception):
    """Raised for a compressed file that ends early or has other content than its format allows."""


def find_compression(path: Path) -> str:
    """Return the suffix of the compression that a file's content has, or "" if it has none."""
    with path.open("rb") as file:
        head = file.read(max(map(len, _MAGIC)))
    return next((suffix for magic, suffix in _MAGIC.items() if head.startswith(magic)), "")


@contextlib.contextmanager
def open_decompressed(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading, whether it is compressed or not.

    Raises:
        DamagedFileError: The file cannot be decompressed to its end.
    """
    compression = find_compression(path)
    try:
        with io.BufferedReader(_open(path, compression)) as file:  # type: ignore[type-var]  # typed for RawIOBase only
            yield cast(io.BufferedReader, file)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if not compression:
            raise
        raise DamagedFileError(str(error)) from error


def _open(path: Path, compression: str) -> BinaryIO:
    if compression == ".gz":
        return cast(BinaryIO, gzip.open(path))
    if compression == ".bz2":
        return cast(BinaryIO, bz2.open(path))
    if compression == ".xz":
        return cast(BinaryIO, lzma.open(path))
    if compression == ".zst":
        import pyarrow

        return cast(BinaryIO, pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb", buffering=0)
