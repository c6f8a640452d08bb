"""books.csv: what is written is read again, and what is damaged is refused with its line."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_gpt.errors import DataError
from utils.books.book_list import BOOKS, Book, books_csv, read_books, write_books

BOOK = Book(
    "84 - Shelley - Frankenstein.txt", 84, "Frankenstein", "Shelley", "en", "public domain", "", "utf-8", "0" * 64
)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)  # 3.10 has no NUL in CSV


@given(title=TEXT, authors=TEXT, number=st.none() | st.integers(1, 10**9 - 1))
@example(title="\r", authors='a\r\nb","', number=None)
@settings(max_examples=50, deadline=None)
def test_a_list_is_read_as_it_was_written_also_by_others(
    tmp_path_factory: pytest.TempPathFactory, title: str, authors: str, number: int | None
) -> None:
    folder = tmp_path_factory.getbasetemp()
    books = [replace(BOOK, title=title, authors=authors, number=number), replace(BOOK, file="own.txt")]
    write_books(folder, books)
    assert read_books(folder) == books
    with (folder / BOOKS).open(encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file))
    assert (row["title"], row["authors"]) == (title, authors)


HEADER = books_csv([])
LINE = books_csv([BOOK]).removeprefix(HEADER)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "its first line must be file,number,"),
        ("name,title\n", "its first line must be file,number,"),
        (HEADER + LINE[:40], "line 2: 3 values instead of 9"),
        (HEADER + '"a\nb' + LINE, "line "),
        (HEADER + LINE.replace("84 -", '"84\n -', 1).replace(".txt", '.txt"') + "x\n", "line 4: 1 values"),
        (HEADER + LINE + LINE, "line 3: 84 - Shelley - Frankenstein.txt is there twice"),
        (HEADER + LINE.replace("84 - ", "../"), "line 2: '../Shelley - Frankenstein.txt' is no name"),
        (HEADER + LINE.replace(",84,", ",84.5,"), "line 2: '84.5' is no number"),
        (HEADER + LINE.replace("0" * 64, "0" * 63), f"line 2: '{'0' * 63}' is no SHA-256"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_damaged_list_is_refused_with_its_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    (tmp_path / BOOKS).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=BOOKS) as caught:
        read_books(tmp_path)
    assert message in str(caught.value)
