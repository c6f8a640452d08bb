"""The Parquet files of a folder of chunks, read in full: their columns, and how much of each book they hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.checksums import SUMS
from lit_gpt.errors import DataError, UserError
from utils.prepare.book_folders import BOOKS
from utils.prepare.dataset_cards import CARD
from utils.prepare.rows import arrow_errors
from utils.prepare.unpacking import import_pyarrow

CHUNK_FILES = "data-*.parquet"
NEEDED = (CHUNK_FILES, CARD, BOOKS, SUMS)
"""Files of a whole folder of chunks."""
SENT = (*NEEDED, "LICENSE*", "LICENCE*", "NOTICE*")
"""What of it goes to the Hub."""
COLUMNS = {
    "text": ("string", "large_string"),
    "source": ("string", "large_string"),
    "number": ("int32", "int64"),
    "position": ("int32", "int64"),
}
"""Columns, and the types that each may have; those of one folder's files are the same."""


class Counts(NamedTuple):
    chunks: int
    characters: int

    def plus(self, other: Counts) -> Counts:
        return Counts(self.chunks + other.chunks, self.characters + other.characters)


@dataclass(frozen=True)
class ChunkFiles:
    """What the Parquet files hold."""

    types: dict[str, str]
    """Type of each column, in their order."""
    by_source: dict[str, Counts]
    """Of each text in the column `source`, which is the file's name in books.csv; in the order of the rows."""
    file_bytes: int
    value_bytes: int
    """Bytes of the texts and numbers in memory."""

    @property
    def chunks(self) -> int:
        return sum(counts.chunks for counts in self.by_source.values())

    @property
    def characters(self) -> int:
        return sum(counts.characters for counts in self.by_source.values())


def chunk_file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if fnmatchcase(path.name, CHUNK_FILES))


def read_chunk_files(folder: Path, names: Sequence[str]) -> ChunkFiles:
    """Reads the Parquet files `names` of a folder; a DataError names one that is damaged or no file of chunks."""
    if not names:
        raise UserError(f"{folder} has no {CHUNK_FILES}; data/chunk_books.py makes them")
    types: dict[str, str] = {}
    by_source: dict[str, Counts] = defaultdict(lambda: Counts(0, 0))
    value_bytes = 0
    for name in names:
        path = folder / name
        found = _types(path)
        if types and found != types:
            raise DataError(f"{path} has other columns than {names[0]}; cut the books again with data/chunk_books.py")
        types = found
        for batch in _batches(path):
            for source, counts in _counts(batch):
                by_source[source] = by_source[source].plus(counts)
            value_bytes += _value_bytes(batch)
    file_bytes = sum((folder / name).stat().st_size for name in names)
    return ChunkFiles(types, dict(by_source), file_bytes, value_bytes)


def _types(path: Path) -> dict[str, str]:
    """The types of a file's columns; a DataError if they are not those of chunks."""
    import_pyarrow()
    from pyarrow import parquet  # an optional package

    with arrow_errors(path, "Parquet"):
        schema = parquet.read_schema(path)
    types = {field.name: str(field.type) for field in schema}
    if list(types) != list(COLUMNS):
        raise DataError(f"{path} has the columns {', '.join(types)} instead of {', '.join(COLUMNS)}")
    for name, kind in types.items():
        if kind not in COLUMNS[name]:
            raise DataError(f"{path}: column {name} has the type {kind} instead of {' or '.join(COLUMNS[name])}")
    return types


def _batches(path: Path) -> Iterator[Any]:
    """The rows of a file, without nulls where there can be none."""
    from pyarrow import parquet  # an optional package, which `_types` has asked for

    with arrow_errors(path, "Parquet"), parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            batch.validate(full=True)  # texts that are not UTF-8
            for name in ("text", "source", "position"):
                if batch.column(name).null_count:
                    raise DataError(f"{path}: a row has no {name}")
            yield batch


def _counts(batch: Any) -> Iterator[tuple[str, Counts]]:
    """The source of each row, and how much the row holds of it."""
    from pyarrow import compute  # an optional package

    # row by row: the tables of pyarrow that could add them up import pandas, 0.7 s
    lengths = compute.utf8_length(batch.column("text")).to_pylist()
    for source, length in zip(batch.column("source").to_pylist(), lengths, strict=True):
        yield source, Counts(1, length)


def _value_bytes(batch: Any) -> int:
    from pyarrow import compute, types  # an optional package

    total = 0
    for column in batch.columns:
        if types.is_integer(column.type):
            total += len(column) * column.type.bit_width // 8
        else:
            total += compute.sum(compute.binary_length(column)).as_py() or 0
    return total
