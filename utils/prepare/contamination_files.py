"""The texts of test files, with which a corpus is compared: all strings of JSON, or the paragraphs of a text."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lit_gpt.errors import DataError, UserError
from utils.prepare.blocks import MAX_LINE
from utils.prepare.unpacking import READ, packing_of, unpacked

_JSON, _TEXT = (".jsonl", ".ndjson", ".json"), (".txt", ".md")
_GAP = re.compile(r"\n\s*\n")
_LONG = 4 * READ  # characters from which on a paragraph is given in parts


def require_readable(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"--contamination: {path} is no file")
    if _suffix(path) not in _JSON + _TEXT:
        kinds = " ".join(f"*{suffix}" for suffix in _JSON + _TEXT)
        raise UserError(f"--contamination: {path} is none of {kinds} (each also .gz, .bz2, .xz, .zst)")


def read_texts(path: Path, repeated: int) -> Iterator[str]:
    """Every text of a test file; a long one in parts, of which each repeats the last `repeated` blanks of the one
    before and what is behind them.

    Raises a DataError for what is not UTF-8 or no JSON, and for a line of over 32 MB.
    """
    with unpacked(path) as stream:
        if _suffix(path) not in _JSON:
            yield from _paragraphs(path, stream, repeated)
            return
        for value in _values(path, stream):
            yield from _strings(value)


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if packing_of(path) else path).suffix.lower()


def _paragraphs(path: Path, stream: IO[bytes], repeated: int) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    rest, done = "", False
    while not done:
        chunk = stream.read(READ)
        done = not chunk
        try:
            rest += decoder.decode(chunk, final=done)
        except UnicodeDecodeError:
            raise DataError(f"--contamination: {path} is no UTF-8") from None
        *whole, rest = _GAP.split(rest.replace("\r\n", "\n"))
        yield from whole
        if len(rest) > _LONG:
            yield rest
            rest = " ".join(rest[-64 * repeated :].split(" ")[-repeated - 1 :])
    yield rest


def _values(path: Path, stream: IO[bytes]) -> Iterator[Any]:
    """Each line's value; of a JSON array the whole."""
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        is_whole = _suffix(path) == ".json" and number == 1 and not line.rstrip().endswith((b"}", b'"'))
        if is_whole:  # an array, or one value over several lines
            line += stream.read(MAX_LINE)
        if len(line) > MAX_LINE:
            raise DataError(f"--contamination: {path}: above 32 MB in line {number}; make it JSON lines (*.jsonl)")
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"--contamination: {path}: no JSON in line {number}") from None


def _strings(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            waiting += reversed(value)
        elif isinstance(value, dict):
            waiting += reversed(value.values())
