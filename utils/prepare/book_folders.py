"""Folders of books, as data/acquire_gutenberg.py and data/clean_gutenberg.py make them: what in them is no book."""

from pathlib import Path

BOOKS, REPORTS = "books.csv", "reports"
FIRST_LINE = b"file,number,title,authors,language,licence,address,encoding,sha256\n"
NOT_BOOKS = "books.csv lists the books, and reports/ says what cleaning took out of them: neither is read as text"
UNCLEANED = "has books that were not cleaned: data/clean_gutenberg.py takes out the licences, which would be trained on"


def has_books(folder: Path) -> bool:
    """Whether a folder has a list of its books. Another books.csv may be a corpus."""
    if not (folder / BOOKS).is_file():
        return False
    with (folder / BOOKS).open("rb") as file:
        return file.readline(1000).removeprefix(b"\xef\xbb\xbf").replace(b"\r", b"") == FIRST_LINE


def is_of_reports(folder: Path) -> bool:
    """Whether a folder is that of the reports about the books of the folder it is in, or in it."""
    return any(path.name == REPORTS and has_books(path.parent) for path in (folder, *folder.parents))
