"""data/chunk_books.py: nothing of a book is lost, chunks have a good size, and their files are the same always."""

from __future__ import annotations

import csv
import random
import sys
from collections import defaultdict

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from data.chunk_books import main
from lit_gpt.checksums import find_difference, read_sums
from tests.conftest import SHARED, run_command
from utils.books import chunk_writer
from utils.books.book_list import Book, read_books, write_books
from utils.books.chunking import Border, Sizes, cut
from utils.books.options import ChunkOptions
from utils.books.sentences import sentence_ends

FRANKENSTEIN = SHARED / "data" / "gutenberg" / "Mary Shelley - Frankenstein.txt"
WORDS = "the a of Raven, night dark and upon was house Mr. Usher; il été très 我們 Ночь tür"


def story(paragraphs, seed=0, longest=12):
    """Paragraphs of 1 to `longest` sentences, as a novel has them; with headings."""
    draw = random.Random(seed)
    parts = []
    for number in range(paragraphs):
        sentences = []
        for _ in range(draw.randint(1, longest)):
            words = draw.choices(WORDS.split(), k=draw.randint(2, 30))
            sentences.append(" ".join(words).capitalize() + draw.choice(".!?"))
        parts.append(" ".join(sentences))
        if number % 20 == 0:
            parts.append(f"CHAPTER {number // 20}")
    return "\n\n".join(parts) + "\n"


def chunk(folder, *options, source=None, code=0):
    words = ["--input_dir", source or folder / "clean", "--output_dir", folder / "out", *options]
    assert run_command(ChunkOptions, main, list(map(str, words))) == code
    return folder / "out"


def rows_of(folder):
    """The rows of a folder's files, each a dict, read by pyarrow alone."""
    rows = []
    for path in sorted(folder.glob("*.parquet")):
        rows += parquet.read_table(path).to_pylist()
    return rows


def books_of(folder):
    """Source → its texts by position."""
    texts = defaultdict(dict)
    for row in rows_of(folder):
        assert row["position"] not in texts[row["source"]]
        texts[row["source"]][row["position"]] = row["text"]
    for source, by_position in texts.items():
        assert sorted(by_position) == list(range(len(by_position))), source
    return {source: [by[at] for at in sorted(by)] for source, by in texts.items()}


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path):
    """A folder with cleaned books: two of a list, one's own, one that is shorter than a chunk."""
    clean = tmp_path / "clean"
    (clean / "reports").mkdir(parents=True)
    (clean / "reports" / "review.csv").write_text("file,reason,line,text\n", encoding="utf-8")
    texts = {
        "11 - Poe - Usher.txt": story(300, seed=1),
        "12 - Poe - Corbeau.txt": story(200, seed=2, longest=60),
        "own.txt": "A\ttext of one's own:\n\n" + story(50, seed=3),
        "short.txt": "It ends soon.\n",
    }
    for name, text in texts.items():
        (clean / name).write_text(text, encoding="utf-8", newline="")
    rest = ("Poe", "fr; en", "Public domain in the USA.", "http://x", "utf-8", "0" * 64)
    write_books(
        clean, [Book("12 - Poe - Corbeau.txt", 12, "Corbeau", *rest), Book("11 - Poe - Usher.txt", 11, "Usher", *rest)]
    )
    return tmp_path


# ------------------------------------------------------------------------------------------------------------- chunks


@pytest.mark.shared
def test_the_chunks_of_a_real_book_joined_are_the_book_and_nearly_all_have_a_good_size(tmp_path):
    (tmp_path / "clean").mkdir()
    text = FRANKENSTEIN.read_text(encoding="utf-8-sig")
    unwrapped = "\n\n".join(part.replace("\n", " ") for part in text.split("\n\n"))
    for name, book in (("wrapped.txt", text), ("unwrapped.txt", unwrapped)):
        (tmp_path / "clean" / name).write_text(book, encoding="utf-8", newline="")
    found = books_of(chunk(tmp_path))
    assert "".join(found["wrapped.txt"]) == text and "".join(found["unwrapped.txt"]) == unwrapped
    assert "".join("".join(found["unwrapped.txt"]).split()) == "".join(text.split())
    lengths = [len(one) for texts in found.values() for one in texts]
    assert sum(6000 <= length <= 9100 for length in lengths) >= 0.95 * len(lengths)
    assert all(one.endswith("\n\n") for texts in found.values() for one in texts[:-1])  # all end with a paragraph


_PIECES = st.sampled_from(
    [
        "a",
        "Bc",
        "word.",
        "End. ",
        "Mr. ",
        " ",
        "\n",
        "\n\n",
        "\r\n\r\n",
        "\n \n\n",
        "é",
        "e\u0301",
        "好。",
        "\u3000",
        "“",
        "\t",
    ]
)
TEXTS = st.one_of(st.text(max_size=200), st.lists(_PIECES, max_size=120).map("".join))


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.integers(1, 40), st.floats(0.01, 1), st.sampled_from(["en", "fr", "zh", "xx", ""]))
@example("", 5, 1.0, "en")
@example(" \n\n ", 5, 1.0, "en")
@example("\n\n  a", 1, 1.0, "en")
@example("x" * 500, 7, 0.9, "en")
@example("x " * 300, 1, 1.0, "en")
@example("a" + " " * 100 + "b", 10, 0.8, "en")
def test_nothing_is_lost_and_no_chunk_is_too_long_whatever_the_text(text, target, share, language):
    sizes = Sizes(target, max(1, int(share * target)))
    chunks = cut(text, sizes, language)
    assert "".join(part.text for part in chunks) == (text if text.strip() else "")
    for part in chunks:
        assert part.text.strip(), "a chunk of white space"
        # white space is never cut, nor what is shorter than a chunk and ends with it
        assert len(part.text.strip()) <= sizes.most


@given(st.integers(1, 400), st.integers(0, 5), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_sizes_are_kept_wherever_a_book_is_long_enough(paragraphs, seed, longest):
    text = story(paragraphs, seed, longest)
    sizes = Sizes(1400, 1200)
    lengths = [len(part.text) for part in cut(text, sizes)]
    if len(text) <= sizes.most:
        assert len(lengths) == 1
    # a border may be a paragraph away that is too short to be split: between two numbers of chunks not every length
    # can be had
    away = (sizes.most - sizes.least) // 2
    can = [away * (n - 1) + n * sizes.least <= len(text) <= n * sizes.most - away * (n - 1) for n in range(2, 6)]
    if any(can) or len(text) > 8000:
        assert all(sizes.least <= length <= sizes.most for length in lengths), lengths


def test_the_last_chunks_share_what_would_be_a_stub():
    sentence = "It was a dark and stormy night, as they say, in all of it. "  # 59 characters
    for count in range(120, 420, 7):
        text = "".join(sentence + ("\n\n" if number % 4 == 3 else "") for number in range(count))
        lengths = [len(part.text) for part in cut(text, Sizes(7000, 6000))]
        if len(text) > 9100:
            assert min(lengths) >= min(6000, len(text) / 2 - 350), lengths
        if 9100 < len(text) < 12000:
            assert len(lengths) == 2 and abs(lengths[0] - lengths[1]) < 700, lengths


def ends_of(text, sizes, **options):
    return [part.end for part in cut(text, sizes, **options)[:-1]]


def test_a_cut_is_where_it_hurts_least():
    paragraphs = story(200, longest=8)
    assert set(ends_of(paragraphs, Sizes(3000, 2500))) == {Border.PARAGRAPH}
    # one paragraph between two short ones: its sentences
    sentences = "“Stop!” said Mr. Smith. " * 100
    found = cut(f"A.\n\n{sentences}\n\nB.", Sizes(500, 400))
    assert {part.end for part in found[:-1]} == {Border.SENTENCE}
    assert all(part.text.endswith(("Smith. ", "!” said Mr. Smith. ")) for part in found[:-1])
    # a line that ends a sentence is better than a sentence within a line
    verse = (
        "Once upon a midnight dreary, I pondered. Weak\nand weary I was, over many a quaint and curious volume.\n" * 40
    )
    assert set(ends_of(verse, Sizes(500, 300))) == {Border.SENTENCE_AND_LINE}
    # a sentence longer than a chunk: lines where it has them, else words
    assert set(ends_of("many words and a line's end\n" * 100, Sizes(500, 400))) == {Border.LINE}
    assert set(ends_of("words " * 500, Sizes(500, 400))) == {Border.WORD}
    # a word longer than a chunk, and one that is not
    found = cut("w" * 450 + " " + "x" * 2000 + " " + "y" * 450, Sizes(500, 400))
    assert {part.end for part in found} >= {Border.LETTER} and found[0].text.startswith("w" * 450)
    assert all(400 <= len(part.text) <= 650 for part in found)


@pytest.mark.parametrize("heading", ["CHAPTER XI.", "The House of Usher", "XI", "Chapter 11. Of ravens", "* * *"])
def test_no_chunk_ends_with_a_heading(heading):
    parts = [f"{heading}\n\n\n" if number % 5 == 0 else "“Nevermore,” it said. " * 7 + "\n\n" for number in range(300)]
    chunks = cut("".join(parts), Sizes(700, 500))
    assert len(chunks) > 40 and {part.end for part in chunks} == {Border.PARAGRAPH}
    assert not any(part.text.rstrip().endswith(heading) for part in chunks)


def test_an_indented_line_keeps_its_indentation():
    stanza = "".join(f"    line {number} of a stanza\n" for number in range(8)) + "\n"
    assert all(part.text.startswith("    line 0") for part in cut(stanza * 30, Sizes(500, 300)))


@pytest.mark.parametrize("language", ["en", "fr", "de", "zh", "la", "tl", "xx", "", "no such"])
def test_sentences_of_a_language_that_is_not_known_are_split_too(language):
    assert sentence_ends("One is here. Two is not.\nThree", language) == [13, 25]


@pytest.mark.parametrize(
    "marks", ["“%s”", '"%s"', "«\u202f%s\u202f»", "‘%s’", "(%s)", "„%s“", "%s", "“%s” he said; and: “%s”"]
)
def test_a_long_speech_is_split_between_its_sentences_too(marks):
    speech = " ".join(["Mr. Usher was here.", "“Was he?” I thought, and left.", "He was!"] * 30)
    if marks.startswith("„"):  # “ closes here
        speech = speech.translate({ord("“"): "‚", ord("”"): "‘"})
    text = marks.replace("%s", speech)
    ends = sentence_ends(text, "en")
    assert len(ends) >= 3 * 30 - 1
    for end in ends:
        assert text[:end].rstrip().rstrip("”‘").endswith((".", "!", "?", "and:")) and text[end - 1].isspace(), text[
            end - 20 : end + 20
        ]
        assert not text[:end].rstrip().endswith(("Mr.", " “"))
    assert {part.end for part in cut(text, Sizes(500, 400))} <= {Border.SENTENCE, Border.PARAGRAPH}


def test_a_text_of_quotation_marks_takes_no_longer_than_another():
    assert len(cut("“" * 200_000, Sizes(7000, 6000))) >= 200_000 // 9100  # it took minutes in one piece


# ---------------------------------------------------------------------------------------------------------- the folder


def test_rows_say_which_book_they_are_of(folder):
    out = chunk(folder, "--chunk_target", "2000", "--chunk_min", "1700")
    for source, texts in books_of(out).items():
        assert "".join(texts) == (folder / "clean" / source).read_text(encoding="utf-8")
    rows = rows_of(out)
    assert [row["source"] for row in rows] == sorted(row["source"] for row in rows)
    numbers = {row["source"]: row["number"] for row in rows}
    assert numbers == {"11 - Poe - Usher.txt": 11, "12 - Poe - Corbeau.txt": 12, "own.txt": None, "short.txt": None}
    with (out / "books.csv").open(encoding="utf-8", newline="") as file:
        titles = [row["title"] for row in csv.DictReader(file)]
    assert titles == ["Usher", "Corbeau", "own", "short"]
    names = sorted(path.name for path in out.iterdir())
    assert names == ["README.md", "SHA256SUMS", "books.csv", "data-00000-of-00001.parquet"]
    assert find_difference(out, read_sums(out)) is None
    schema = parquet.read_schema(out / names[-1])
    assert [(field.name, str(field.type)) for field in schema] == [
        ("text", "string"),
        ("source", "string"),
        ("number", "int64"),
        ("position", "int64"),
    ]


def test_the_files_are_the_same_whatever_the_number_of_processes(folder, monkeypatch):
    monkeypatch.setattr(chunk_writer, "FILE_CHARACTERS", 150_000)
    monkeypatch.setattr(chunk_writer, "GROUP_CHARACTERS", 30_000)
    made = []
    for number in ("1", "2"):
        made.append(content(chunk(folder, "--num_workers", number)))
        (folder / "out").rename(folder / f"out {number}")
    assert made[0] == made[1] and "data-00001-of-00002.parquet" in made[0]


def test_a_second_call_works_only_where_something_changed(folder, capsys):
    out = chunk(folder)
    first = content(out)
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "README.md").write_text("edited", encoding="utf-8")
    chunk(folder)
    assert "up to date" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name != "README.md"} == {
        name: time for name, time in times.items() if name != "README.md"
    }
    (out / "data-00000-of-00001.parquet").write_bytes(first["data-00000-of-00001.parquet"][:-50])
    assert content(chunk(folder)) == first
    with (folder / "clean" / "own.txt").open("a", encoding="utf-8") as file:
        file.write("One more.")
    assert books_of(chunk(folder))["own.txt"][-1].endswith("One more.")
    assert content(chunk(folder, "--chunk_min", "5000")) != first


def test_a_reader_may_change_and_remove_books(folder, capsys):
    (folder / "clean" / "11 - Poe - Usher.txt").unlink()
    (folder / "clean" / "empty.txt").write_text(" \n")
    out = chunk(folder)
    said = capsys.readouterr().out
    assert "1 book is listed in books.csv and not in" in said and "empty.txt has no text: left out" in said
    assert "1 book is changed since books.csv was written" in said
    assert [book.file for book in read_books(out)] == ["12 - Poe - Corbeau.txt", "own.txt", "short.txt"]


def test_what_cannot_be_cut_is_named_and_nothing_is_written(folder, monkeypatch, capsys):
    def refused(code, words, *options, source=None):
        chunk(folder, *options, source=source, code=code)
        assert words in capsys.readouterr().err

    (folder / "clean" / "latin.txt").write_bytes("été".encode("latin-1"))
    refused(65, "latin.txt is not UTF-8 text (byte 0); data/clean_gutenberg.py")
    refused(65, "latin.txt is not UTF-8 text (byte 0); data/clean_gutenberg.py", "--num_workers", 2)
    refused(2, "no is no folder", source=folder / "no")
    none = folder / "none"
    none.mkdir()
    refused(2, "none has no *.txt file; data/clean_gutenberg", source=none)
    (none / "blank.txt").write_text("\n")
    refused(65, "none has text", source=none)
    refused(2, "--chunk_min 6000 must be from 1 to --chunk_target 500", "--chunk_target", 500)
    monkeypatch.setitem(sys.modules, "sentencex", None)
    refused(2, "needs sentencex: pip install sentencex")
    assert not (folder / "out").exists() and not list(folder.glob(".out*"))


def test_a_folder_with_files_of_others_is_not_replaced(folder, capsys):
    clean = content(folder / "clean" / "reports")
    for out, words in [("clean", "lies in --output_dir"), (".", "lies in --output_dir")]:
        chunk(folder, "--output_dir", folder / out, code=2)
        assert words in capsys.readouterr().err
    books = folder / "books"
    books.mkdir()
    (books / "mine.txt").write_text("Mine.")
    (books / "books.csv").write_text("file\n")
    chunk(folder, "--output_dir", books, code=2)
    assert "books holds something else (mine.txt)" in capsys.readouterr().err
    assert (books / "mine.txt").read_text() == "Mine." and content(folder / "clean" / "reports") == clean


def test_a_licence_stays_beside_new_chunks(folder):
    out = chunk(folder)
    (out / "LICENCE.txt").write_text("As you like.")
    (out / "data-00007-of-00008.parquet").write_bytes(b"of an earlier version")
    chunk(folder, "--chunk_min", 5000)
    assert (out / "LICENCE.txt").read_text() == "As you like."
    assert [path.name for path in out.glob("*.parquet")] == ["data-00000-of-00001.parquet"]


def test_a_book_is_cut_whatever_the_case_of_its_ending(folder, capsys):
    (folder / "clean" / "own.txt").rename(folder / "clean" / "own.TXT")
    books = read_books(chunk(folder))
    assert [(book.file, book.title) for book in books][2] == ("own.TXT", "own")
    assert "clean has no record of a cleaning: its texts are cut as they are" in capsys.readouterr().out
