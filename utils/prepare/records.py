"""The records of a block, as the converters of chats read them; and what in it is no record."""

from collections.abc import Iterator
from typing import Any

from lit_gpt.errors import DataError
from utils.prepare.blocks import TextBlock, read_blocks
from utils.prepare.chat.conversation import Fields
from utils.prepare.chat.json_values import listed, read_json
from utils.prepare.chat.kinds import MISSING, look_up, reader_hint
from utils.prepare.documents import Bad, json_lines
from utils.prepare.file_formats import ARROW, LINES, PARQUET, ROWS, CorpusFile
from utils.prepare.rows import BadRow
from utils.prepare.unpacking import import_pyarrow

FIRST_RECORDS = 2**17  # bytes of a file in which a required field has to be
Records = list[tuple[Any, int]]  # each with the byte or row of the file where it is


def parse_records(block: TextBlock) -> tuple[Records, list[Bad]]:
    """The records of a block that `read_blocks` made for the fields of records, and what in it is none.

    In Parquet and Arrow, all structs of a column have the same fields. Those that are null are taken out of structs: a
    call of a tool would get the arguments of all others.
    """
    if block.file.format == LINES:
        found = list(json_lines(block, _from_json))
    elif block.file.format in (PARQUET, ARROW):
        found = list(_from_arrow(block))
    elif block.file.format in ROWS:
        assert isinstance(block.payload, list)
        found = [_from_row(row, at) for at, row in enumerate(block.payload, start=block.begin)]
    else:
        raise DataError(f"{block.file.path} is text without fields; chats are JSON, Parquet, Arrow or CSV")
    records = [item for item in found if not isinstance(item, Bad)]
    return records, [item for item in found if isinstance(item, Bad)]


def require_fields(file: CorpusFile, fields: Fields) -> None:
    """Raises a DataError if none of a file's first records has one of the required fields, as for a missing column."""
    for block in read_blocks(file, FIRST_RECORDS, fields):
        records = [record for record, _ in parse_records(block)[0] if isinstance(record, dict)]
        for field in fields.required:
            if records and all(look_up(record, field) is MISSING for record in records):
                names = {name: None for record in records for name in record}
                found = f"the first {len(records):,} records of {file.path} have no field '{field}' but {listed(names)}"
                way = "say by `mapping` which fields the converter reads"
                raise DataError(f"{found}; {way}{reader_hint(names)}")
        return


def _from_json(line: bytes, at: int) -> tuple[Any, int] | Bad:
    try:
        return read_json(line.decode()), at
    except UnicodeDecodeError:
        return Bad("not_utf8", at, "no valid UTF-8")
    except ValueError as e:
        return Bad("broken_json", at, f"a line that is no JSON ({str(e)[:80]})")


def _from_row(row: Any, at: int) -> tuple[Any, int] | Bad:
    if isinstance(row, BadRow):
        return Bad(row.reason, at, row)
    if isinstance(row, dict):
        return row, at
    try:
        return read_json(row), at
    except ValueError as e:
        return Bad("broken_json", at, f"a record that is no JSON ({str(e)[:80]})")


def _from_arrow(block: TextBlock) -> Iterator[tuple[Any, int] | Bad]:
    assert isinstance(block.payload, bytes)
    at = block.begin
    for batch in import_pyarrow().ipc.open_stream(block.payload):
        try:
            records = _values(batch)
        except (ValueError, OverflowError, KeyError):  # of one value; Arrow does not say of which row
            records = [_values_of_row(batch.slice(row, 1)) for row in range(batch.num_rows)]
        for record in records:
            yield Bad(record.reason, at, record) if isinstance(record, BadRow) else (record, at)
            at += 1


class NotUtf8(BadRow):
    reason = "not_utf8"


def _values_of_row(batch: Any) -> Any:
    try:
        return _values(batch)[0]
    except UnicodeDecodeError:
        return NotUtf8("no valid UTF-8")
    except (ValueError, OverflowError, KeyError) as e:
        return BadRow(f"a value that cannot be read ({str(e)[:80]})")


def _values(batch: Any) -> list[dict[str, Any]]:
    columns = [_column_values(column) for column in batch.columns]
    return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _column_values(column: Any) -> list[Any]:
    has_map, has_null = _looked_into(column)
    values = column.to_pylist(maps_as_pydicts="strict") if has_map else column.to_pylist()
    return [_without_nulls(value) for value in values] if has_null else values


def _looked_into(column: Any) -> tuple[bool, bool]:
    """Whether there is a map in an Arrow array, and whether a struct in it has, or may have, a field that is null."""
    from pyarrow import types  # an optional package

    if types.is_map(column.type):
        return True, True
    if types.is_struct(column.type):
        inner = column.flatten()
        found = [_looked_into(field) for field in inner]
        has_null = any(field.null_count for field in inner)
        return any(has_map for has_map, _ in found), has_null or any(null for _, null in found)
    if types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type):
        return _looked_into(column.flatten())
    return False, types.is_nested(column.type) or types.is_dictionary(column.type)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
