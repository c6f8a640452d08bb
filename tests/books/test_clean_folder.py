"""The folder of cleaned books: files and reports, what a second call does, what a person changed, bad inputs."""

from __future__ import annotations

import ast
import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.clean_gutenberg import main
from tests.books.gutenberg_forms import FOOTERS, HEADERS
from tests.books.test_clean_edges import FIRST, LAST, make_file, make_work
from tests.conftest import ROOT, SHARED, command_line, run_command
from utils.books import cleaned_folder
from utils.books.book_list import Book, read_books, write_books
from utils.books.cleaned_folder import LONGEST_NAME, RULES
from utils.books.options import CleanOptions

FRANKENSTEIN = SHARED / "data" / "gutenberg"


def clean(source: Path, target: Path, *more: object) -> int:
    arguments = ["--input_dir", source, "--output_dir", target, "--num_workers", 1, "--unwrap", "false", *more]
    return run_command(CleanOptions, main, list(map(str, arguments)))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.shared
def test_a_real_book(tmp_path: Path) -> None:
    assert clean(FRANKENSTEIN, tmp_path / "out") == 0
    (cleaned,) = (tmp_path / "out").glob("*.txt")
    text = cleaned.read_text(encoding="utf-8")
    assert "gutenberg" not in text.lower() and "\r" not in text
    came = (FRANKENSTEIN / cleaned.name).read_bytes().decode("utf-8-sig")
    # the work, found by what a reader sees in this one file
    work = came.partition("EBOOK FRANKENSTEIN ***")[2].partition("End of the Project Gutenberg EBook")[0]
    credit = work.partition("Produced by")[2].partition("Frankenstein;")[0]
    contents = work.partition("CONTENTS")[2].partition("Chapter 24")[0]
    for part in (f"Produced by{credit}", f"CONTENTS{contents}Chapter 24"):
        work = work.replace(part, "", 1)
    assert text.replace("_", "").split() == work.replace("_", "").split()
    assert text.startswith("Frankenstein;\n")
    assert text.endswith("lost in darkness and distance.\n")
    (row,) = rows(tmp_path / "out" / "reports" / "cleaned.csv")
    assert int(row["characters_in"]) == len(came)
    assert int(row["characters_kept"]) == len(text)
    removed = [json.loads(line) for line in (tmp_path / "out" / "reports" / "removed.jsonl").open(encoding="utf-8")]
    assert {line["reason"] for line in removed} >= {"header", "footer"}
    (book,) = rows(tmp_path / "out" / "books.csv")
    assert (book["number"], book["language"]) == ("84", "en")


def test_rules_are_the_files_that_cleaning_imports() -> None:
    found, waiting = set(), ["utils/books/cleaning.py"]
    while waiting:
        path = waiting.pop()
        found.add(path)
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            file = (module or "").replace(".", "/") + ".py"
            if file.startswith("utils/") and file not in found:
                waiting.append(file)
    assert sorted(found) == list(RULES)


def make_book(seed: int, chapters: int = 4) -> str:
    return make_file(HEADERS["2008"], "\n\n".join(make_work(seed, chapters)), FOOTERS["2008"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of four books and what is none."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number} - Thorne - Lamp.txt").write_text(make_book(number), encoding="utf-8", newline="")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_sums_and_lists(source: Path, tmp_path: Path) -> None:
    assert clean(source, tmp_path / "out") == 0
    cleaned = rows(tmp_path / "out" / "reports" / "cleaned.csv")
    assert [row["file"] for row in cleaned] == sorted(path.name for path in source.iterdir())
    for row in cleaned:
        came = (source / row["file"]).read_bytes().decode("utf-8")
        left = (tmp_path / "out" / row["file"]).read_bytes().decode("utf-8")
        taken_out = [
            int(value) for name, value in row.items() if not name.startswith(("file", "encoding", "characters"))
        ]
        assert len(came) == int(row["characters_in"])
        assert len(left) == int(row["characters_kept"])
        assert len(came) == len(left) + sum(taken_out) - int(row["characters_put_in"])
        assert left.endswith(LAST + "\n")
        assert FIRST.split(",")[0] in " ".join(left.split())
    for line in (tmp_path / "out" / "reports" / "removed.jsonl").read_text(encoding="utf-8").splitlines():
        removed = json.loads(line)
        came = (source / removed["file"]).read_text(encoding="utf-8")
        assert removed["before"] + removed["text"] + removed["after"] in came
        assert came.split("\n")[removed["line"] - 1] == removed["text"].split("\n")[0]
    books = read_books(tmp_path / "out")
    assert [(book.number, book.title, book.authors) for book in books] == [
        (1471, "The Lamp in the Valley or, a Winter's Errand", "Agnes Thorne")
    ] * 4
    for book in books:
        assert book.sha256 == hashlib.sha256((tmp_path / "out" / book.file).read_bytes()).hexdigest()


def test_rows_of_acquired_books_are_kept(source: Path, tmp_path: Path) -> None:
    known = Book(
        "2 - Thorne - Lamp.txt", 2, "Lamp", "Thorne", "en", "Public domain", "http://x/2", "iso-8859-1", "0" * 64
    )
    write_books(source, [known])
    assert clean(source, tmp_path / "out") == 0
    book = {book.file: book for book in read_books(tmp_path / "out")}[known.file]
    assert (book.number, book.licence, book.address, book.encoding) == (2, "Public domain", "http://x/2", "iso-8859-1")
    assert book.sha256 == hashlib.sha256((tmp_path / "out" / book.file).read_bytes()).hexdigest()


def test_an_own_book_is_named_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "Agnes Thorne - My Winter.TXT").write_text("\n\n".join(make_work(1)) + "\n")
    assert clean(tmp_path / "in", tmp_path / "out") == 0
    (book,) = read_books(tmp_path / "out")
    assert (book.title, book.authors, book.number, book.language) == ("My Winter", "Agnes Thorne", None, "")


def test_the_number_of_processes_changes_nothing(source: Path, tmp_path: Path) -> None:
    assert clean(source, tmp_path / "one") == 0
    assert clean(source, tmp_path / "two", "--num_workers", 2) == 0
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_second_call_does_what_has_changed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []
    real = cleaned_folder.clean
    monkeypatch.setattr(cleaned_folder, "clean", lambda *arguments: calls.append(arguments[1]) or real(*arguments))
    assert clean(source, tmp_path / "out") == 0
    before = content(tmp_path / "out")
    assert len(calls) == 4
    assert clean(source, tmp_path / "out") == 0
    assert len(calls) == 4
    assert content(tmp_path / "out") == before
    (source / "2 - Thorne - Lamp.txt").write_text(make_book(77), encoding="utf-8")
    assert clean(source, tmp_path / "out") == 0
    assert calls[4:] == ["2 - Thorne - Lamp.txt"]
    assert clean(source, tmp_path / "out", "--unwrap", "true") == 0
    assert len(calls) == 9
    (source / "2 - Thorne - Lamp.txt").write_text(make_book(2), encoding="utf-8", newline="")
    assert clean(source, tmp_path / "out") == 0
    assert content(tmp_path / "out") == before
    assert "4 books are cleaned" in capsys.readouterr().out


def test_other_rules_clean_anew(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert clean(source, tmp_path / "out") == 0
    stale = tmp_path / "out" / "1 - Thorne - Lamp.txt"
    monkeypatch.setattr(cleaned_folder, "_rules_version", lambda: "other")
    touched = stale.stat().st_mtime_ns
    assert clean(source, tmp_path / "out") == 0
    assert stale.stat().st_mtime_ns > touched


def test_what_a_person_corrected_is_kept(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clean(source, tmp_path / "out") == 0
    mine = tmp_path / "out" / "1 - Thorne - Lamp.txt"
    mine.write_text("Corrected by hand.\n")
    (source / mine.name).write_text(make_book(99), encoding="utf-8")
    capsys.readouterr()
    for _ in range(2):
        assert clean(source, tmp_path / "out") == 0
        assert mine.read_text() == "Corrected by hand.\n"
        said = capsys.readouterr().out
        assert f"{mine.name}: changed by hand" in said
        assert "1 books were changed by hand and are kept" in said
    assert [row["reason"] for row in rows(tmp_path / "out" / "reports" / "review.csv")] == ["changed by hand"]
    book = {book.file: book for book in read_books(tmp_path / "out")}[mine.name]
    assert book.sha256 == hashlib.sha256(mine.read_bytes()).hexdigest()
    mine.unlink()
    assert clean(source, tmp_path / "out") == 0
    assert LAST in mine.read_text()


def test_a_file_that_was_there_before_is_kept(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    mine = tmp_path / "out" / "1 - Thorne - Lamp.txt"
    mine.write_text("Mine.\n")
    assert clean(source, tmp_path / "out") == 0
    assert mine.read_text() == "Mine.\n"


def test_books_that_left_the_input_go(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clean(source, tmp_path / "out") == 0
    corrected = tmp_path / "out" / "3 - Thorne - Lamp.txt"
    corrected.write_text("Corrected by hand.\n")
    foreign = tmp_path / "out" / "mine.txt"
    foreign.write_text("Mine.\n")
    for number in (2, 3):
        (source / f"{number} - Thorne - Lamp.txt").unlink()
    assert clean(source, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "1 books have left the input and are removed: 2 - Thorne - Lamp.txt" in said
    assert "changed by hand and are kept: 3 - Thorne - Lamp.txt" in said
    assert "mine.txt" in said
    assert not (tmp_path / "out" / "2 - Thorne - Lamp.txt").exists()
    assert corrected.exists()
    assert foreign.exists()
    assert [book.file[0] for book in read_books(tmp_path / "out")] == ["0", "1"]


def steps(monkeypatch: pytest.MonkeyPatch, stop: int) -> Iterator[None]:
    """Lets the program be interrupted before the file that it publishes as the `stop`th."""
    count = iter(range(1000))
    real = Path.replace

    def replace(path: Path, target: Path) -> Path:
        if next(count) == stop:
            raise KeyboardInterrupt
        return real(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", replace)
        yield


def test_an_interruption_anywhere_changes_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the folder was made from other books before."""
    assert clean(source, tmp_path / "whole") == 0
    whole = content(tmp_path / "whole")
    for path in source.iterdir():
        shutil.copy(path, tmp_path)
    (source / "2 - Thorne - Lamp.txt").write_text(make_book(50), encoding="utf-8")
    (source / "3 - Thorne - Lamp.txt").unlink()
    (source / "9 - Gone.txt").write_text(make_book(51), encoding="utf-8")
    assert clean(source, tmp_path / "old") == 0
    (source / "9 - Gone.txt").unlink()
    for path in tmp_path.glob("*.txt"):
        shutil.copy(path, source)
    stops = 0
    while True:
        out = tmp_path / f"out{stops}"
        if stops % 2:
            shutil.copytree(tmp_path / "old", out)
        codes = [clean(source, out) for _ in steps(monkeypatch, stops)]
        if codes == [0]:
            break
        assert codes == [75]
        for name, data in content(out).items():
            if name.endswith(".txt") and not name.startswith(".") and name in whole:
                assert data in (whole[name], content(tmp_path / "old").get(name)), name
        assert clean(source, out) == 0
        assert content(out) == whole, stops
        stops += 1
    assert stops > 6


def test_a_killed_program_goes_on(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(25):
        (tmp_path / "in" / f"{number}.txt").write_text(make_book(number, chapters=25), encoding="utf-8")
    arguments = ("--input_dir", tmp_path / "in", "--num_workers", 1, "--output_dir")
    command = command_line("data/clean_gutenberg.py", *arguments, tmp_path / "out")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as killed:
        while not list((tmp_path / "out").glob("*.txt")):
            assert killed.poll() is None
            time.sleep(0.01)
        os.killpg(killed.pid, signal.SIGKILL)
    assert 0 < len(list((tmp_path / "out").glob("*.txt"))) < 25
    assert not (tmp_path / "out" / "books.csv").exists()
    for folder in ("out", "whole"):
        assert clean(tmp_path / "in", tmp_path / folder, "--unwrap", "true") == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_bad_books_are_named_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    books = {
        "empty.txt": b"",
        "blank.txt": b" \n\r\n",
        "binary.txt": bytes(range(256)) * 40,
        "licence.txt": make_file(HEADERS["2008"], FOOTERS["2008"]).encode(),
        "short.txt": make_file(HEADERS["2008"], "One sentence.", FOOTERS["2008"]).encode(),
        "con\ntrol\x07.txt": make_book(1).encode(),
        "back\\slash.txt": make_book(1).encode(),
        "l" * (LONGEST_NAME - 3) + ".txt": make_book(1).encode(),
    }
    (tmp_path / "in").mkdir()
    for name, data in books.items():
        (tmp_path / "in" / name).write_bytes(data)
    (tmp_path / "in" / os.fsdecode(b"caf\xe9.txt")).write_bytes(make_book(1).encode())
    (tmp_path / "in" / "picture.png").write_bytes(b"PNG")
    for _ in range(2):
        assert clean(tmp_path / "in", tmp_path / "out") == 0
        said = capsys.readouterr().out
        assert "picture.png" in said
        assert "3 books are left out: nothing left" in said
        assert "4 books are left out: refused" in said
        assert all(line.isprintable() for line in said.splitlines())
    assert sorted(path.name for path in (tmp_path / "out").glob("*.txt")) == ["con\ntrol\x07.txt", "short.txt"]
    assert (tmp_path / "out" / "short.txt").read_text() == "One sentence.\n"
    reviews = {row["file"]: row["reason"] for row in rows(tmp_path / "out" / "reports" / "review.csv")}
    assert reviews.pop("short.txt") == "very short"
    assert sorted(reviews.values()) == ["nothing left"] * 3 + ["refused"] * 4
    assert len(read_books(tmp_path / "out")) == 2


def test_wrong_folders(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    cases = [
        (tmp_path / "nowhere", tmp_path / "out", "is not there"),
        (tmp_path / "file", tmp_path / "out", "is no folder"),
        (tmp_path / "empty", tmp_path / "out", "has no *.txt files"),
        (source, source, "must lie apart"),
        (source, source / "out", "must lie apart"),
        (source, tmp_path, "must lie apart"),
        (source, tmp_path / "file", "is no folder"),
    ]
    for folder, out, words in cases:
        assert clean(folder, out) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert clean(source, tmp_path / "out", "--num_workers", -1) == 2
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty" / "none.txt").write_text("")
    assert clean(tmp_path / "empty", tmp_path / "out") == 65


def test_swapped_folders_change_nothing(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clean(source, tmp_path / "out") == 0
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    assert clean(tmp_path / "out", source) == 2
    assert "has books that are cleaned, see its reports/: is it the --output_dir?" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_books_in_folders_are_counted(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / "sub" / "deep").mkdir(parents=True)
    (source / "sub" / "deep" / "Un.TXT").write_text("Un livre.")
    (source / "none").mkdir()
    assert clean(source, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "1 books lie in folders of" in said and "(sub): put them beside the others" in said
    assert "are no *.txt files and are left out: none" in said


def test_the_edges_of_own_books_stay_and_are_listed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    story = "".join(f"Chapitre {number}\r\n\r\n{'Elle attendait la nuit. ' * 40}\r\n\r\n" for number in range(1, 6))
    contents = "".join(f"Chapitre {number} ....... {number * 11}\r\n" for number in range(1, 6))
    front = "L'AUBE\r\n\r\n© Éditions du Lac, 1998\r\nTous droits réservés.\r\n\r\n"
    front += f"TABLE DES MATIÈRES\r\n\r\n{contents}\r\n"
    back = "FIN\r\n\r\nAchevé d'imprimer en mars 1998\r\n"
    (tmp_path / "in" / "L'Aube.TXT").write_bytes((front + story + back).encode("cp1252"))
    (tmp_path / "in" / "plain.txt").write_bytes(story.encode("cp1252"))
    assert clean(tmp_path / "in", tmp_path / "out") == 0
    listed = [(row["file"], row["reason"], row["text"]) for row in rows(tmp_path / "out" / "reports" / "review.csv")]
    listed = [line for line in listed if line[1] != "encoding"]  # a short text's is a guess
    assert [(file, reason) for file, reason, _ in listed] == [
        ("L'Aube.TXT", "contents left in"),
        ("L'Aube.TXT", "publisher's page left in"),
        ("L'Aube.TXT", "publisher's page left in"),
    ]
    assert listed[1][2] == "© Éditions du Lac, 1998 Tous droits réservés." and "Achevé d'imprimer" in listed[2][2]
    text = (tmp_path / "out" / "L'Aube.TXT").read_text(encoding="utf-8")
    assert "Tous droits réservés." in text and "Chapitre 5 ....... 55" in text


def test_a_list_that_a_person_wrote_says_language_and_licence(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "Größe.txt").write_bytes(("Es war kalt; die Straße glänzte.\r\n\r\n" * 60).encode("latin-1"))
    columns = "file,number,title,authors,language,licence,address,encoding,sha256\r\n"
    (tmp_path / "in" / "books.csv").write_text(f"\ufeff{columns}Größe.txt,,Größe,Vidal,de,cc-by-4.0,,,\r\n", "utf-8")
    assert clean(tmp_path / "in", tmp_path / "out") == 0
    (book,) = read_books(tmp_path / "out")
    assert (book.language, book.licence, book.encoding) == ("de", "cc-by-4.0", "iso-8859-1")
