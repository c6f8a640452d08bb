"""The documents of a block: UTF-8, `\\n` line ends, no white space at the ends; and what in it is not a document."""

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from utils.prepare.blocks import MAX_LINE, SPACES, TextBlock, read_bytes
from utils.prepare.file_formats import LINES, PLAIN, ROWS, CorpusFile
from utils.prepare.joined_rows import JoinedText
from utils.prepare.rows import BadRow, no_field

_BLANK = re.compile(SPACES)


Read = TypeVar("Read")


class Bad(NamedTuple):
    reason: str  # not_utf8, nul, broken_json, bad_row, no_field or line_too_long
    at: int  # the byte or row of the file
    problem: str


class Document(NamedTuple):
    text: bytes  # UTF-8, of a whole document or a part of a long one
    at: int  # the byte or row of the file where it begins
    context: int = 0  # how many of its first bytes repeat the part before
    ends: bool = True  # whether the document ends with it

    @property
    def is_whole(self) -> bool:
        return self.ends and not self.context


def parse(block: TextBlock, text_field: str) -> tuple[list[Document], list[Bad]]:
    """The documents of a block, and what in it is not a document; `text_field` names a JSON line's field."""
    text_field = block.file.text_field or text_field
    if block.file.join_field:
        assert isinstance(block.payload, list)
        found = [_from_joined(joined, text_field) for joined in block.payload]
    elif block.file.format in ROWS:
        assert isinstance(block.payload, list)
        found = [_from_value(value, row, text_field) for row, value in enumerate(block.payload, start=block.begin)]
    elif block.file.format == LINES:
        found = list(json_lines(block, partial(_from_json, text_field=text_field)))
    elif block.file.format == PLAIN:
        found = list(_from_bytes(read_bytes(block), block.context))
    else:
        found = list(_conversations(read_bytes(block), block.context))
    if block.continues and found and found[0].at == block.context and isinstance(found[0], Document):
        words = read_bytes(block)[: block.begin - block.context]
        found[0] = found[0]._replace(context=len(_with_line_feeds(words)))
    if not block.ends and found and isinstance(found[-1], Document):
        found[-1] = found[-1]._replace(ends=False)
    documents = [document for document in found if isinstance(document, Document)]
    return documents, [bad for bad in found if isinstance(bad, Bad)]


def _conversations(content: bytes, offset: int) -> Iterator[Document | Bad]:
    """The documents between blank lines; `offset` is the byte of the file where `content` begins."""
    if b"\r" in content or b"\0" in content or _first_broken(content) >= 0:
        yield from _conversations_by_line(content, offset)
        return
    letters = np.frombuffer(content, np.uint8)
    ends = np.append(np.flatnonzero(letters == 0x0A), len(letters))
    starts = np.append(0, ends[:-1] + 1)
    blank = ends == starts
    for line in np.flatnonzero(~blank & _MAY_BE_SPACE[letters[np.minimum(starts, len(letters) - 1)]]).tolist():
        blank[line] = _BLANK.fullmatch(content, int(starts[line]), int(ends[line])) is not None
    first = starts[~blank & np.append(True, blank[:-1])].tolist()
    last = ends[~blank & np.append(blank[1:], True)].tolist()
    for start, end in zip(first, last, strict=True):
        yield Document(_strip(content[start:end]), offset + start)


_MAY_BE_SPACE = np.zeros(256, bool)
_MAY_BE_SPACE[[9, 11, 12, 28, 29, 30, 31, 32, 0xC2, 0xE1, 0xE2, 0xE3]] = True  # first bytes of what `_SPACE` matches


def _conversations_by_line(content: bytes, offset: int) -> Iterator[Document | Bad]:
    """As `_conversations`, for text with `\\r`, NUL or invalid UTF-8, whose documents are looked at one by one."""
    block, begin = bytearray(), 0
    for line in content.splitlines(keepends=True):
        if line.decode("utf-8", "replace").strip():
            if not block:
                begin = offset
            block += line
        elif block:
            yield from _from_bytes(bytes(block), begin)
            block.clear()
        offset += len(line)
    if block:
        yield from _from_bytes(bytes(block), begin)


def _from_bytes(content: bytes, offset: int) -> Iterator[Document | Bad]:
    if bad := _problem(content):
        yield bad._replace(at=offset + bad.at)
    elif text := _strip(_with_line_feeds(content)):
        yield Document(text, offset)


def _problem(content: bytes) -> Bad | None:
    nul, broken = content.find(0), _first_broken(content)
    if nul >= 0 and (broken < 0 or nul < broken):
        return Bad("nul", nul, "a NUL character")
    if broken >= 0:
        return Bad("not_utf8", broken, "no valid UTF-8")
    return None


def json_lines(block: TextBlock, read: Callable[[bytes, int], Read]) -> Iterator[Read | Bad]:
    """What `read` makes of each line that is not blank and the byte where it begins; or that a line is too long."""
    if (length := block.end - block.begin) > MAX_LINE:
        yield Bad("line_too_long", block.begin, f"a line of {length:,} bytes, above the {MAX_LINE:,} that are read")
        return
    at = block.begin
    for line in read_bytes(block).split(b"\n"):
        if line.strip():
            yield read(line, at)
        at += len(line) + 1


def _from_json(line: bytes, at: int, *, text_field: str) -> Document | Bad:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return Bad("broken_json", at, "a line that is no JSON")
    if not isinstance(values, dict) or text_field not in values:
        return Bad("no_field", at, no_field(text_field, values))
    return _from_value(values[text_field], at, text_field)


def _from_value(value: Any, at: int, text_field: str) -> Document | Bad:
    if isinstance(value, BadRow):
        return Bad(value.reason, at, value)
    if isinstance(value, str):
        try:
            value = value.encode()
        except UnicodeEncodeError:
            return Bad("not_utf8", at, "half of a surrogate pair")
    if not isinstance(value, bytes):
        return Bad("no_field", at, f"the field '{text_field}' is {type(value).__name__}, no text,")
    if bad := _problem(value):
        return bad._replace(at=at)
    return Document(_strip(_with_line_feeds(value)), at)


def _from_joined(joined: JoinedText, text_field: str) -> Document | Bad:
    document = _from_value(joined.text, joined.row, text_field)
    if isinstance(document, Bad):
        return document
    context = len(_with_line_feeds(joined.text[: joined.context]))
    return document._replace(context=context, ends=joined.ends)


def _with_line_feeds(content: bytes) -> bytes:
    if b"\r" not in content:
        return content
    return content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _strip(text: bytes) -> bytes:
    """`text` without white space at its ends, as `str.strip` knows it."""
    text = text.strip()
    if text and not (0x20 < text[0] < 0x80 and 0x20 < text[-1] < 0x80):
        return text.decode().strip().encode()
    return text


def _first_broken(content: bytes) -> int:
    """Offset of the first byte that is not UTF-8, -1 if there is none."""
    if content.isascii():
        return -1
    try:
        content.decode()
    except UnicodeDecodeError as e:
        return e.start
    return -1


def problem_message(file: CorpusFile, bad: Bad) -> str:
    position = f"in row {bad.at}" if file.format in ROWS else f"at byte offset {bad.at}"
    is_encoded = bad.reason == "not_utf8" and file.format == PLAIN
    way_out = "; data/clean_gutenberg.py makes UTF-8 of other encodings" if is_encoded else ""
    return f"{file.path}: {bad.problem} {position}{way_out}"
