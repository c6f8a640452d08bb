"""Rows that are parts of one text, such as the chunks of a book, joined to documents again (`--join_field`).

Consecutive rows of a file that have the same value in its `join_field` are one document. A blank line joins them, but
where there is white space between them already: `data/chunk_books.py` leaves all of it in the chunks and says so in the
file, whose chunks are joined as they are.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from lit_gpt.errors import DataError
from utils.prepare.file_formats import ARROW, PARQUET, CorpusFile
from utils.prepare.rows import joined_values, table_schema
from utils.prepare.word_cuts import cut_between_words

CHUNK_COLUMNS = ["text", "source", "number", "position"]
"""Columns of the chunks of books. `position` counts those of a book from 0."""
WHITE_SPACE_KEPT = {b"white_space": b"kept"}
"""What the metadata of a file says whose rows, joined, are the text."""


class JoinedText(NamedTuple):
    row: int
    """Where the document begins."""
    text: Any
    """UTF-8 bytes of a document or of a part of a long one; or what is no text, as `row_values` has it."""
    context: int = 0
    """How many of its first bytes repeat the part before."""
    ends: bool = True
    """Whether the document ends with it."""


def is_of_chunks(file: CorpusFile) -> bool:
    """Whether a file is a table with the columns of the chunks of books."""
    try:
        return file.format in (PARQUET, ARROW) and table_schema(file).names == CHUNK_COLUMNS
    except DataError:
        return False  # who reads its rows says what is wrong with it


def joined_texts(file: CorpusFile, size: int, text_field: str) -> Iterator[JoinedText]:
    """The documents of a file with a `join_field`, and what is no text in it.

    One that is longer than twice `size` bytes is cut between two words, so that no more is held in memory; the second
    part repeats the two words before the cut.

    Raises:
        DataError: if chunks of books are not in their order.
    """
    order = _Order(file) if file.join_field == "source" and is_of_chunks(file) else None
    is_exact = order is not None and WHITE_SPACE_KEPT.items() <= (table_schema(file).metadata or {}).items()
    text, context, begin = bytearray(), 0, -1
    last_key = None
    for row, (value, key, position) in enumerate(joined_values(file, size, text_field), start=file.begin):
        is_next = begin >= 0 and key is not None and key == last_key
        if order is not None:
            is_next = order.is_next(row, is_next, position)
        if not is_next:
            if begin >= 0:
                yield JoinedText(begin, bytes(text), context)
            text, context, begin = bytearray(), 0, row
        last_key = key
        if not isinstance(value, bytes):
            yield JoinedText(row, value)
            continue
        text += value if is_exact else _joint(text, value) + value
        while len(text) > context + 2 * size:
            end, repeated = cut_between_words(text, context, context + size)
            yield JoinedText(begin, bytes(text[:end]), context, ends=False)
            del text[: end - repeated]
            context = repeated
    if begin >= 0:
        yield JoinedText(begin, bytes(text), context)


def _joint(before: bytearray, after: bytes) -> bytes:
    has_space = not before or before[-1:].isspace() or after[:1].isspace()
    return b"" if has_space else b"\n\n"


class _Order:
    """Sees that the chunks of a book come one after the other, from the first one on."""

    def __init__(self, file: CorpusFile) -> None:
        self._file = file
        self._last: int | None = None

    def is_next(self, row: int, is_same: bool, position: Any) -> bool:
        """Whether a row continues the book of the row before, whose source is the same if `is_same`."""
        is_first, last = self._last is None, self._last
        self._last = position
        if is_same and last is not None and position == last + 1:
            return True
        # a part of a split may begin within a book
        if position == 0 or (is_first and self._file.span is not None):
            return False
        raise DataError(
            f"{self._file.path}: the chunk at position {position} is in row {row}, not behind the one before it in its"
            " book; sort the rows by source and position"
        )
