"""The values of Arrow's columns, text as bytes; and whether a column can be read at all."""

from typing import Any


def validate(column: Any) -> None:
    """Raises if a column is broken, of which a flipped bit in an offset would end the process; not for bad UTF-8."""
    from pyarrow import ArrowInvalid, types  # an optional package

    if not types.is_nested(column.type):
        _as_binary(column).validate(full=True)
        return
    try:
        column.validate(full=True)
    except ArrowInvalid:  # perhaps for UTF-8 alone; a view as binary fails for columns of nulls, valid or not
        _as_binary(column).validate(full=True)


def values(column: Any) -> list[Any]:
    """The values of an Arrow array, text as bytes: Arrow does not say which one is not UTF-8."""
    from pyarrow import types  # an optional package

    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if types.is_string_view(column.type):
        column = column.cast("large_binary")
    return _as_binary(column).to_pylist()


def _as_binary(column: Any) -> Any:
    """An Arrow array with bytes for text, within lists and structs too, without looking at them; else as it is."""
    wanted = _binary_type(column.type)
    return column if wanted == column.type else column.view(wanted)


def _binary_type(kind: Any) -> Any:
    import pyarrow  # an optional package
    from pyarrow import types  # an optional package

    if types.is_string(kind):
        return pyarrow.binary()
    if types.is_large_string(kind):
        return pyarrow.large_binary()
    if types.is_struct(kind):
        return pyarrow.struct([field.with_type(_binary_type(field.type)) for field in kind])
    if types.is_list(kind):
        return pyarrow.list_(kind.value_field.with_type(_binary_type(kind.value_type)))
    if types.is_large_list(kind):
        return pyarrow.large_list(kind.value_field.with_type(_binary_type(kind.value_type)))
    return kind
