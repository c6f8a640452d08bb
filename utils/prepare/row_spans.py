"""Some rows of a file, for splits such as `train[:1000]`: how many there are, and where those begin and end."""

import io
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from lit_gpt.errors import UserError
from utils.prepare.chat.conversation import Fields
from utils.prepare.file_formats import ARROW, LINES, PARQUET, ROWS, CorpusFile
from utils.prepare.rows import count_of_table, row_records
from utils.prepare.unpacking import READ, packing_of, skip, unpacked


def count_rows(file: CorpusFile) -> int:
    if file.format == LINES:
        return sum(1 for _ in _lines(file))
    if file.format in (PARQUET, ARROW):
        return count_of_table(file)
    if file.format in ROWS:
        return sum(count for _, count in row_records(file, READ, Fields((), None)))
    raise UserError(f"{file.name} is text, which has no rows: a part of a split is of records")


def with_rows(file: CorpusFile, begin: int, end: int) -> CorpusFile:
    """The file with the rows from `begin` up to `end` alone, of which there is at least one."""
    if file.format != LINES:
        return replace(file, span=(begin, end))
    for number, line in enumerate(_lines(file)):
        if number == begin:
            first = line[0]
        if number == end - 1:
            return replace(file, span=(first, line[1]))
    raise AssertionError("the file has fewer rows")


def first_rows(file: CorpusFile, count: int) -> CorpusFile:
    """The file with its first `count` rows, or all that there are."""
    if file.format != LINES:
        begin, end = file.span or (0, count)
        return replace(file, span=(begin, min(end, begin + count)))
    begin, end = 0, 0
    for number, line in enumerate(islice(_lines(file), count)):
        begin, end = line if not number else (begin, line[1])
    return replace(file, span=(begin, end)) if end else file


def _lines(file: CorpusFile) -> Iterator[tuple[int, int]]:
    """Where each line that is read and not blank begins and ends, in bytes of the unpacked file."""
    at, end = file.span or (0, None)
    begin, is_blank = at, True
    for piece in _pieces(file, at):
        at += len(piece)
        is_blank = is_blank and not piece.strip()
        if piece.endswith(b"\n"):
            if not is_blank:
                yield begin, at
            begin, is_blank = at, True
        if end is not None and at >= end:
            break
    if not is_blank:
        yield begin, at


def _pieces(file: CorpusFile, begin: int) -> Iterator[bytes]:
    """The lines of a file from there on, those of over 1 MB in several pieces."""
    with unpacked(file.path) as stream:
        skip(stream, begin, packing_of(file.path) != "")
        with io.BufferedReader(stream, READ) as reader:
            while piece := reader.readline(READ):
                yield piece
