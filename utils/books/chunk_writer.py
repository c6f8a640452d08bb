"""Writes the Parquet files of a folder of chunks, a book after the other; says what such files were made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lit_gpt.checksums import find_difference, read_sums
from lit_gpt.errors import DataError
from utils.books.chunk_files import COLUMNS, chunk_file_names
from utils.prepare.dataset_cards import CARD
from utils.prepare.joined_rows import WHITE_SPACE_KEPT
from utils.prepare.unpacking import import_pyarrow

MADE_FROM = b"made_from"
"""Key of the SHA-256 of what the chunks were made from, in each file's metadata."""
FILE_CHARACTERS, GROUP_CHARACTERS = 400_000_000, 8_000_000
"""Characters of a file and of a row group, from which on the next begins behind a whole book."""


class ChunkWriter:
    """Writes the rows of books to files of bounded size, a book's to one file. As a context it names them at the end.

    Holds one row group in memory. The bytes depend on the rows alone.
    """

    def __init__(self, folder: Path, made_from: str) -> None:
        arrow = import_pyarrow()
        self._folder = folder
        kinds = (arrow.string(), arrow.string(), arrow.int64(), arrow.int64())
        self._schema = arrow.schema(
            list(zip(COLUMNS, kinds, strict=True)), metadata={MADE_FROM: made_from, **WHITE_SPACE_KEPT}
        )
        self._files: list[Path] = []
        self._writer: Any = None
        self._in_file = self._in_group = 0
        self._columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}

    def add(self, source: str, number: int | None, texts: Sequence[str]) -> None:
        """Adds the chunks of a book in their order."""
        if self._in_file >= FILE_CHARACTERS:
            self._end_file()
        columns = (texts, [source] * len(texts), [number] * len(texts), range(len(texts)))
        for values, more in zip(self._columns.values(), columns, strict=True):
            values.extend(more)
        size = sum(map(len, texts))
        self._in_file += size
        self._in_group += size
        if self._in_group >= GROUP_CHARACTERS:
            self._end_group()

    def __enter__(self) -> ChunkWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self._end_group()
        self._end_file()
        for number, path in enumerate(self._files):
            path.rename(self._folder / f"data-{number:05d}-of-{len(self._files):05d}.parquet")

    def _end_group(self) -> None:
        if not self._in_group:
            return
        arrow = import_pyarrow()
        from pyarrow import parquet  # an optional package

        if self._writer is None:
            self._files.append(self._folder / f"{len(self._files)}.parquet")
            self._writer = parquet.ParquetWriter(self._files[-1], self._schema, compression="zstd")
        self._writer.write_table(arrow.table(self._columns, schema=self._schema))
        self._in_group = 0
        for values in self._columns.values():
            values.clear()

    def _end_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._in_file = 0


def is_made_from(folder: Path, made_from: str) -> bool:
    """Whether a folder's files of chunks are whole, and were made from this. Its card may have been edited."""
    import_pyarrow()
    from pyarrow import ArrowException, parquet  # an optional package

    try:
        sums = [file for file in read_sums(folder) if file.name != CARD]
        names = chunk_file_names(folder)
    except (DataError, FileNotFoundError):
        return False
    if not set(names) <= {file.name for file in sums} or find_difference(folder, sums):
        return False
    try:
        found = {(parquet.read_schema(folder / name).metadata or {}).get(MADE_FROM) for name in names}
    except ArrowException:
        return False
    return found == {made_from.encode()} and (folder / CARD).is_file()
