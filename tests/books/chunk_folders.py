"""Small folders of chunks, as data/chunk_books.py writes them, made on the spot."""

from __future__ import annotations

import hashlib

import pyarrow
from pyarrow import parquet

from lit_gpt.checksums import file_sha256, write_sums
from utils.books.book_list import Book, write_books
from utils.books.dataset_card import dataset_card

PUBLIC_DOMAIN = "Public domain in the USA."
MADE = [("data/clean_gutenberg.py", {"unwrap": True}), ("data/chunk_books.py", {"chunk_target": 70, "chunk_min": 60})]
SCHEMA = pyarrow.schema({"text": "string", "source": "string", "number": "int64", "position": "int64"})


def book(name, number=None, title="", language="en", licence=PUBLIC_DOMAIN, authors="A. N. Author", address=""):
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    return Book(f"{name}.txt", number, title or name, authors, language, licence, address, "utf-8", sha256)


BOOKS = [
    book("11 - Carroll - Alice", 11, "Alice", address="https://www.gutenberg.org/ebooks/11.txt.utf-8"),
    book("12 - Verne - Île", 12, "L’Île mystérieuse", "fr", authors="Jules Verne"),
    book("mine", None, "Mine"),
]


def rows_of(books, chunks=5):
    """Rows of chunks, of other lengths in each book."""
    rows = []
    for at, one in enumerate(books):
        for position in range(chunks + at):
            text = f"{one.title}, chunk {position}: élan. " * (position + 2)
            rows.append({"text": text, "source": one.file, "number": one.number, "position": position})
    return rows


def write_chunks(folder, rows, files=2):
    size = -(-len(rows) // files)
    for at in range(files):
        table = pyarrow.Table.from_pylist(rows[at * size : (at + 1) * size], schema=SCHEMA)
        parquet.write_table(table, folder / f"data-{at:05d}-of-{files:05d}.parquet")


def sum_up(folder):
    names = [path.name for path in folder.iterdir() if path.name != "SHA256SUMS"]
    write_sums(folder, {name: file_sha256(folder / name) for name in names})


def make_folder(folder, books=BOOKS, files=2, chunks=5, licence=None):
    folder.mkdir()
    write_chunks(folder, rows_of(books, chunks), files)
    write_books(folder, books)
    (folder / "README.md").write_text(dataset_card(folder, books, MADE, licence), encoding="utf-8")
    sum_up(folder)
    return folder
