"""books.csv of a folder of books: where each file comes from. Acquired, cleaned and cut books have the same list."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path

from lit_gpt.errors import DataError
from utils.files.atomic import write_atomically
from utils.prepare.book_folders import BOOKS


@dataclass(frozen=True)
class Book:
    """One line of books.csv. Texts are empty, and `number` is None, where nothing is known."""

    file: str
    """Name of the book's file in the folder."""
    number: int | None = None
    """The book's number at Project Gutenberg."""
    title: str = ""
    authors: str = ""
    """Names, separated by `; `."""
    language: str = ""
    """Two-letter codes, separated by `; `."""
    licence: str = ""
    address: str = ""
    """Where the text was downloaded."""
    encoding: str = ""
    """The encoding that the text came in, such as utf-8 or iso-8859-1; the file itself is UTF-8."""
    sha256: str = ""
    """SHA-256 of the file in this folder; empty in a list that a person wrote."""


def is_book(path: Path) -> bool:
    """Whether an entry of a folder is a book's text: *.txt, or *.TXT as other systems have it, and not hidden."""
    return path.suffix.lower() == ".txt" and not path.name.startswith(".") and path.is_file()


NAMES = [field.name for field in fields(Book)]


def books_csv(books: list[Book]) -> str:
    """The text of a books.csv, its lines in the order given."""
    columns = attrgetter(*NAMES)
    return "".join(map(csv_line, [NAMES, *map(columns, books)]))


def csv_line(values: Sequence[str | int | None]) -> str:
    return ",".join(map(_cell, values)) + "\n"


def _cell(value: str | int | None) -> str:
    """A value as CSV has it. Python's writer leaves a lone `\\r` without quotes, which its reader takes for a line."""
    text = "" if value is None else str(value)
    return '"' + text.replace('"', '""') + '"' if re.search('[",\r\n]', text) else text


def write_books(folder: Path, books: list[Book]) -> None:
    write_atomically(folder / BOOKS, books_csv(books))


def read_books(folder: Path) -> list[Book]:
    """The books of a folder's books.csv, in its order; a FileNotFoundError where it has none.

    Raises:
        DataError: for what is no such list, with the line. A file's name leads nowhere else, and none is there twice.
    """
    path = folder / BOOKS
    books: list[Book] = []
    files: set[str] = set()
    for line, row in _rows(path):
        where = f"{path}, line {line}"
        if len(row) != len(NAMES):
            raise DataError(f"{where}: {len(row)} values instead of {len(NAMES)}")
        book = _book(dict(zip(NAMES, row, strict=True)), where)
        if book.file in files:
            raise DataError(f"{where}: {book.file} is there twice")
        files.add(book.file)
        books.append(book)
    return books


def listed_books(folder: Path) -> dict[str, Book]:
    """The books of a folder's books.csv by their files; none where it has no list."""
    return {book.file: book for book in read_books(folder)} if (folder / BOOKS).exists() else {}


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """The lines below the header, each with the number of its first line in the file."""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # spreadsheets begin a file with a byte order mark
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        rows, line = [], 1
        for row in reader:
            rows.append((line, row))
            line = reader.line_num + 1
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is not UTF-8 text: {e}") from None
    except csv.Error as e:
        raise DataError(f"{path}, line {reader.line_num}: {e}") from None
    if not rows or rows[0][1] != NAMES:
        raise DataError(f"{path} is no list of books: its first line must be {','.join(NAMES)}")
    return rows[1:]


def _book(values: dict[str, str], where: str) -> Book:
    file, number = values["file"], values["number"]
    if not file or file in (".", "..") or "/" in file or "\\" in file:
        raise DataError(f"{where}: {file!r} is no name of a file in this folder")
    if not re.fullmatch("([1-9][0-9]{0,8})?", number):
        raise DataError(f"{where}: {number!r} is no number of a book")
    if not re.fullmatch("([0-9a-f]{64})?", values["sha256"]):
        raise DataError(f"{where}: {values['sha256']!r} is no SHA-256")
    texts = {name: value for name, value in values.items() if name != "number"}
    return Book(number=int(number) if number else None, **texts)
