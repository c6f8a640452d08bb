"""A raw corpus: its datasets, their files, and the documents in these.

1. `find_sources` finds datasets: the folders of a tree, or of a list of files, and which of their files make a split.
2. `read_blocks` cuts a file into blocks of a few MB, at a document's end where there is one near; it says where a block
   lies, so that another process reads it, or holds the text where the file is compressed. Where blocks end depends on
   the file and the block size alone.
3. `parse` turns a block into documents: UTF-8, `\\n` line ends, no white space at the ends. What is no such document is
   an error, or is left out and named.

A text longer than two blocks is cut between two words, wherever that is; its second block repeats the two words before
the cut (`Block.context`), by which the tokens of the parts come out as those of the whole (`encoding.py`).
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from lit_gpt.errors import DataError, UserError
from utils.data.manifest import TEST, TRAIN
from utils.data.shards import shard_name

SPLIT_OF_FILE = {"full.txt": TRAIN, "train.txt": TRAIN, "test.txt": TEST}
CONVERSATIONS, PLAIN, LINES, PARQUET = "conversations", "plain", "lines", "parquet"
LINES_FILE = re.compile(r".+\.jsonl(\.gz|\.zst)?")
TEST_FILE = re.compile(r"(test|valid|validation|val|dev|eval)([-_.].*)?", flags=re.IGNORECASE)
"""Names of the JSON lines and Parquet files that are not for training."""
LIST_FILE = ".list"
MAX_LINE = 32 * 2**20
"""Bytes of a JSON line: json.loads needs some five times as much memory, what is tokenised some four times."""
READ = 1 << 20
BOM = b"\xef\xbb\xbf"
_ASCII_SPACES = rb"[\t\x0b\x0c\x1c-\x1f ]*"
_OTHER_SPACE = rb"\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80"
# of one simple set at a time: a choice that is repeated takes 100 bytes of memory per repetition
_SPACES = _ASCII_SPACES + rb"(?:(?:" + _OTHER_SPACE + rb")" + _ASCII_SPACES + rb")*"
_BLANK = re.compile(_SPACES)
_GAP = re.compile(rb"(?:\n|\r(?!\n))" + _SPACES + rb"(?:\r\n?|\n)")
_WORD_GAP = re.compile(r"(?<=\S)(?:\r\n|[ \r\n])(?=\S)")
_WITHIN_WORD = re.compile(r"\S(?=\S)")
_SEEN = 2**16
"""Bytes in which a place to cut a text is looked for."""


@dataclass(frozen=True)
class CorpusFile:
    """One file of a dataset and how it is read."""

    path: Path
    name: str
    """The path relative to the corpus, with `/`."""
    format: str


@dataclass(frozen=True)
class Source:
    """One split of a dataset."""

    dataset: str
    split: str
    files: tuple[CorpusFile, ...]

    @property
    def name(self) -> str:
        """What the files of this split are named by in a data folder: `FR--Theatre-train`."""
        return f"{self.dataset.replace('/', '--')}-{self.split}"

    @property
    def language(self) -> str:
        """`fr` for the dataset `FR/Theatre`; empty where the first part of the name is no language code."""
        first = self.dataset.split("/")[0].lower()
        return first if re.fullmatch("[a-z]{2,3}", first) else ""


class Bad(NamedTuple):
    """What is no document: no UTF-8, a NUL character, broken JSON, a missing field; `at` is a byte, or a row."""

    reason: str
    at: int
    problem: str


class Block(NamedTuple):
    """A part of a corpus file: where it lies, or its text.

    begin, end: bytes of the (unpacked) file, or rows of a Parquet file; context ≤ begin: where the repeated words begin
    if the block goes on with the document before it; `ends`: whether its last document ends with it.
    payload: the text from `context` to `end`, or the Parquet file's values; None where the file is to be read.
    """

    file: CorpusFile
    context: int
    begin: int
    end: int
    ends: bool
    payload: bytes | list[Any] | None

    @property
    def continues(self) -> bool:
        return self.context < self.begin

    @property
    def size(self) -> int:
        """Bytes of text."""
        if self.file.format == PARQUET:
            return sum(map(_size, self.payload or []))
        return self.end - self.begin


class Document(NamedTuple):
    """A document's UTF-8 text, or a part of a long one, and the byte or row of the file where it begins.

    `context`: how many of its first bytes repeat the part before; `ends`: whether the document ends with it.
    """

    text: bytes
    at: int
    context: int = 0
    ends: bool = True


def find_sources(source_path: Path, log: Callable[[str], None] = print) -> list[Source]:
    """The splits of the datasets in a folder tree, of the files that a list names, or of one file, by dataset name.

    A dataset is a folder that holds full.txt, or train.txt and/or test.txt (conversations), `*.jsonl`, `*.jsonl.gz`,
    `*.jsonl.zst` or `*.parquet`; in a tree without conversations each other `*.txt` file is one document.

    Raises:
        UserError: if `source_path` does not exist.
        DataError: if there is no dataset, or one cannot be told from another.
        OSError: if a directory cannot be read.
    """
    if source_path.is_dir():
        folders = [(folder.relative_to(source_path).as_posix(), folder, names) for folder, names in _walk(source_path)]
    elif source_path.is_file():
        folders = _listed(source_path)
    else:
        raise UserError(f"--source_path: {source_path} is neither a directory nor a file")
    conversational = any(name in SPLIT_OF_FILE for *_, names in folders for name in names)
    found: dict[tuple[str, str], list[CorpusFile]] = {}
    ignored = 0
    for relative, folder, names in folders:
        if "full.txt" in names and (others := names & {"train.txt", "test.txt"}):
            other = max(others)  # train.txt where both are there
            raise DataError(f"{folder} has full.txt and {other}; keep either full.txt, or train.txt and test.txt")
        dataset = _name(folder) if relative == "." else relative
        if not dataset.isprintable():
            raise DataError(f"the name of the folder {dataset!r} is no readable text; rename it")
        for name in sorted(names):
            if kind := _kind_of(name, conversational):
                file = CorpusFile(folder / name, name if relative == "." else f"{relative}/{name}", kind[1])
                found.setdefault((dataset, kind[0]), []).append(file)
            else:
                ignored += name.endswith(".txt")
    if ignored:
        log(f"ignored {ignored} other .txt files: beside full.txt, train.txt and test.txt they are taken for notes")
    if not found:
        kinds = "full.txt, train.txt, test.txt, *.txt, *.jsonl or *.parquet"
        raise DataError(f"{source_path} holds no conversation and no other text: no folder in it has a {kinds}")
    sources = [Source(dataset, split, tuple(files)) for (dataset, split), files in found.items()]
    _require_names_of_their_own(sources)
    return sorted(sources, key=lambda source: (source.dataset, source.split != TRAIN))


def _require_names_of_their_own(sources: list[Source]) -> None:
    """Raises a `DataError` if two folders make one dataset, or two datasets would have one name for their shards."""
    by_prefix: dict[str, Path] = {}
    for source in sources:
        for file in source.files:
            other = by_prefix.setdefault(shard_name(source.dataset, source.split, 0, 1), file.path)
            if other.parent != file.path.parent:
                raise DataError(f"{other} and {file.path} would have the same shard names; rename a folder")


def _kind_of(name: str, conversational: bool) -> tuple[str, str] | None:
    """The split and the format of a file by its name, None for what is no corpus file."""
    split = TEST if TEST_FILE.fullmatch(name) else TRAIN
    if name in SPLIT_OF_FILE:
        return SPLIT_OF_FILE[name], CONVERSATIONS
    if LINES_FILE.fullmatch(name):
        return split, LINES
    if name.endswith(".parquet"):
        return split, PARQUET
    return (TRAIN, PLAIN) if name.endswith(".txt") and not conversational else None


def _listed(path: Path) -> list[tuple[str, Path, set[str]]]:
    """The dataset, the folder and the names of the files that `path`, a `.list` file, names by line, or of `path`.

    A dataset is named by its folder as the list has it, or by the folder's own name where that is outside.
    """
    if path.suffix != LIST_FILE:
        if _kind_of(path.name, False) is None:
            raise UserError(f"--source_path: {path} is none of *.txt, *.jsonl(.gz/.zst), *.parquet and *{LIST_FILE}")
        return [(".", path.parent, {path.name})]
    folders: dict[Path, set[str]] = {}
    seen: set[Path] = set()
    lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")  # as Python has file names
    for number, line in enumerate(lines, start=1):
        file = Path(line.strip())
        if not line.strip():
            continue
        if not (path.parent / file).is_file():
            raise UserError(f"{path}, line {number}: {path.parent / file} does not exist")
        if _kind_of(file.name, False) is None:
            raise UserError(f"{path}, line {number}: {file} is none of *.txt, *.jsonl(.gz/.zst) and *.parquet")
        if (path.parent / file).resolve() in seen:
            raise UserError(f"{path}, line {number}: {file} is there twice")
        seen.add((path.parent / file).resolve())
        folders.setdefault(file.parent, set()).add(file.name)
    all_names = {name for names in folders.values() for name in names}
    if all_names & SPLIT_OF_FILE.keys() and (notes := sorted(n for n in all_names if not _kind_of(n, True))):
        raise UserError(f"{path}: {notes[0]} is no conversation, and beside conversations *.txt files are not read")
    found = []
    for folder, names in folders.items():
        is_outside = folder.is_absolute() or ".." in folder.parts
        place = path.parent / folder
        found.append((_name(place) if is_outside else folder.as_posix(), place, names))
    return found


def _name(folder: Path) -> str:
    return folder.resolve().name or "corpus"  # the root directory has no name


def _walk(top: Path) -> Iterator[tuple[Path, set[str]]]:
    """Every folder from `top` down and the names of its files; follows links, but yields no folder twice."""

    def fail(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    for folder, subfolders, names in os.walk(top, followlinks=True, onerror=fail):
        if os.path.realpath(folder) in seen:
            subfolders.clear()
            continue
        seen.add(os.path.realpath(folder))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield Path(folder), {name for name in names if not name.startswith(".")}


def read_blocks(file: CorpusFile, size: int, text_field: str) -> Iterator[Block]:
    """The blocks of a file, of at most `size` bytes of text where documents are shorter.

    Raises:
        DataError: if the file is not what its name says, or is truncated.
        OSError: if it cannot be read.
    """
    if file.format == PARQUET:
        yield from _parquet_blocks(file, size, text_field)
        return
    packed = file.path.suffix in (".gz", ".zst")
    with unpacked(file.path) as stream:
        head = stream.read(len(BOM))
        begin, head = (len(BOM), b"") if head == BOM else (0, head)
        if file.format == LINES:
            spans = _lines(stream, head, min(size, MAX_LINE), packed)
        else:
            spans = _texts(stream, head, size, file.format, packed)
        for context, text, length, ends in spans:
            yield Block(file, begin - context, begin, begin + length, ends, text if packed else None)
            begin += length


class _Span(NamedTuple):
    """A block as it is cut: bytes of context, the text with it, the bytes it goes on by, whether a document ends.

    The text may be empty where it is not to be kept.
    """

    context: int
    text: bytes
    length: int
    ends: bool


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
        parts, length, rest = [buffer], len(buffer), b""
        while more := stream.read(READ):
            line, line_end, rest = more.partition(b"\n")
            length += len(line) + len(line_end)
            if keep and length <= MAX_LINE:
                parts += [line, line_end]
            else:
                parts.clear()
            if line_end:
                break
        yield _Span(0, b"".join(parts), length, True)
        buffer = rest


def _texts(stream: IO[bytes], buffer: bytes, size: int, file_format: str, keep: bool) -> Iterator[_Span]:
    """Texts up to a blank line between conversations: the last one within `size`, else the first one after it.

    If neither that nor the file's end is within another `size`, the text is cut between two words.
    """
    context = 0
    can_skip = file_format == CONVERSATIONS and not keep
    while True:
        if can_skip and not context and (length := _skip_to_last(b"\n\n", stream, len(buffer), size)):
            yield _Span(0, b"", length, True)
            buffer = b""
            continue
        if len(buffer := _read_to(stream, buffer, context + size + 1)) <= context + size:
            break
        end = following = 0
        if file_format == CONVERSATIONS:
            end = _last_gap(buffer, context, context + size)
        if not end:
            most = context + 2 * size
            buffer = _read_to(stream, buffer, most + 1)
            gap = _GAP.search(buffer, context, most) if file_format == CONVERSATIONS else None
            end = gap.end() if gap else len(buffer) if len(buffer) <= most else 0
        ends = end > 0
        if not ends:
            end, following = cut_between_words(buffer, context, context + size)
        yield _Span(context, buffer[:end], end - context, ends)
        buffer, context = buffer[end - following :], following
    if len(buffer) > context:
        yield _Span(context, buffer, len(buffer) - context, True)


def _skip_to_last(mark: bytes, stream: IO[bytes], ahead: int, size: int) -> int:
    """Moves a file behind the last `mark` among the `size` bytes that begin `ahead` bytes back; how far from there.

    0, and the file stays, if fewer bytes follow or the mark is none of the last 64 KB: so a block is found without
    reading it.
    """
    here, seen = stream.tell(), min(_SEEN, size)
    begin = here - ahead + size - seen
    stream.seek(begin)
    tail = stream.read(seen + 1)
    found = tail.rfind(mark, 0, seen) if len(tail) > seen else -1
    stream.seek(here if found < 0 else begin + found + len(mark))
    return 0 if found < 0 else size - seen + found + len(mark)


def _last_gap(buffer: bytes, start: int, end: int) -> int:
    """Where the last blank line between `start` and `end` ends, 0 if there is none."""
    if (found := buffer.rfind(b"\n\n", start, end)) >= 0:
        return found + 2
    return max((gap.end() for gap in _GAP.finditer(buffer, start, end)), default=0)


def cut_between_words(buffer: bytes, start: int, target: int) -> tuple[int, int]:
    """The last place after `start`, up to `target`, where a word ends, and the length of the two words before it.

    Two, because what a tokenizer makes of a text's first word is not what it makes of it elsewhere. Where a line ends
    is better, if a letter is there: some tokenizers (Llama 3's) put a full stop and the line's end into one token.

    Where there is no such place in the last 64 KB the text is cut between two characters, and there are no such words;
    white space is then kept only if somewhere two characters stand together.
    """
    target -= next((back for back in range(4) if buffer[target - back] & 0xC0 != 0x80), 0)
    begin = max(0, target - _SEEN)
    text = buffer[begin:target].decode("utf-8", "surrogateescape")
    floor = len(buffer[begin:start].decode("utf-8", "surrogateescape"))
    gaps = [gap.span() for gap in _WORD_GAP.finditer(text)]
    usable = [number for number in range(2, len(gaps)) if gaps[number][0] > floor]
    words = [number for number in usable if text[gaps[number][0]] == " " or text[gaps[number][0] - 1].isalnum()]
    lines = [number for number in words if text[gaps[number][0]] != " "]
    if usable:
        number = (lines or words or usable)[-1]
        end, two_words = gaps[number][0], gaps[number - 2][1]
        return begin + _size(text[:end]), _size(text[two_words:end])
    ends = [place.end() for place in _WITHIN_WORD.finditer(text, floor)]
    return (begin + _size(text[: ends[-1]]) if ends else target), 0


def _size(value: Any) -> int:
    """Bytes of a text; of what is none, 0."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogateescape"))
    return len(value) if isinstance(value, bytes) else 0


def _read_to(stream: IO[bytes], buffer: bytes, size: int) -> bytes:
    """`buffer` with what it takes of `stream` to have `size` bytes, if there is so much."""
    parts = [buffer]
    missing = size - len(buffer)
    while missing > 0 and (more := stream.read(min(missing, 16 * READ))):
        parts.append(more)
        missing -= len(more)
    return b"".join(parts) if len(parts) > 1 else buffer


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked where its name ends in .gz or .zst.

    Raises:
        UserError: if a .zst file needs pyarrow, which is not installed.
        DataError: if it is truncated or no such file.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                yield stream
        elif path.suffix == ".zst":
            with _pyarrow().input_stream(str(path), compression="zstd") as stream:
                yield stream
        else:
            with path.open("rb") as stream:
                yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise DataError(f"{path} is truncated or no {path.suffix} file: {e}") from None
    except OSError as e:
        if path.suffix != ".zst" or e.errno is not None:
            raise
        raise DataError(f"{path} is truncated or no .zst file: {e}") from None


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise UserError("*.parquet and *.jsonl.zst need pyarrow: pip install pyarrow") from None
    return pyarrow


def _parquet_blocks(file: CorpusFile, size: int, text_field: str) -> Iterator[Block]:
    arrow = _pyarrow()
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file.path, buffer_size=READ) as table:
            if text_field not in table.schema_arrow.names:
                names = ", ".join(table.schema_arrow.names)
                raise DataError(f"{file.path} has no column '{text_field}' but {names}; give --text_field")
            row_bytes = sum(table.metadata.row_group(group).total_byte_size for group in range(table.num_row_groups))
            rows = max(1, min(128, size * table.metadata.num_rows // max(1, row_bytes)))
            values: list[Any] = []
            begin = held = 0
            batches = table.iter_batches(batch_size=rows, columns=[text_field])
            for value in chain.from_iterable(_values(batch.column(0)) for batch in batches):
                values.append(value)
                held += _size(value)
                if held >= size:
                    yield Block(file, begin, begin, begin + len(values), True, values)
                    values, begin, held = [], begin + len(values), 0
            if values:
                yield Block(file, begin, begin, begin + len(values), True, values)
    except (arrow.ArrowException, OSError) as e:
        if isinstance(e, OSError) and e.errno is not None:
            raise
        raise DataError(f"{file.path} is truncated or no Parquet file: {str(e).partition(chr(10))[0]}") from None


def _values(column: Any) -> list[Any]:
    """The values of an Arrow array, text as bytes: Arrow does not say which one is no UTF-8."""
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if types.is_string(column.type) or types.is_large_string(column.type) or types.is_string_view(column.type):
        column = column.cast("large_binary")
    return column.to_pylist()


def read_bytes(block: Block) -> bytes:
    """The text of a block of anything but a Parquet file, its context before it."""
    if isinstance(block.payload, bytes):
        return block.payload
    with block.file.path.open("rb") as file:
        file.seek(block.context)
        return file.read(block.end - block.context)


def parse(block: Block, text_field: str) -> tuple[list[Document], list[Bad]]:
    """The documents of a block, and what is none."""
    if block.file.format == PARQUET:
        assert isinstance(block.payload, list)
        found = [_from_value(value, row, text_field) for row, value in enumerate(block.payload, start=block.begin)]
    elif block.file.format == LINES:
        found = list(_from_lines(block, text_field))
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
    """The documents between blank lines; `offset` is where `content` lies in the file."""
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
            begin = begin if block else offset
            block += line
        elif block:
            yield from _from_bytes(bytes(block), begin)
            block.clear()
        offset += len(line)
    if block:
        yield from _from_bytes(bytes(block), begin)


def _from_bytes(content: bytes, offset: int) -> Iterator[Document | Bad]:
    """`content`, which lies at `offset`, as one document; nothing where it is white space."""
    if bad := _problem(content):
        yield bad._replace(at=offset + bad.at)
    elif text := _strip(_with_line_feeds(content)):
        yield Document(text, offset)


def _problem(content: bytes) -> Bad | None:
    """Why `content` is no text, and where."""
    nul, broken = content.find(0), _first_broken(content)
    if nul >= 0 and (broken < 0 or nul < broken):
        return Bad("nul", nul, "a NUL character")
    return Bad("not_utf8", broken, "no valid UTF-8") if broken >= 0 else None


def _from_lines(block: Block, text_field: str) -> Iterator[Document | Bad]:
    if (length := block.end - block.begin) > MAX_LINE:
        yield Bad("line_too_long", block.begin, f"a line of {length:,} bytes, above the {MAX_LINE:,} that are read")
        return
    at = block.begin
    for line in read_bytes(block).split(b"\n"):
        if line.strip():
            yield _from_json(line, at, text_field)
        at += len(line) + 1


def _from_json(line: bytes, at: int, text_field: str) -> Document | Bad:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return Bad("broken_json", at, "a line that is no JSON")
    if not isinstance(values, dict) or text_field not in values:
        return Bad("no_field", at, f"no field '{text_field}' (--text_field)")
    return _from_value(values[text_field], at, text_field)


def _from_value(value: Any, at: int, text_field: str) -> Document | Bad:
    """A field's value as a document; of an empty text it is one without tokens."""
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


def _with_line_feeds(content: bytes) -> bytes:
    return content.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in content else content


def _strip(text: bytes) -> bytes:
    """`text` without white space at its ends, as `str.strip` knows it."""
    text = text.strip()
    if text and not (0x20 < text[0] < 0x80 and 0x20 < text[-1] < 0x80):
        return text.decode().strip().encode()
    return text


def _first_broken(content: bytes) -> int:
    """Offset of the first byte that is no UTF-8, -1 if there is none."""
    if content.isascii():
        return -1
    try:
        content.decode()
    except UnicodeDecodeError as e:
        return e.start
    return -1
