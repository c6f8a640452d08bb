"""The reports of a cleaned folder: what was taken out, how much by reason, and what needs a human's look."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from utils.books.book_list import csv_line
from utils.books.cleaning import Review
from utils.files.atomic import atomic_file, write_atomically
from utils.prepare.book_folders import REPORTS

REMOVED, COUNTS, REVIEW = "removed.jsonl", "cleaned.csv", "review.csv"


class Reported(NamedTuple):
    """A book's part of the reports."""

    name: str
    path: Path | None
    """Its record: a line on the book, then the lines of removed.jsonl."""
    record: dict[str, Any]
    """The line on the book; empty where there is none."""
    reviews: list[Review]
    """What there is to review beside the record's."""


def write_reports(output_dir: Path, books: list[Reported]) -> None:
    """Writes the three reports, their lines in the order of the books."""
    folder = output_dir / REPORTS
    _write_removed(folder / REMOVED, books)
    write_atomically(folder / COUNTS, _encoded(_cleaned_csv(books)))
    write_atomically(folder / REVIEW, _encoded(_review_csv(books)))


def _encoded(text: str) -> bytes:
    """Names that are no Unicode, which Linux allows, are shown with escapes."""
    return text.encode("utf-8", "backslashreplace")


def _write_removed(path: Path, books: list[Reported]) -> None:
    """Copies the records' lines: all books' together may be more than fits in memory."""
    with atomic_file(path) as file:
        for book in books:
            if book.path:
                with book.path.open("rb") as record:
                    record.readline()
                    shutil.copyfileobj(record, file)


def _cleaned_csv(books: list[Reported]) -> str:
    """A line a book: characters in = characters kept + those taken out, by reason - those put in their places."""
    reasons = sorted({reason for book in books for reason in book.record.get("taken_out", {})})
    lines = [csv_line(["file", "encoding", "characters_in", "characters_kept", "characters_put_in", *reasons])]
    for book in books:
        record = book.record
        if record:
            taken_out = [record["taken_out"].get(reason, 0) for reason in reasons]
            known = [record[key] for key in ("encoding", "characters", "kept", "put_in")]
            lines.append(csv_line([book.name, *known, *taken_out]))
    return "".join(lines)


def _review_csv(books: list[Reported]) -> str:
    lines = [csv_line(["file", "reason", "line", "text"])]
    for book in books:
        of_record = [Review(**review) for review in book.record.get("reviews", [])]
        for review in (*of_record, *book.reviews):
            lines.append(csv_line([book.name, review.reason, review.line, review.text]))
    return "".join(lines)
