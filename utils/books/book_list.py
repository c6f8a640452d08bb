"""books.csv of a folder of books: where each file comes from. Acquired, cleaned and cut books have the same list."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from utils.files.atomic import write_atomically

BOOKS = "books.csv"


@dataclass(frozen=True)
class Book:
    """One line of books.csv. Texts are empty, and `number` is None, where nothing is known."""

    file: str
    """Name of the book's file in the folder."""
    number: int | None
    """The book's number at Project Gutenberg."""
    title: str
    authors: str
    """Names, separated by `; `."""
    language: str
    """Two-letter codes, separated by `; `."""
    licence: str
    address: str
    """Where the text was downloaded."""
    encoding: str
    """The encoding that the text came in, such as utf-8 or iso-8859-1; the file itself is UTF-8."""
    sha256: str
    """SHA-256 of the file in this folder."""


def books_csv(books: list[Book]) -> str:
    """The text of a books.csv, its lines in the order given."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Book)], lineterminator="\n")
    writer.writeheader()
    for book in books:
        writer.writerow(asdict(book))
    return text.getvalue()


def write_books(folder: Path, books: list[Book]) -> None:
    write_atomically(folder / BOOKS, books_csv(books))
