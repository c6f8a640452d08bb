"""Corpus files unpacked as a stream of bytes: .gz, .bz2, .xz and .zst; any other file is read as it is."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import IO, Any

from lit_gpt.errors import DataError, UserError

PACKED = {".gz": 4, ".bz2": 4, ".xz": 5, ".zst": 4}  # estimated text in a file, as a multiple of its size
READ = 1 << 20


def packing_of(path: PurePath) -> str:
    """The suffix that says how a file is packed, in lower case; empty where it is not."""
    suffix = path.suffix.lower()
    return suffix if suffix in PACKED else ""


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked where its name says so; a DataError if it is truncated or not of that kind."""
    packing = packing_of(path)
    try:
        with _opened(path, packing) as stream:
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


def skip(stream: IO[bytes], size: int, packed: bool) -> None:
    """Moves `size` bytes on in what `unpacked` gives."""
    if not packed and size > 0:
        stream.seek(size, io.SEEK_CUR)
        return
    while size > 0 and (skipped := stream.read(min(size, READ))):
        size -= len(skipped)


def _opened(path: Path, packing: str) -> IO[bytes]:
    if packing == ".gz":
        return gzip.open(path)
    if packing == ".zst":
        return import_pyarrow().input_stream(str(path), compression="zstd")
    file = path.open("rb")
    if packing:
        make = lzma.LZMADecompressor if packing == ".xz" else bz2.BZ2Decompressor
        return io.BufferedReader(_Streams(file, make), READ)
    return file


class _Streams(io.RawIOBase):
    """The bytes of the packed streams of a file. `lzma.open` and `bz2.open` take a broken second one for the end."""

    def __init__(self, file: IO[bytes], make: Callable[[], Any]) -> None:
        self._file, self._make = file, make
        self._unpacker: Any = None  # between two streams there is none
        self._packed = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while self._may_have_more():
            unpacked = self._unpacker.decompress(self._packed, len(buffer))
            self._packed = b""
            if self._unpacker.eof:
                self._packed, self._unpacker = _without_filling(self._unpacker.unused_data), None
            if unpacked:
                buffer[: len(unpacked)] = unpacked
                return len(unpacked)
        return 0

    def _may_have_more(self) -> bool:
        """Sees to it that there is an unpacker which has, or is given, bytes; False at the end of the file."""
        if self._unpacker is not None and not self._unpacker.needs_input:
            return True
        while not self._packed:
            self._packed = self._file.read(READ)
            if not self._packed and self._unpacker is not None:
                raise EOFError("it ends within a stream")
            if not self._packed:
                return False
            if self._unpacker is None:
                self._packed = _without_filling(self._packed)
        self._unpacker = self._unpacker or self._make()
        return True


def _without_filling(packed: bytes) -> bytes:
    return packed.lstrip(b"\0")  # zeros may be behind a stream, and none begins with them


def import_pyarrow() -> Any:
    try:
        import pyarrow  # an optional package
    except ImportError:
        raise UserError("*.parquet, *.arrow and *.zst need pyarrow: pip install pyarrow") from None
    return pyarrow
