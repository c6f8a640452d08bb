"""The files of a corpus cut into blocks of a few MB, which processes then turn into documents by themselves.

A block says where it is in its file, or holds the text where the file is compressed. It ends with a document where one
ends near. A text longer than two blocks is cut between two words; its second block repeats the two words before the cut
(`TextBlock.context`), by which the tokens of the parts come out as those of the whole (`encoding.py`). Where blocks end
depends on the file and the block size alone.
"""

import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from itertools import count
from typing import IO, Any, NamedTuple

from utils.prepare.chat.conversation import Fields
from utils.prepare.file_formats import CONVERSATIONS, LINES, ROWS, CorpusFile
from utils.prepare.joined_rows import JoinedText, joined_texts
from utils.prepare.rows import row_records, row_values
from utils.prepare.unpacking import READ, packing_of, skip, unpacked
from utils.prepare.word_cuts import SEEN, cut_between_words

MAX_LINE = 32 * 2**20  # bytes of a JSON line: json.loads takes five times as much memory, tokenising four times
_ASCII_SPACES = rb"[\t\x0b\x0c\x1c-\x1f ]*"
_OTHER_SPACE = rb"\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80"
# a line's white space as UTF-8; one simple set at a time, since a repeated choice takes 100 bytes per repetition
SPACES = _ASCII_SPACES + rb"(?:(?:" + _OTHER_SPACE + rb")" + _ASCII_SPACES + rb")*"
_GAP = re.compile(rb"(?:\n|\r(?!\n))" + SPACES + rb"(?:\r\n?|\n)")


class TextBlock(NamedTuple):
    """A part of a corpus file: its position, or its text. Positions count bytes of the unpacked file, or rows."""

    file: CorpusFile
    context: int  # where the repeated words begin if the block continues a document; else `begin`
    begin: int
    end: int
    ends: bool  # whether its last document ends with it
    # the text from `context` on, the rows' values (of joined rows `JoinedText`s), or their records as Arrow's stream;
    # None if the file is to be read
    payload: bytes | list[Any] | None

    @property
    def continues(self) -> bool:
        return self.context < self.begin

    @property
    def size(self) -> int:
        if self.file.format in ROWS and isinstance(self.payload, list):
            return sum(map(_size, self.payload))
        if self.file.format in ROWS:
            return _size(self.payload)
        return self.end - self.begin


def read_blocks(file: CorpusFile, size: int, fields: str | Fields) -> Iterator[TextBlock]:
    """Blocks of at most `size` bytes where documents are shorter; a DataError if the file is truncated or misnamed.

    Args:
        fields: the one that holds the text, for `documents.parse`; or those of whole records, for `parse_records`.
    """
    if isinstance(fields, str):
        fields = file.text_field or fields
    if file.join_field and isinstance(fields, str):
        yield from _joined_blocks(file, size, fields)
        return
    if file.format in ROWS:
        yield from _row_blocks(file, size, fields) if isinstance(fields, str) else _record_blocks(file, size, fields)
        return
    packed = packing_of(file.path) != ""
    with unpacked(file.path) as stream:
        begin, head = 0, stream.read(len(BOM_UTF8))
        if file.begin:
            begin, head = file.begin, head[file.begin :]
            skip(stream, begin - len(BOM_UTF8), packed)
        elif head == BOM_UTF8:
            begin, head = len(BOM_UTF8), b""
        if file.format == LINES:
            spans = _lines(stream, head, min(size, MAX_LINE), packed)
        else:
            spans = _texts(stream, head, size, file.format, packed)
        for span in spans:
            end = begin + span.length
            text = span.text
            if file.span is not None and end >= file.span[1]:
                end = file.span[1]
                text = text[: end - begin]
            yield TextBlock(file, begin - span.context, begin, end, span.ends, text if packed else None)
            if file.span is not None and end == file.span[1]:
                return
            begin = end


class _Span(NamedTuple):
    context: int  # bytes that repeat the end of the span before
    text: bytes  # the context and what follows it; may be empty where it is not to be kept
    length: int  # bytes of the file that the span takes, without the context
    ends: bool  # whether a document ends with it


def _lines(stream: IO[bytes], buffer: bytes, size: int, keep: bool) -> Iterator[_Span]:
    """Whole lines, or one that is longer than `size`; of one above `MAX_LINE`, or unless `keep`, the length alone."""
    while True:
        if not keep and (length := _skip_to_last(b"\n", stream, len(buffer), size)):
            yield _Span(0, b"", length, True)
            buffer = b""
            continue
        if not (buffer := _read_to(stream, buffer, size)):
            return
        end = (buffer.rfind(b"\n", 0, size) + 1) or (buffer.find(b"\n", size) + 1)
        if not end and len(buffer) < size:
            end = len(buffer)
        if end:
            yield _Span(0, buffer[:end], end, True)
            buffer = buffer[end:]
            continue
        span, buffer = _long_line(stream, buffer, keep)
        yield span


def _long_line(stream: IO[bytes], begin: bytes, keep: bool) -> tuple[_Span, bytes]:
    """The line that begins with `begin`, read to its end, and what was read behind it."""
    parts, length, rest = [begin], len(begin), b""
    while more := stream.read(READ):
        line, line_end, rest = more.partition(b"\n")
        length += len(line) + len(line_end)
        if keep and length <= MAX_LINE:
            parts += [line, line_end]
        else:
            parts.clear()
        if line_end:
            break
    return _Span(0, b"".join(parts), length, True), rest


def _texts(stream: IO[bytes], buffer: bytes, size: int, file_format: str, keep: bool) -> Iterator[_Span]:
    """Texts up to a blank line between conversations: the last one within `size`, else the first one after it.

    If neither that nor the file's end is within another `size`, the text is cut between two words.
    """
    context = 0
    has_gaps = file_format == CONVERSATIONS
    while True:
        if has_gaps and not keep and not context and (length := _skip_to_last(b"\n\n", stream, len(buffer), size)):
            yield _Span(0, b"", length, True)
            buffer = b""
            continue
        if len(buffer := _read_to(stream, buffer, context + size + 1)) <= context + size:
            break
        end = _last_gap(buffer, context, context + size) if has_gaps else 0
        if not end:
            most = context + 2 * size
            buffer = _read_to(stream, buffer, most + 1)
            if has_gaps and (gap := _GAP.search(buffer, context, most)):
                end = gap.end()
            elif len(buffer) <= most:
                end = len(buffer)
        ends, repeated = end > 0, 0
        if not ends:
            end, repeated = cut_between_words(buffer, context, context + size)
        yield _Span(context, buffer[:end], end - context, ends)
        buffer, context = buffer[end - repeated :], repeated
    if len(buffer) > context:
        yield _Span(context, buffer, len(buffer) - context, True)


def _skip_to_last(mark: bytes, stream: IO[bytes], ahead: int, size: int) -> int:
    """Moves a file behind the last `mark` of the `size` bytes that begin `ahead` bytes back, without reading them all.

    Returns how many of these it skipped; 0 and no move if fewer than `size` follow or the last 64 KB have no mark.
    """
    here, seen = stream.tell(), min(SEEN, size)
    begin = here - ahead + size - seen
    stream.seek(begin)
    tail = stream.read(seen + 1)
    found = tail.rfind(mark, 0, seen) if len(tail) > seen else -1
    if found < 0:
        stream.seek(here)
        return 0
    stream.seek(begin + found + len(mark))
    return size - seen + found + len(mark)


def _last_gap(buffer: bytes, start: int, end: int) -> int:
    """Where the last blank line ends, 0 if there is none."""
    if (found := buffer.rfind(b"\n\n", start, end)) >= 0:
        return found + 2
    return max((gap.end() for gap in _GAP.finditer(buffer, start, end)), default=0)


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogateescape"))
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, JoinedText):
        return _size(value.text) - value.context
    return len(value) if isinstance(value, bytes) else 0


def _read_to(stream: IO[bytes], buffer: bytes, size: int) -> bytes:
    parts = [buffer]
    missing = size - len(buffer)
    while missing > 0 and (more := stream.read(min(missing, 16 * READ))):
        parts.append(more)
        missing -= len(more)
    return b"".join(parts)


def _row_blocks(file: CorpusFile, size: int, text_field: str) -> Iterator[TextBlock]:
    """The rows of a table in blocks of at least `size` bytes of text, but for the last one."""
    return _blocks_of(file, size, zip(row_values(file, size, text_field), count(file.begin + 1)))


def _joined_blocks(file: CorpusFile, size: int, text_field: str) -> Iterator[TextBlock]:
    """As `_row_blocks`, of rows that are joined: a document of over two blocks comes in parts."""
    return _blocks_of(file, size, ((text, text.row + 1) for text in joined_texts(file, size, text_field)))


def _blocks_of(file: CorpusFile, size: int, rows: Iterable[tuple[Any, int]]) -> Iterator[TextBlock]:
    """Blocks of values, each of which comes with the number of the row after it."""
    values: list[Any] = []
    begin = past = file.begin
    held = 0
    for value, past in rows:
        values.append(value)
        held += _size(value)
        if held >= size:
            yield TextBlock(file, begin, begin, past, True, values)
            values, begin, held = [], past, 0
    if values:
        yield TextBlock(file, begin, begin, past, True, values)


def _record_blocks(file: CorpusFile, size: int, fields: Fields) -> Iterator[TextBlock]:
    begin = file.begin
    for payload, rows in row_records(file, size, fields):
        yield TextBlock(file, begin, begin, begin + rows, True, payload)
        begin += rows


def read_bytes(block: TextBlock) -> bytes:
    """The text of a block of anything but a table, with its context before it."""
    if isinstance(block.payload, bytes):
        return block.payload
    with block.file.path.open("rb") as file:
        file.seek(block.context)
        return file.read(block.end - block.context)
