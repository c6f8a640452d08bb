"""Which books are cut, how one of them is, and what is counted."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from lit_gpt.checksums import file_sha256
from lit_gpt.errors import DataError, UserError, naming
from utils.books.book_list import BOOKS, Book, is_book, listed_books
from utils.books.chunking import Border, Chunk, Sizes, cut
from utils.books.file_names import listing
from utils.books.options import ChunkOptions

VERSION = 1
"""Of how books are cut: a larger one makes what an earlier version made be made again."""


def books_to_cut(folder: Path, say: Callable[[str], None]) -> list[Book]:
    """The *.txt files of a folder by name, each with its SHA-256 and what books.csv says of it, if it is there.

    What a reader changed or removed after the cleaning is said and taken as it is.
    """
    if not folder.is_dir():
        raise UserError(f"--input_dir {folder} is no folder")
    files = sorted(path for path in folder.iterdir() if is_book(path))
    if not files:
        raise UserError(f"--input_dir {folder} has no *.txt file; data/clean_gutenberg.py makes such a folder")
    listed = listed_books(folder)
    with ThreadPoolExecutor(max_workers=8) as pool:  # hashing releases the GIL
        sums = list(pool.map(file_sha256, files))
    books = []
    changed = []
    for path, sha256 in zip(files, sums, strict=True):
        book = listed.pop(path.name, None) or Book(path.name, title=path.stem, encoding="utf-8")
        if book.sha256 not in ("", sha256):
            changed.append(path.name)
        books.append(replace(book, sha256=sha256))
    _say_names(say, changed, f"changed since {BOOKS} was written, and cut as they are now")
    _say_names(say, list(listed), f"listed in {BOOKS} and not in {folder}: left out")
    return books


def _say_names(say: Callable[[str], None], names: list[str], what: str) -> None:
    if names:
        say(f"{len(names):,} {'book is' if len(names) == 1 else 'books are'} {what}: {listing(names)}")


def digest(books: Sequence[Book], options: ChunkOptions) -> str:
    """SHA-256 of all that the folder of chunks depends on."""
    settings = [VERSION, version("sentencex"), options.chunk_target, options.chunk_min, options.licence]
    content = json.dumps([settings, [asdict(book) for book in books]])
    return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Cutter:
    """Cuts books of a folder; travels to other processes."""

    folder: Path
    sizes: Sizes

    def cut(self, book: Book) -> list[Chunk]:
        path = self.folder / book.file
        with naming(path):
            content = path.read_bytes()
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as e:
            raise DataError(
                f"{path} is not UTF-8 text (byte {e.start}); data/clean_gutenberg.py reads other encodings"
            ) from None
        return cut(text, self.sizes, book.language.partition(";")[0].strip().lower() or "en")


class ChunkCounts:
    """Counts chunks by their lengths, and by what they end with."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._chunks = self._characters = self._of_good_size = 0
        self._ends: Counter[Border] = Counter()

    def add(self, chunks: Sequence[Chunk]) -> None:
        lengths = [len(chunk.text) for chunk in chunks]
        self._chunks += len(chunks)
        self._characters += sum(lengths)
        self._of_good_size += sum(self._sizes.least <= length <= self._sizes.most for length in lengths)
        self._ends.update(chunk.end for chunk in chunks)

    def line(self) -> str:
        share = self._of_good_size / max(1, self._chunks)
        ends = ", ".join(f"{count:,} {border.description}" for border, count in sorted(self._ends.items()))
        return (
            f"{self._chunks:,} chunks of {self._characters:,} characters; {share:.1%} have {self._sizes.least:,} to"
            f" {self._sizes.most:,}; they end {ends}"
        )
