"""A folder of acquired books: their files and books.csv, which are whole at any moment, however the command ends.

A book's file is written first, then its line. A kill between the two leaves a file without a line, which the next call
finds equal to what it downloads, and lists.
"""

from __future__ import annotations

import re
from pathlib import Path

from lit_gpt.checksums import file_sha256
from lit_gpt.errors import DataError
from utils.books.book_list import BOOKS, Book, listed_books, write_books
from utils.files.atomic import write_atomically
from utils.files.folder_lock import FolderLock


class AcquiredFolder:
    """The books of a folder that this process has locked.

    Raises a DataError for a books.csv that is damaged or has a number twice.
    """

    def __init__(self, folder: Path, lock: FolderLock) -> None:
        self._folder, self._lock = folder, lock
        self._books: dict[int, Book] = {}
        self._others: list[Book] = []
        for book in listed_books(folder).values():
            if book.number is None:
                self._others.append(book)
            elif book.number in self._books:
                raise DataError(f"{folder / BOOKS} has book {book.number} twice: take out one of the lines")
            else:
                self._books[book.number] = book
        for path in folder.iterdir():
            if re.fullmatch(r"\.(\d+( - .*)?\.txt|books\.csv)\.tmp", path.name):
                path.unlink()  # what a killed process was writing

    def state(self, number: int) -> str:
        """Whether a book is `there`, `changed` since it was downloaded, or `missing`."""
        book = self._books.get(number)
        if book is None or not (self._folder / book.file).exists():
            return "missing"
        return "there" if file_sha256(self._folder / book.file) == book.sha256 else "changed"

    def name(self, number: int, proposed: str) -> str:
        """The name of a book's file: that which it has had, else the one proposed."""
        return self._books[number].file if number in self._books else proposed

    def add(self, book: Book, content: bytes) -> bool:
        """Writes a book and its line; False, and nothing is done, where another file has the book's name."""
        path = self._folder / book.file
        if path.exists() and (not path.is_file() or file_sha256(path) != book.sha256):
            return False
        self._lock.check()
        if not path.exists():
            write_atomically(path, content)
        self._books[book.number] = book
        books = sorted(self._books.values(), key=lambda book: book.number or 0)
        write_books(self._folder, [*books, *self._others])
        return True
