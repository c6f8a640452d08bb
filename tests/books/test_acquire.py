"""data/acquire_gutenberg.py against a server on this machine that speaks the catalogue's API, with its faults."""

from __future__ import annotations

import errno
import hashlib
import importlib
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import pytest

from data.acquire_gutenberg import main
from lit_gpt.errors import DataError
from tests import conftest, warm_start
from tests.books import gutendex_server as faults
from tests.books.gutendex_server import Gutendex
from utils import cli
from utils.books import downloads, polite_client
from utils.books.book_list import BOOKS, read_books, write_books
from utils.books.gutendex import next_address
from utils.books.options import AcquireOptions
from utils.books.text_formats import book_text

FRANKENSTEIN = "84 - Shelley, Mary - Frankenstein.txt"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gutendex]:
    """An empty catalogue; pauses between tries are short."""
    monkeypatch.setattr(polite_client, "BACK_OFF", (0.01, 0.02))
    # no connection here is encrypted, and reading the certificates takes 20 ms a call
    monkeypatch.setattr(httpx, "Client", partial(httpx.Client, verify=False))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = Gutendex()
    yield server
    server.close()


def words(server: Gutendex, folder: Path, *arguments: object) -> list[str]:
    which = arguments or ("--topic", "horror")
    return list(map(str, ("--output_dir", folder, "--server", server.address, "--delay", 0, *which)))


def acquire(server: Gutendex, folder: Path, *arguments: object) -> int:
    return conftest.run_command(AcquireOptions, main, words(server, folder, *arguments))


def content(folder: Path) -> dict[str, bytes]:
    """All of a folder, byte by byte, hidden files too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def numbers(folder: Path) -> list[int | None]:
    return [book.number for book in read_books(folder)]


def test_books_are_in_the_folder_as_utf_8_with_a_line_each_on_where_they_come_from(
    server: Gutendex, tmp_path: Path
) -> None:
    path = server.add(84, "Frankenstein", "It was — on\r\na dreary night.\r\n")
    assert acquire(server, tmp_path) == 0
    assert (tmp_path / FRANKENSTEIN).read_bytes() == "It was — on\r\na dreary night.\r\n".encode()
    assert (tmp_path / BOOKS).read_text() == (
        "file,number,title,authors,language,licence,address,encoding,sha256\n"
        f'"{FRANKENSTEIN}",84,Frankenstein,"Shelley, Mary",en,Public domain in the USA.,{server.address}{path},utf-8,'
        f"{hashlib.sha256((tmp_path / FRANKENSTEIN).read_bytes()).hexdigest()}\n"
    )
    assert set(content(tmp_path)) == {FRANKENSTEIN, BOOKS}  # and no trace of the lock


def test_a_second_call_asks_for_no_book_that_is_there(server: Gutendex, tmp_path: Path) -> None:
    paths = [server.add(number, f"Book {number}") for number in range(1, 6)]
    assert acquire(server, tmp_path) == 0
    before = content(tmp_path)
    assert acquire(server, tmp_path) == 0
    assert content(tmp_path) == before
    assert [server.asked_for(path) for path in paths] == [1] * 5


def test_all_pages_are_read_and_the_search_ends_by_itself_when_results_run_out(
    server: Gutendex, tmp_path: Path
) -> None:
    server.page_size = 3
    for number in range(1, 9):
        server.add(number, "The same title")
    assert acquire(server, tmp_path, "--topic", "horror", "--num_records", 2000) == 0
    assert numbers(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert server.asked_for("/books/") == 3
    assert len(content(tmp_path)) == 9  # editions of one title are files of their own


def test_num_records_counts_the_books_that_are_there_and_takes_the_most_downloaded(
    server: Gutendex, tmp_path: Path
) -> None:
    for number in range(1, 9):
        server.add(number, f"Book {number}")
    assert acquire(server, tmp_path, "--topic", "horror", "--num_records", 3) == 0
    assert numbers(tmp_path) == [1, 2, 3]
    assert acquire(server, tmp_path, "--topic", "horror", "--num_records", 5) == 0
    assert numbers(tmp_path) == [1, 2, 3, 4, 5]
    assert len(server.requests) == 2 * 2 + 5


def test_searches_by_language_author_and_number_add_up_in_one_folder(server: Gutendex, tmp_path: Path) -> None:
    server.add(1, "Erlkönig", languages=["de"], authors=[{"name": "Goethe, Johann Wolfgang von"}])
    server.add(2, "Stories of Mary Shelley", authors=[{"name": "Someone, Else"}])  # found by its title
    server.add(3, "Valperga")
    server.add(4, "Other", authors=[], subjects=["Love stories"])
    assert acquire(server, tmp_path, "--author", "MARY shelley") == 0
    assert numbers(tmp_path) == [3]
    assert acquire(server, tmp_path, "--language", "de", "fr") == 0
    assert acquire(server, tmp_path, "--ids", 4) == 0
    assert numbers(tmp_path) == [1, 3, 4]


def test_a_latin_1_book_and_a_utf_8_book_with_bom_are_written_as_utf_8_without(
    server: Gutendex, tmp_path: Path
) -> None:
    text = "Le château était désert, et la forêt où l'on entendait le loup était noire.\r\n"
    latin = {"text/plain; charset=iso-8859-1": f"{server.address}/cache/epub/1/pg1.txt"}
    server.add(1, "Latin", text.encode("latin-1"), languages=["fr"], formats=latin)
    server.add(2, "Mark", text.encode("utf-8-sig"), languages=["fr"])
    wrong = {"text/plain; charset=utf-8": f"{server.address}/cache/epub/3/pg3.txt"}
    server.add(3, "Wrong", text.encode("latin-1"), languages=["fr"], formats=wrong)
    ascii_ = {"text/plain; charset=us-ascii": f"{server.address}/cache/epub/4/pg4.txt"}
    server.add(4, "ASCII", text.encode("utf-8"), languages=["fr"], formats=ascii_)
    assert acquire(server, tmp_path) == 0
    books = read_books(tmp_path)
    assert [book.encoding for book in books] == ["iso-8859-1", "utf-8", "iso-8859-1", "utf-8"]
    assert {(tmp_path / book.file).read_bytes() for book in books} == {text.encode()}


def test_of_several_text_formats_utf_8_comes_first_then_latin_1_then_ascii(server: Gutendex, tmp_path: Path) -> None:
    names = {"utf-8": "1-0.txt", "iso-8859-1": "1-8.txt", "us-ascii": "1.txt"}
    formats = {f"text/plain; charset={key}": f"{server.address}/{name}" for key, name in reversed(names.items())}
    server.add(1, "Book", formats=formats)
    server.files |= {f"/{name}": f"{key}\n".encode() for key, name in names.items()}
    for place, key in enumerate(names):
        folder = tmp_path / key
        assert acquire(server, folder) == 0
        book = read_books(folder)[0]
        assert (folder / book.file).read_text() == f"{key}\n"
        del server.files[f"/{names[key]}"]  # the next call finds the next best, after a 404
        assert len(server.requests) == sum(3 + count for count in range(place + 1))


def test_a_book_without_a_text_is_named_counted_and_left_out(
    server: Gutendex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add(1, "Book")
    recording = {
        "audio/mpeg": f"{server.address}/1.mp3",
        "text/plain": f"{server.address}/2-readme.txt",
        "text/plain; charset=utf-8": f"{server.address}/2.zip",
    }
    server.add(2, "A recording", formats=recording)
    assert acquire(server, tmp_path) == 0
    assert numbers(tmp_path) == [1]
    output = capsys.readouterr().out
    assert "2 A recording, Shelley, Mary: left out, without a text" in output
    assert "left out, without a text: 1" in output


def test_only_books_of_the_public_domain_are_taken_and_a_number_under_copyright_is_refused_by_name(
    server: Gutendex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add(1, "Free")
    paths = [server.add(2, "Protected", copyright=True), server.add(3, "Unclear", copyright=None)]
    assert acquire(server, tmp_path) == 0
    assert "left out, under copyright: 1\n" in capsys.readouterr().out
    assert acquire(server, tmp_path, "--ids", 1, 2, 3, 999) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "999: the catalogue has none" in error
    assert "2 Protected, Shelley, Mary: under copyright" in error and "3 Unclear" in error
    assert numbers(tmp_path) == [1]
    assert [server.asked_for(path) for path in paths] == [0, 0]


@pytest.mark.parametrize("fault", ["429", "500", "timeout", "slow", "cut", "hang up", "redirect"])
def test_what_goes_wrong_once_with_a_book_or_a_page_is_tried_again(
    server: Gutendex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(polite_client, "TIMEOUT", 0.2)
    monkeypatch.setattr(polite_client, "MOST_SECONDS", 0.3)
    path = server.add(84, "Frankenstein")
    server.add(85, "Another")
    elsewhere = "/moved.txt"
    server.files[elsewhere] = server.files[path]
    wrong = {
        "429": faults.status(429, {"Retry-After": "0"}),
        "500": faults.status(500),
        "timeout": faults.silence(0.5),
        "slow": faults.drip,
        "cut": faults.cut(b"It was a"),
        "hang up": faults.hang_up,
        "redirect": faults.redirect(elsewhere),
    }
    server.faults[path] = [wrong[fault]]
    if fault != "redirect":
        server.faults["/books/"] = [wrong[fault]]
    assert acquire(server, tmp_path / "a") == 0
    assert not any(server.faults.values())
    assert acquire(server, tmp_path / "b") == 0
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_the_server_says_how_long_to_wait(
    server: Gutendex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(polite_client.time, "sleep", waits.append)
    path = server.add(84, "Frankenstein")
    date = {"Date": "Mon, 30 Nov 2026 10:00:00 GMT", "Retry-After": "Mon, 30 Nov 2026 10:02:00 GMT"}
    server.faults[path] = [faults.status(429, {"Retry-After": "7"}), faults.status(503, date)]
    assert acquire(server, tmp_path / "a") == 0
    assert [wait for wait in waits if wait] == [7, 120]
    server.faults[path] = [faults.status(429, {"Retry-After": "86400"})]
    assert acquire(server, tmp_path / "b") == 75
    assert "asks for a pause of 86400 s" in capsys.readouterr().err
    assert max(waits) == 120


def test_requests_are_apart_by_the_delay_redirects_and_pages_too(server: Gutendex, tmp_path: Path) -> None:
    server.page_size = 1
    server.add(1, "A")
    server.add(2, "B")
    assert acquire(server, tmp_path, "--topic", "horror", "--delay", 0.05) == 0
    pauses = [after - before for before, after in itertools.pairwise(server.times)]
    assert len(pauses) == 4 and min(pauses) > 0.045


def test_a_book_that_is_gone_is_left_out_with_its_reason_and_the_rest_goes_on(
    server: Gutendex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(1, 5):
        server.add(number, f"Book {number}")
    del server.files["/cache/epub/2/pg2.txt"]
    server.faults["/cache/epub/3/pg3.txt"] = [faults.status(410)]
    assert acquire(server, tmp_path) == 0
    assert numbers(tmp_path) == [1, 4]
    output = capsys.readouterr().out
    assert "2 Book 2, Shelley, Mary: left out, the server answers 404" in output
    assert "left out, the server answers 410: 1" in output
    assert server.asked_for("/cache/epub/2/pg2.txt") == 1


def test_a_book_whose_tries_run_out_is_named_and_the_second_call_completes_the_same_folder(
    server: Gutendex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(1, 5):
        server.add(number, f"Book {number}")
    which = ("--topic", "horror", "--num_records", 3)
    assert acquire(server, tmp_path / "whole", *which) == 0
    server.faults["/cache/epub/2/pg2.txt"] = [faults.status(503)] * 3
    assert acquire(server, tmp_path / "twice", *which) == 75
    said = capsys.readouterr()
    assert "2 Book 2, Shelley, Mary: the server answers 503, 3 times" in said.out
    assert "1 books could not be downloaded" in said.err and "run the same command again" in said.err
    assert numbers(tmp_path / "twice") == [1, 3]
    assert acquire(server, tmp_path / "twice", *which) == 0
    assert content(tmp_path / "twice") == content(tmp_path / "whole")


def test_a_server_that_stays_down_ends_the_command_with_a_line_on_how_far_it_came(
    server: Gutendex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [server.add(number, f"Book {number}") for number in range(1, 9)]
    server.faults |= {path: [faults.hang_up] * 99 for path in paths[2:]}
    assert acquire(server, tmp_path / "broken") == 75
    error = capsys.readouterr().err
    assert (
        error.count("\n") == 1 and f"2 books are in {tmp_path / 'broken'}; run the same command again to go on" in error
    )
    assert sum(map(server.asked_for, paths)) == 2 + 3 * 3  # not the whole catalogue
    server.faults.clear()
    assert acquire(server, tmp_path / "broken") == 0
    assert acquire(server, tmp_path / "whole") == 0
    assert content(tmp_path / "broken") == content(tmp_path / "whole")


def test_a_server_that_never_answers_is_an_error_of_the_network(
    server: Gutendex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.close()
    assert acquire(server, tmp_path) == 74
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "cannot be reached" in error and "check --server" in error


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"<html>Cloudflare\x1b[2J</html>", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[]", "count is no number"),
        (b'{"count": 1, "next": 3, "results": []}', "next is neither"),
        (b'{"count": 1, "next": null, "results": [{"id": true}]}', "id is no number"),
        (b'{"count": 1, "next": null, "results": [{"id": 1, "languages": []}]}', "formats is no mapping"),
        (b"", "is no JSON"),
    ],
)
def test_an_answer_that_is_not_the_catalogues_is_named_with_its_address(
    server: Gutendex, tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: bytes, message: str
) -> None:
    server.faults["/books/"] = [faults.body(answer, "application/json")]
    assert acquire(server, tmp_path) == 65
    error = capsys.readouterr().err
    assert f"{server.address}/books/?topic=horror" in error and message in error
    assert error.count("\n") == 1 and "\x1b" not in error


def page(server: Gutendex, count: int, following: str | None, *chosen: int) -> bytes:
    books = [server.books[number] for number in chosen]
    return faults.json.dumps({"count": count, "next": following, "previous": None, "results": books}).encode()


def test_pages_that_lead_elsewhere_or_in_a_circle_are_refused(
    server: Gutendex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add(1, "A")
    server.add(2, "B")
    wrong = {
        "leads to another server": [page(server, 2, "http://elsewhere.invalid/books/?page=2", 1)],
        "next leads to another": [page(server, 2, "file:///etc/passwd", 1)],
        "leads back to": [page(server, 2, "/books/?topic=horror", 1)],
        "has the same books": [page(server, 9, "/books/?page=2", 1, 2), page(server, 9, "/books/?page=3", 1, 2)],
    }
    for message, pages in wrong.items():
        server.faults["/books/"] = [faults.body(one, "application/json") for one in pages]
        assert acquire(server, tmp_path) == 65
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert numbers(tmp_path) == [1, 2]  # what came before is kept


def test_a_link_to_the_next_page_stays_with_the_server_and_its_scheme() -> None:
    here = "https://gutendex.com/books/?topic=horror"
    expected = "https://gutendex.com/books/?page=2&topic=horror"
    assert next_address("http://gutendex.com/books/?page=2&topic=horror", here) == expected
    assert next_address("?page=2&topic=horror", here) == expected
    for link in (
        "https://gutendex.com:8000/books/?page=2",
        "https://gutendex.com.invalid/",
        "https://me:x@gutendex.com/",
    ):
        with pytest.raises(DataError, match="leads to another server"):
            next_address(link, here)


def test_a_book_that_is_on_two_pages_counts_once(server: Gutendex, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        server.add(number, f"Book {number}")
    pages = [page(server, 4, "/books/?page=2", 1, 2), page(server, 4, None, 2, 3)]
    server.faults["/books/"] = [faults.body(one, "application/json") for one in pages]
    assert acquire(server, tmp_path, "--topic", "horror", "--num_records", 3) == 0
    assert numbers(tmp_path) == [1, 2, 3]


def test_what_a_killed_call_was_writing_goes_and_hidden_files_of_others_stay(server: Gutendex, tmp_path: Path) -> None:
    server.add(84, "Frankenstein")
    for name in (".7 - Shelley, Mary - Other.txt.tmp", ".books.csv.tmp", ".mine.txt.tmp"):
        (tmp_path / name).touch()
    assert acquire(server, tmp_path) == 0
    assert set(content(tmp_path)) == {FRANKENSTEIN, BOOKS, ".mine.txt.tmp"}


def test_results_that_run_out_early_end_the_search(server: Gutendex, tmp_path: Path) -> None:
    server.add(1, "A")
    pages = [page(server, 99, "/books/?page=2", 1), page(server, 99, "/books/?page=3")]
    server.faults["/books/"] = [faults.body(one, "application/json") for one in pages]
    assert acquire(server, tmp_path, "--topic", "horror", "--num_records", 50) == 0
    assert numbers(tmp_path) == [1]


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("../../etc/passwd", "7 - Shelley, Mary - etc passwd.txt"),
        ("Two\r\nlines\x1b[31m\x00\t and \u202emore", "7 - Shelley, Mary - Two lines[31m and more.txt"),
        ('A: B? <C> "D" | E* \\F/', "7 - Shelley, Mary - A B C D E F.txt"),
        ("CON.", "7 - Shelley, Mary - CON.txt"),
        (" .hidden. ", "7 - Shelley, Mary - hidden.txt"),
        ("e\u0301t\ud800e\u0301", "7 - Shelley, Mary - été.txt"),
        ("", "7 - Shelley, Mary.txt"),
        (None, "7 - Shelley, Mary.txt"),
    ],
)
def test_a_hostile_title_makes_a_plain_name(
    server: Gutendex, tmp_path: Path, capsys: pytest.CaptureFixture[str], title: str, expected: str
) -> None:
    server.add(7, title)
    assert acquire(server, tmp_path / "books") == 0
    assert set(content(tmp_path)) == {f"books/{expected}", f"books/{BOOKS}"}
    assert all(c.isprintable() or c == "\n" for c in (tmp_path / "books" / BOOKS).read_text() + capsys.readouterr().out)


@pytest.mark.parametrize("title", ["x" * 300, "書" * 300, "e\u0323\u0301" * 300, "👩🏽" * 300])
def test_a_title_of_300_characters_is_cut_between_characters(server: Gutendex, tmp_path: Path, title: str) -> None:
    server.add(7, title, authors=[{"name": title}, {"name": "Second"}])
    assert acquire(server, tmp_path) == 0
    book = read_books(tmp_path)[0]
    assert 100 < len(book.file.encode()) <= 120
    part = book.file.removesuffix(".txt").split(" - ")[-1]
    whole = unicodedata.normalize("NFC", title)
    assert whole.startswith(part) and not unicodedata.combining(whole[len(part)])
    assert book.title == whole and book.authors == f"{whole}; Second"


def test_a_name_that_is_cut_is_kept_when_the_catalogue_changes(server: Gutendex, tmp_path: Path) -> None:
    server.add(84, "Frankenstein")
    assert acquire(server, tmp_path) == 0
    server.books[84]["title"] = "Frankenstein; Or, The Modern Prometheus"
    (tmp_path / FRANKENSTEIN).unlink()
    assert acquire(server, tmp_path) == 0
    assert set(content(tmp_path)) == {FRANKENSTEIN, BOOKS}


@pytest.mark.parametrize(
    "address", ["file:///etc/passwd", "ftp://example.invalid/1.txt", "http://me:secret@example.invalid/1.txt"]
)
def test_addresses_of_the_catalogue_are_only_followed_on_the_web(
    server: Gutendex, tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    server.add(1, "Good")
    server.add(2, "Bad", formats={"text/plain": address})
    path = server.add(3, "Redirected")
    server.faults[path] = [faults.redirect(address)]
    assert acquire(server, tmp_path) == 0
    assert numbers(tmp_path) == [1]
    output = capsys.readouterr().out
    assert "left out, its address is not of the web: " in output and "secret" not in output


@pytest.mark.parametrize("address", ["http://[::1/1.txt", "\x1b]0;x\x07", "http://a.invalid:99999/"])
def test_what_is_no_address_is_not_followed_nor_shown_to_the_terminal(
    server: Gutendex, tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    server.add(1, "Good")
    server.add(2, "Bad", formats={"text/plain": address})
    server.faults[server.add(3, "Redirected")] = [faults.redirect(address)] * 3
    assert acquire(server, tmp_path) == 75
    assert numbers(tmp_path) == [1]
    output = capsys.readouterr().out
    assert "2 Bad" in output and "3 Redirected" in output and "\x1b" not in output and "\x07" not in output


def test_a_book_without_end_or_packed_to_burst_is_left_out(
    server: Gutendex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(downloads, "MOST_BOOK_BYTES", 2**20)
    bomb = faults.gzip.compress(b" " * 2**22)
    twice = {"Content-Encoding": "gzip, gzip"}
    server.faults[server.add(1, "Bomb")] = [faults.body(bomb, headers={"Content-Encoding": "gzip"})]
    server.faults[server.add(2, "Twice")] = [faults.body(faults.gzip.compress(bomb), headers=twice)]
    server.add(3, "Long", "x" * (2**20 + 1))
    server.add(4, "Just", "x" * 2**20)
    assert acquire(server, tmp_path) == 75
    assert numbers(tmp_path) == [4]
    output = capsys.readouterr().out
    assert "left out, it has more than 1 MiB: 2" in output and "answers in gzip, gzip, which was not" in output


def test_what_is_no_text_is_not_taken_for_a_book(
    server: Gutendex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add(1, "Page", "\r\n<!DOCTYPE html><html>sorry</html>")
    server.add(2, "Archive", b"PK\x03\x04\x00\x00" * 100)
    server.add(3, "Empty", " \r\n")
    server.add(4, "Good")
    assert acquire(server, tmp_path) == 0
    assert numbers(tmp_path) == [4]
    output = capsys.readouterr().out
    for reason in ("its text is a page of the web", "its text is not text", "its text is empty"):
        assert reason in output


def test_a_file_that_the_user_has_changed_stays_and_is_named_and_one_that_was_deleted_comes_back(
    server: Gutendex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add(84, "Frankenstein")
    server.add(85, "Deleted")
    assert acquire(server, tmp_path) == 0
    before = content(tmp_path)
    (tmp_path / FRANKENSTEIN).write_text("mine")
    (tmp_path / "85 - Shelley, Mary - Deleted.txt").unlink()
    capsys.readouterr()
    assert acquire(server, tmp_path) == 0
    assert "84 Frankenstein, Shelley, Mary: the file has changed since it was downloaded" in capsys.readouterr().out
    assert content(tmp_path) == before | {FRANKENSTEIN: b"mine"}


def test_another_file_of_the_books_name_is_not_overwritten_and_the_same_one_is_listed(
    server: Gutendex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = server.add(84, "Frankenstein")
    (tmp_path / FRANKENSTEIN).write_text("mine")
    assert acquire(server, tmp_path) == 2
    said = capsys.readouterr()
    assert f"{FRANKENSTEIN} is there and is another file; move it away" in said.out
    assert (tmp_path / FRANKENSTEIN).read_text() == "mine"
    (tmp_path / FRANKENSTEIN).write_bytes(server.files[path])
    assert acquire(server, tmp_path) == 0
    assert numbers(tmp_path) == [84]


def test_lines_that_others_added_to_the_list_stay_and_a_number_that_is_there_twice_is_refused(
    server: Gutendex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add(84, "Frankenstein")
    assert acquire(server, tmp_path) == 0
    book = read_books(tmp_path)[0]
    own = replace(book, file="own.txt", number=None)
    write_books(tmp_path, [own, book])
    server.add(85, "Another")
    assert acquire(server, tmp_path) == 0
    assert numbers(tmp_path) == [84, 85, None]
    write_books(tmp_path, [book, replace(book, file="copy.txt")])
    assert acquire(server, tmp_path) == 65
    assert "has book 84 twice" in capsys.readouterr().err
    (tmp_path / BOOKS).write_text("damaged")
    assert acquire(server, tmp_path) == 65
    assert (tmp_path / BOOKS).read_text() == "damaged"


def test_a_full_disk_ends_the_command_and_leaves_nothing_under_the_books_name(
    server: Gutendex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add(84, "Frankenstein")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("utils.files.atomic.os.fsync", full)
        assert acquire(server, tmp_path) == 74
    error = capsys.readouterr().err
    assert "No space left on device" in error and FRANKENSTEIN in error
    assert content(tmp_path) == {}


def test_a_search_that_finds_nothing_is_an_error(
    server: Gutendex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert acquire(server, tmp_path, "--topic", "horor") == 2
    assert "no book of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say which books"),
        (("--topic", " "), "--topic is empty"),
        (("--language", "english"), "'english' is no two-letter code"),
        (("--ids", "0"), "--ids 0"),
        (("--ids", "x"), "--ids"),
        (("--num_records", "0"), "--num_records must be at least 1"),
        (("--ids", "1", "--delay", "-1"), "--delay must be from 0"),
        (("--ids", "1", "--server", "gutendex.com"), "--server must be an address"),
        (("--ids", "1", "--server", "https://me:secret@gutendex.com"), "without a user, a password"),
    ],
)
def test_mistakes_on_the_line_are_said_before_any_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    line = ["--output_dir", str(tmp_path / "books"), *arguments]
    assert conftest.run_command(AcquireOptions, main, line) == 2
    error = capsys.readouterr().err
    assert message in error and "secret" not in error and error.count("\n") == 1
    assert not (tmp_path / "books").exists()


def test_a_proxy_that_cannot_be_read_is_said_without_its_password(
    server: Gutendex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "gopher://me:secret@proxy.invalid:x")
    assert acquire(server, tmp_path) == 2
    error = capsys.readouterr().err
    assert "HTTP_PROXY" in error and "secret" not in error and error.count("\n") == 1


def test_numbers_of_books_stand_in_a_recipe_as_a_list() -> None:
    values = {"output_dir": "books", "ids": [84, 345]}
    options, problems = cli.parse_values(AcquireOptions, values)
    assert not problems and options.ids == (84, 345)
    assert cli.parse_values(AcquireOptions, values | {"ids": 84})[1] == ["ids must be a list of numbers, such as [84]"]
    assert cli.parse_values(AcquireOptions, values | {"ids": ["x"]})[1]


def test_one_command_at_a_time_writes_a_folder(
    server: Gutendex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("utils.files.folder_lock.BEAT", 0.05)
    monkeypatch.setattr("utils.files.folder_lock.DEAD_AFTER", 2.0)
    library(server)
    server.stop_after = 1
    results: list[int] = []
    first = threading.Thread(target=lambda: results.append(acquire(server, tmp_path)))
    first.start()
    assert server.halted.wait(60)
    assert acquire(server, tmp_path) == 2
    assert "is being written by process" in capsys.readouterr().err
    server.stop_after = None
    server.released.set()
    first.join(60)
    assert results == [0] and numbers(tmp_path) == [1, 2, 3]


def test_a_log_has_lines_with_an_estimate_and_lines_for_pauses(
    server: Gutendex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("utils.prepare.progress.LOG_SECONDS", 0)
    library(server)
    assert acquire(server, tmp_path, "--topic", "horror", "--num_records", 1) == 0
    server.faults["/cache/epub/2/pg2.txt"] = [faults.status(502)]
    capsys.readouterr()
    assert acquire(server, tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "pg2.txt: the server answers 502; again in 0 s" in lines[0]
    assert [line.partition(", ")[0] for line in lines[1:3]] == ["downloaded 1 of 2 books", "downloaded 2 of 2 books"]
    assert re.fullmatch(r"downloaded 1 of 2 books, about \d+ s left", lines[1])
    assert lines[3] == f"3 books are in {tmp_path} that fit, 2 of them new"


@pytest.mark.parametrize(
    ("encoding", "declared", "language", "text"),
    [
        ("koi8-r", "iso-8859-1", "ru", "Жил-был у бабушки серенький козлик, вот как.\n"),
        ("windows-1251", "iso-8859-1", "ru", "Жил-был у бабушки серенький козлик, вот как.\n"),
        ("windows-1252", "us-ascii", "de", "Es war spät, und der König schlief “schon” überall.\n"),
        ("utf-8", "unicode_escape", "de", "Es war spät \\u0041.\n"),
        ("utf-16", "utf-8", "de", "Es war spät.\n"),
    ],
)
def test_a_wrong_word_about_the_encoding_does_not_matter(
    encoding: str, declared: str, language: str, text: str
) -> None:
    assert book_text((text * 20).encode(encoding), declared, [language], "it").text == text * 20


# With real processes


def start(server: Gutendex, folder: Path, *arguments: object) -> subprocess.Popen[str]:
    line = conftest.command_line("data/acquire_gutenberg.py", *words(server, folder, *arguments))
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def library(server: Gutendex) -> None:
    """Three books, of which one needs many blocks, in three pages."""
    server.page_size = 1
    for number in (1, 2, 3):
        server.add(number, f"Book {number}", "".join(f"Line {i} of book {number}.\r\n" for i in range(number * 900)))


@pytest.mark.parametrize(
    ("number", "at"), [(signal.SIGKILL, 30_000), (signal.SIGKILL, 90_000), (signal.SIGINT, 30_000)]
)
def test_after_a_signal_in_the_middle_of_a_file_the_second_call_completes_the_same_folder(
    server: Gutendex, tmp_path: Path, number: signal.Signals, at: int
) -> None:
    library(server)
    server.stop_after = at
    process = start(server, tmp_path / "books")
    assert server.halted.wait(60)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    names = {path.name for path in (tmp_path / "books").iterdir() if not path.name.startswith(".")}
    listed = {book.file for book in read_books(tmp_path / "books")} | {BOOKS} if BOOKS in names else set()
    assert names == listed
    if number == signal.SIGINT:
        assert process.returncode == 75, errors
        assert errors.count("\n") == 1 and "books are in" in output
    server.stop_after = None
    server.released.set()
    assert acquire(server, tmp_path / "books") == 0
    assert acquire(server, tmp_path / "whole") == 0
    assert content(tmp_path / "books") == content(tmp_path / "whole")


def killed_at(call: int, when: str, place: str, *line: str) -> None:
    """Runs the command and kills it before or after it has called `place` so many times."""
    module, name = place.rsplit(".", 1)
    real, calls = getattr(importlib.import_module(module), name), []

    def counted(*arguments: object) -> object:
        calls.append(name)
        if len(calls) == call and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(importlib.import_module(module), name, counted)
    sys.exit(conftest.run_command(AcquireOptions, main, line))


@pytest.mark.parametrize(
    ("call", "when", "place"),
    [
        (1, "before", "utils.books.acquired_folder.write_books"),  # a file without a line
        (2, "after", "utils.books.acquired_folder.write_books"),
        (3, "before", "os.fsync"),  # a file under its hidden name
    ],
)
def test_after_a_kill_between_two_steps_the_second_call_completes_the_same_folder(
    server: Gutendex, tmp_path: Path, call: int, when: str, place: str
) -> None:
    library(server)
    line = words(server, tmp_path / "books")
    assert warm_start.run(killed_at, (call, when, place, *line)).returncode == -signal.SIGKILL
    assert acquire(server, tmp_path / "books") == 0
    assert acquire(server, tmp_path / "whole") == 0
    assert content(tmp_path / "books") == content(tmp_path / "whole")
