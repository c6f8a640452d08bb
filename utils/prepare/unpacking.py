"""Corpus files unpacked as a stream of bytes: .gz, .bz2, .xz and .zst; any other file is read as it is."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lit_gpt.errors import DataError, UserError

PACKED = {".gz": 4, ".bz2": 4, ".xz": 5, ".zst": 4}  # estimated text in a file, as a multiple of its size
_OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def packing_of(path: Path) -> str:
    """The suffix that says how a file is packed, in lower case; empty where it is not."""
    suffix = path.suffix.lower()
    return suffix if suffix in PACKED else ""


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked where its name says so; a DataError if it is truncated or not of that kind."""
    packing = packing_of(path)
    try:
        if packing in _OPENERS:
            with _OPENERS[packing](path) as stream:
                yield stream
        elif packing:
            with import_pyarrow().input_stream(str(path), compression="zstd") as stream:
                yield stream
        else:
            with path.open("rb") as stream:
                yield stream
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as e:
        raise DataError(f"{path} is truncated or no {packing} file: {e}") from None
    except OSError as e:
        if not packing or e.errno is not None:
            raise
        if "too much memory" in str(e):
            way = f"unpack it first: zstd -d --long=31 '{path}'"
            raise DataError(f"{path} was packed with a window above 128 MB (zstd --long); {way}") from None
        raise DataError(f"{path} is truncated or no {packing} file: {e}") from None


def import_pyarrow() -> Any:
    try:
        import pyarrow  # an optional package
    except ImportError:
        raise UserError("*.parquet, *.arrow and *.zst need pyarrow: pip install pyarrow") from None
    return pyarrow
