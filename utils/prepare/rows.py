"""The texts or records of files that are tables: Parquet, Arrow, CSV, and JSON that is not one record per line."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from lit_gpt.errors import DataError
from utils.prepare.arrow_values import validate, values
from utils.prepare.chat.conversation import Fields
from utils.prepare.chat.kinds import reader_hint, reader_of
from utils.prepare.file_formats import ARROW, PARQUET, TABLE, CorpusFile
from utils.prepare.unpacking import READ, import_pyarrow, unpacked

MAX_RECORD = 32 * 2**20  # characters of a JSON record or CSV field
NO_TEXT = "give --text_field, or of chats a --converter"
POSITION = "position"  # column of the place of a row's text in what its --join_field names
_SPACES = re.compile(r"[ \t\r\n]*")


class BadRow(str):
    """What is wrong with a row, in its place."""

    reason = "bad_row"


class NoField(BadRow):
    reason = "no_field"


def no_field(text_field: str, record: Any) -> str:
    """Says that a JSON record, or what is in its place, lacks the field, and which ones there are."""
    if not isinstance(record, dict) or not record:
        return f"no field '{text_field}' (--text_field)"
    reader = reader_of(record)
    hint = f" (--converter {reader} reads these)" if reader else ""
    return f"no field '{text_field}' (--text_field) among {_listed(record)}{hint},"


def row_values(file: CorpusFile, size: int, text_field: str) -> Iterator[Any]:
    """The value of each row in `text_field`, or a `BadRow`; a DataError if there is no such column or no such table."""
    if file.format == TABLE:
        rows = _within_rows(_csv_rows(file.path, Fields((text_field,)), NO_TEXT), file.span)
        return (row if isinstance(row, BadRow) else _as_bytes(row[text_field]) for row in rows)
    if file.format not in (PARQUET, ARROW):
        return _within_rows(_json_values(file.path, text_field), file.span)
    batches = _batches(file, size, Fields((text_field,)), NO_TEXT)
    return chain.from_iterable(values(batch.column(0)) for batch in batches)


def joined_values(file: CorpusFile, size: int, text_field: str) -> Iterator[tuple[Any, Any, Any]]:
    """The value of each row in `text_field`, as `row_values` has it, and those in `join_field` and `position`, or None.

    A DataError if there is no such table, or not one of the first two columns.
    """
    fields = Fields((text_field, file.join_field), (POSITION,))
    way = "give another --text_field or --join_field"
    if file.format in (PARQUET, ARROW):
        for batch in _batches(file, size, fields, way):
            columns = {name: values(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
            positions = columns.get(POSITION, [None] * batch.num_rows)
            names = [name if name in columns else name.partition(".")[0] for name in fields.required]
            yield from zip(*(columns[name] for name in names), positions, strict=True)
        return
    rows = _csv_rows(file.path, fields, way) if file.format == TABLE else _json_fields(file.path, fields)
    for row in _within_rows(rows, file.span):
        if isinstance(row, BadRow):
            yield row, None, None
        else:
            text = row[text_field]
            yield _as_bytes(text) if isinstance(text, str) else text, row[file.join_field], row.get(POSITION)


def table_schema(file: CorpusFile) -> Any:
    """Arrow's schema of a Parquet or Arrow file."""
    arrow = import_pyarrow()
    from pyarrow import parquet  # an optional package

    if file.format == PARQUET:
        with arrow_errors(file.path, "Parquet"):
            return parquet.read_schema(file.path)
    with arrow_errors(file.path, "Arrow"), arrow.memory_map(str(file.path)) as stream:
        return _record_batches(arrow, stream)[0]


def row_records(file: CorpusFile, size: int, fields: Fields) -> Iterator[tuple[bytes | list[Any], int]]:
    """The records of some `size` bytes together, and how many: of Parquet and Arrow a stream of Arrow batches, of CSV
    a dict or a `BadRow` each, else the JSON of each. A DataError if a required field has no column, or there is no such
    table.
    """
    way = "say by `mapping` which columns the converter reads"
    if file.format in (PARQUET, ARROW):
        yield from _packed_batches(_batches(file, size, fields, way), size)
        return
    rows = _csv_rows(file.path, fields, way) if file.format == TABLE else _json_texts(file.path)
    rows = _within_rows(rows, file.span)
    held: list[Any] = []
    held_size = 0
    for row in rows:
        held.append(row)
        held_size += sum(map(len, row.values())) if isinstance(row, dict) else len(row)
        if held_size >= size:
            yield held, len(held)
            held, held_size = [], 0
    if held:
        yield held, len(held)


def _packed_batches(batches: Iterator[Any], size: int) -> Iterator[tuple[bytes, int]]:
    """Batches joined to some `size` bytes, as Arrow's stream format has them."""
    held: list[Any] = []
    for batch in batches:
        held.append(batch)
        if sum(part.nbytes for part in held) >= size:
            yield _as_stream(held)
            held = []
    if held:
        yield _as_stream(held)


def _as_stream(batches: list[Any]) -> tuple[bytes, int]:
    from pyarrow import BufferOutputStream, ipc  # an optional package

    sink = BufferOutputStream()
    with ipc.new_stream(sink, batches[0].schema) as stream:
        for batch in batches:
            stream.write_batch(batch)
    return sink.getvalue().to_pybytes(), sum(batch.num_rows for batch in batches)


def _columns(path: Path, names: list[str], fields: Fields, way: str) -> list[str]:
    """The columns that hold the fields, in their order; a DataError if a required one is not there.

    A path `a.b` is a field within the column `a`, unless a column has this name.
    """
    wanted = dict.fromkeys(name if name in names else name.partition(".")[0] for name in fields.required)
    for name in wanted:
        if name not in names:
            found = f"{path} has no column '{name}' but {_listed(names)}"
            raise DataError(f"{found}; {way}, or move it elsewhere{reader_hint(names)}")
    optional = names if fields.optional is None else fields.optional
    for name in optional:
        column = name if name in names else name.partition(".")[0]
        if column in names:
            wanted[column] = None
    return list(wanted)


def _listed(names: Iterable[str]) -> str:
    """The first twenty; what is in them and no Unicode is escaped."""
    return ", ".join(islice(names, 20)).encode("utf-8", "backslashreplace").decode()


@contextmanager
def arrow_errors(path: Path, kind: str) -> Iterator[None]:
    """Makes what Arrow says of a broken file a `DataError`."""
    try:
        yield
    except (import_pyarrow().ArrowException, OSError, UnicodeDecodeError) as e:  # names of columns are decoded
        if isinstance(e, OSError) and e.errno is not None:
            raise
        raise DataError(f"{path} is truncated or no {kind} file: {str(e).partition(chr(10))[0]}") from None


def _batches(file: CorpusFile, size: int, fields: Fields, way: str) -> Iterator[Any]:
    reader = _parquet_batches if file.format == PARQUET else _arrow_batches
    batches = reader(file.path, size, fields, way)
    return batches if file.span is None else _within(batches, *file.span)


def _within_rows(rows: Iterator[Any], span: tuple[int, int] | None) -> Iterator[Any]:
    return rows if span is None else islice(rows, *span)


def _within(batches: Iterator[Any], begin: int, end: int) -> Iterator[Any]:
    """The rows of batches from `begin` up to `end`."""
    at = 0
    for batch in batches:
        first, last = max(begin - at, 0), min(end - at, batch.num_rows)
        if first < last:
            yield batch.slice(first, last - first)
        at += batch.num_rows
        if at >= end:
            return


def count_of_table(file: CorpusFile) -> int:
    """The rows of a Parquet or Arrow file, without reading them."""
    arrow = import_pyarrow()
    from pyarrow import parquet  # an optional package

    if file.format == PARQUET:
        with arrow_errors(file.path, "Parquet"), parquet.ParquetFile(file.path) as table:
            return table.metadata.num_rows
    with arrow_errors(file.path, "Arrow"), arrow.memory_map(str(file.path)) as stream:
        return sum(batch.num_rows for batch in _record_batches(arrow, stream)[1])


def _parquet_batches(path: Path, size: int, fields: Fields, way: str) -> Iterator[Any]:
    import_pyarrow()
    from pyarrow import parquet  # an optional package

    # pyarrow 25 reads ahead unless told otherwise: tens of megabytes, whatever `buffer_size` says
    settings = {"buffer_size": READ, "pre_buffer": False}
    with arrow_errors(path, "Parquet"), parquet.ParquetFile(path, **settings) as table:
        columns = _columns(path, table.schema_arrow.names, fields, way)
        groups = [table.metadata.row_group(number) for number in range(table.num_row_groups)]
        total_bytes = sum(group.total_byte_size for group in groups)
        rows = max(1, min(128, size * table.metadata.num_rows // max(1, total_bytes)))
        yield from table.iter_batches(batch_size=rows, columns=columns)


def _arrow_batches(path: Path, size: int, fields: Fields, way: str) -> Iterator[Any]:
    """Of a stream, as `datasets` writes them, or of a file in Arrow's other format (Feather 2)."""
    arrow = import_pyarrow()
    # mapped: of a plain file Arrow would reserve whatever memory a flipped bit in a length asks for
    with arrow_errors(path, "Arrow"), arrow.memory_map(str(path)) as file:
        schema, batches = _record_batches(arrow, file)
        columns = _columns(path, schema.names, fields, way)
        for whole in batches:
            batch = whole.select(columns)
            for column in batch.columns:
                validate(column)
            for begin in range(0, batch.num_rows, 128):
                yield batch.slice(begin, 128)


def _record_batches(arrow: Any, file: Any) -> tuple[Any, Iterator[Any]]:
    """The schema and the batches of a mapped file."""
    is_stream = file.read(6) != b"ARROW1"
    file.seek(0)
    reader = arrow.ipc.open_stream(file) if is_stream else arrow.ipc.open_file(file)
    batches = iter(reader) if is_stream else map(reader.get_batch, range(reader.num_record_batches))
    return reader.schema, batches


def _csv_rows(path: Path, fields: Fields, way: str) -> Iterator[Any]:
    """A dict of the fields of each row, or a `BadRow`; bytes that are not UTF-8 stay in them."""
    with unpacked(path) as stream:
        delimiter = "\t" if ".tsv" in (suffix.lower() for suffix in path.suffixes) else ","
        csv.field_size_limit(MAX_RECORD)
        lines = csv.reader(_as_text(stream), delimiter=delimiter, strict=True)
        try:
            header = next(lines, [])
        except csv.Error as e:
            raise DataError(f"{path}: the first line does not name columns: {e}") from None
        if not header:
            return
        columns = {name: header.index(name) for name in _columns(path, header, fields, way)}
        while True:
            try:
                row = next(lines, None)
            except csv.Error as e:
                yield BadRow(f"no valid CSV up to line {lines.line_num} ({e}; is a quote not closed?)")
                continue
            if row is None:
                return
            if len(row) == len(header):
                yield {name: row[number] for name, number in columns.items()}
            elif row:
                yield BadRow(
                    f"{len(row)} fields, where the first line names {len(header)}, up to line {lines.line_num},"
                )


def _as_text(stream: IO[bytes]) -> io.TextIOWrapper:
    """Text in which bytes that are not UTF-8 stay, so that only the row they are in is left out."""
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _as_bytes(value: str) -> bytes:
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass")  # half of a surrogate pair is no UTF-8, and will be named as such


def _json_values(path: Path, text_field: str) -> Iterator[Any]:
    for record, _ in _json_records(path):
        if isinstance(record, dict) and text_field in record:
            value = record[text_field]
            yield _as_bytes(value) if isinstance(value, str) else value
        else:
            yield NoField(no_field(text_field, record))


def _json_fields(path: Path, fields: Fields) -> Iterator[Any]:
    """The records of JSON that have the required fields, a `NoField` for each of the others."""
    for record, _ in _json_records(path):
        missing = [name for name in fields.required if not isinstance(record, dict) or name not in record]
        yield NoField(no_field(missing[0], record)) if missing else record


def _json_texts(path: Path) -> Iterator[str]:
    return (text for _, text in _json_records(path))


def _json_records(path: Path) -> Iterator[tuple[Any, str]]:
    """The records of an array, or one after the other, and their JSON; holds a part of the file at a time."""
    with unpacked(path) as stream:
        reader = _JsonReader(path, _as_text(stream))
        if reader.next_character() != "[":
            while reader.next_character():
                yield reader.read_value()
            return
        reader.skip_character()
        if reader.next_character() != "]":
            yield reader.read_value()
        while (character := reader.next_character()) == ",":
            reader.skip_character()
            yield reader.read_value()
        reader.skip_character()
        if character != "]" or reader.next_character():
            raise DataError(f"{path} is truncated or no JSON after record {reader.values}")


class _JsonReader:
    """Reads one JSON value after the other, and holds no more than this one and what was read behind it."""

    def __init__(self, path: Path, text: IO[str]) -> None:
        self.values = 0
        self._path, self._text = path, text
        self._buffer, self._at = "", 0
        self._decoder = json.JSONDecoder()

    def next_character(self) -> str:
        """The next one that is not white space, without moving behind it; empty at the end of the file."""
        while True:
            space = _SPACES.match(self._buffer, self._at)
            assert space is not None
            self._at = space.end()
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._read_more():
                return ""

    def skip_character(self) -> None:
        self._at += 1

    def read_value(self) -> tuple[Any, str]:
        """The next value, and its JSON."""
        self.next_character()  # the decoder takes no white space
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
                text, self._at = self._buffer[self._at : end], end
                self.values += 1
                return value, text
            except (ValueError, RecursionError) as e:
                problem = str(e)
            if len(self._buffer) - self._at > MAX_RECORD:
                way = f"if there is one, write a record per line: jq -c '.[]' '{self._path}' > x.jsonl"
                found = f"no JSON record of at most {MAX_RECORD:,} characters after record {self.values}"
                raise DataError(f"{self._path}: {found}; {way}")
            if not self._read_more():
                raise DataError(f"{self._path} is truncated or no JSON after record {self.values}: {problem}")

    def _read_more(self) -> bool:
        left = len(self._buffer) - self._at
        more = self._text.read(max(READ, left))  # twice as much each time, or a long value would be read n² times
        self._buffer, self._at = self._buffer[self._at :] + more, 0
        return bool(more)
