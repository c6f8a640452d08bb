"""prepare_data.py on books, whole and as chunks that are joined: end tokens stand at the ends of books alone."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pyarrow
import pytest
from pyarrow import feather, parquet

from data import chunk_books
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import TOKENIZER, run_command
from tests.prepare.test_prepare_data import assert_conserved, pieces_of, prepare
from utils.books.book_list import Book, books_csv, write_books
from utils.books.chunk_files import COLUMNS
from utils.books.options import ChunkOptions
from utils.data.manifest import Manifest
from utils.prepare import plan
from utils.prepare.book_folders import BOOKS, FIRST_LINE
from utils.prepare.joined_rows import CHUNK_COLUMNS

WORDS = ["bonjour", "le", "marché", "été", "ça", "oui!", "de", "la", "nuit.", "Elle", "dit"]
LENGTHS = {"1 - A - Une.txt": 4000, "2 - B - The acid test.txt": 60, "own.txt": 900, "validation - of a kind.txt": 5}


def books_of(lengths, seed=0):
    """File → text in paragraphs, of so many words."""
    draw = random.Random(seed)
    books = {}
    for name, words in lengths.items():
        parts = [draw.choice(WORDS) + draw.choice([" ", " ", " ", "\n\n"]) for _ in range(words)]
        books[name] = "".join(parts).strip() + "\n"
    return books


@pytest.fixture
def clean(tmp_path):
    """A folder as data/clean_gutenberg.py leaves it."""
    folder = tmp_path / "corpus" / "books"
    (folder / "reports" / "records").mkdir(parents=True)
    (folder / "reports" / "records" / "0123.jsonl").write_text('{"name": "own.txt"}\n')
    for name, text in books_of(LENGTHS).items():
        (folder / name).write_text(text, encoding="utf-8")
    listed = [Book(name, None, name, "", "fr", "", "", "utf-8", "0" * 64) for name in LENGTHS]
    write_books(folder, listed)
    (folder / "reports" / "removed.jsonl").write_text('{"text": "licence"}\n')
    (folder / "reports" / "review.csv").write_text("file,reason,line,text\nx,y,1,licence\n")
    return folder


def chunks_of(folder, *options):
    out = folder.parents[1] / "chunks" / "books"
    out.parent.mkdir(exist_ok=True)
    words = ["--input_dir", folder, "--output_dir", out, "--chunk_target", 300, "--chunk_min", 250, *options]
    assert run_command(ChunkOptions, chunk_books.main, list(map(str, words))) == 0
    return out


def ends_of(folder):
    """How many end tokens there are, how often one is the last of a piece, and how many rows."""
    [entry] = Manifest.load(folder).splits
    pieces, _, _ = pieces_of(folder, entry, Manifest.load(folder).window)
    end = Tokenizer(TOKENIZER).eos_id
    return (
        sum(int((piece == end).sum()) for piece in pieces),
        sum(int(piece[-1] == end) for piece in pieces),
        entry.rows,
    )


def assert_whole_books(source, folder):
    """Each book is one document, whose end token is behind its last word; every other token is the text's."""
    assert_conserved(source, folder, forms={"books train": [text.strip() for text in books_of(LENGTHS).values()]})
    count, last, rows = ends_of(folder)
    assert count == last == len(LENGTHS) and rows > 20


def test_what_this_room_knows_of_books_is_what_makes_them(clean):
    assert books_csv([]).encode() == FIRST_LINE and (clean / BOOKS).read_bytes().startswith(FIRST_LINE)
    assert list(COLUMNS) == CHUNK_COLUMNS


@pytest.mark.parametrize("parts", [False, True])
def test_a_folder_of_books_has_a_document_for_each_and_no_other(clean, tmp_path, capsys, monkeypatch, parts):
    if parts:
        monkeypatch.setattr(plan, "BLOCK_BYTES", 1000)
    assert prepare(clean.parent, tmp_path / "data") == 0
    assert_whole_books(clean.parent, tmp_path / "data")
    said = capsys.readouterr().out
    assert "books.csv lists the books" in said and "not read:" not in said and "held out" not in said
    assert not (tmp_path / "data" / "reports").exists()


def test_books_that_were_not_cleaned_are_said_to_be(clean, tmp_path, capsys):
    assert prepare(clean, tmp_path / "cleaned") == 0
    assert "were not cleaned" not in capsys.readouterr().out
    shutil.rmtree(clean / "reports")
    assert prepare(clean, tmp_path / "acquired") == 0
    assert f"{clean} has books that were not cleaned" in capsys.readouterr().out


def test_a_pattern_of_books_is_taken_as_the_folder_is(clean, tmp_path):
    assert prepare(clean / "*.txt", tmp_path / "data") == 0
    [entry] = Manifest.load(tmp_path / "data").splits
    assert entry.documents == len(LENGTHS)


def test_a_table_of_that_name_is_a_corpus_still(tmp_path):
    (tmp_path / "source" / "reports").mkdir(parents=True)
    (tmp_path / "source" / "books.csv").write_text("text,title\nOne two three,T\n")
    (tmp_path / "source" / "reports" / "a.txt").write_text("four")
    assert prepare(tmp_path / "source", tmp_path / "data") == 0
    assert sum(entry.documents for entry in Manifest.load(tmp_path / "data").splits) == 2


@pytest.mark.parametrize("parts", [False, True])
def test_chunks_are_joined_to_the_books_they_were_cut_from(clean, tmp_path, monkeypatch, parts):
    if parts:
        monkeypatch.setattr(plan, "BLOCK_BYTES", 1000)
    chunks = chunks_of(clean)
    assert prepare(chunks.parent, tmp_path / "data", "--join_field", "source") == 0
    assert_whole_books(chunks.parent, tmp_path / "data")
    [entry] = Manifest.load(tmp_path / "data").splits
    assert [fact["join_field"] for fact in entry.sources] == ["source"]


def test_chunks_that_are_not_joined_are_said_to_end_with_end_tokens_each(clean, tmp_path, capsys):
    chunks = chunks_of(clean)
    assert prepare(chunks.parent, tmp_path / "data") == 0
    count, _, _ = ends_of(tmp_path / "data")
    said = capsys.readouterr().out
    [line] = [line for line in said.splitlines() if "chunks of books" in line]
    assert count > 30 and "an end token follows each; --join_field source makes whole books of them" in line
    assert "(books/README.md, books/SHA256SUMS): they describe data" in said
    # another choice makes the same data folder anew
    assert prepare(chunks.parent, tmp_path / "data", "--join_field", "source") == 0
    assert_whole_books(chunks.parent, tmp_path / "data")


TABLES = {
    "again.parquet": lambda table, path: parquet.write_table(table, path, row_group_size=3),
    "again.arrow": lambda table, path: feather.write_feather(table, str(path), compression="uncompressed"),
    "again.csv": lambda table, path: table.to_pandas().to_csv(path, index=False),
    "again.jsonl": lambda table, path: path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist())),
    "again.json": lambda table, path: path.write_text(json.dumps(table.to_pylist(), indent=1)),
}


@pytest.mark.parametrize("name", TABLES)
def test_chunks_in_any_table_are_joined_also_as_an_entry_of_datasets(clean, tmp_path, name):
    [file] = chunks_of(clean).glob("*.parquet")
    table = parquet.read_table(file).replace_schema_metadata(None)
    (tmp_path / "tables").mkdir()
    TABLES[name](table, tmp_path / "tables" / name)
    entries = [{"name": "books", "path": str(tmp_path / "tables" / name), "join_field": "source"}]
    words = ["--datasets", json.dumps(entries), "--checkpoint_dir", TOKENIZER, "--destination_path", tmp_path / "data"]
    from prepare_data import PrepareOptions, main

    assert run_command(PrepareOptions, main, list(map(str, [*words, "--max_length", 64, "--num_workers", 1]))) == 0
    assert_whole_books(tmp_path / "tables", tmp_path / "data")


def write_rows(folder, rows, metadata=None):
    (folder / "books").mkdir(parents=True)
    schema = pyarrow.schema(dict.fromkeys(rows[0], pyarrow.string()), metadata=metadata)
    for name, kind in (("number", "int64"), ("position", "int64")):
        if name in rows[0]:
            schema = schema.set(schema.get_field_index(name), pyarrow.field(name, kind))
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), folder / "books" / "a.parquet")
    return folder


def test_rows_of_another_program_are_joined_by_blank_lines(tmp_path):
    rows = [
        {"chunk": text, "book": book}
        for text, book in (("a b", "x"), ("c", "x"), (" d", "x"), ("e", "y"), ("f", None), ("g", None))
    ]
    source = write_rows(tmp_path / "source", rows)
    assert prepare(source, tmp_path / "data", "--text_field", "chunk", "--join_field", "book") == 0
    forms = {"books train": ["a b\n\nc d", "e", "f", "g"]}
    assert_conserved(source, tmp_path / "data", forms=forms)


def test_a_chunk_that_ends_within_a_word_goes_on_there(clean, tmp_path):
    text = "ça" * 400
    (clean / "own.txt").write_text(text, encoding="utf-8")
    for name in LENGTHS.keys() - {"own.txt"}:
        (clean / name).unlink()
    chunks = chunks_of(clean)
    assert parquet.read_table(next(chunks.glob("*.parquet"))).num_rows > 2
    assert prepare(chunks.parent, tmp_path / "data", "--join_field", "source") == 0
    assert_conserved(chunks.parent, tmp_path / "data", forms={"books train": [text]})


ROW = {"text": "un", "source": "x", "number": 1, "position": 0}


@pytest.mark.parametrize(
    ("rows", "more", "code", "words"),
    [
        ([ROW, {**ROW, "position": 2}], [], 65, "position 2 is in row 1, not behind the one before it in its book"),
        ([{**ROW, "position": 1}], [], 65, "position 1 is in row 0"),
        ([ROW, {**ROW, "source": "y", "position": 1}], [], 65, "sort the rows by source and position"),
        ([ROW], ["--join_field", "book"], 65, "has no column 'book' but text, source, number, position"),
        ([ROW], ["--join_field", "text"], 2, "--join_field and --text_field are the same"),
        ([ROW], ["--converter", "messages"], 2, "--join_field is of plain text in --source_path"),
    ],
)  # fmt: skip
def test_what_cannot_be_joined_is_named(tmp_path, capsys, rows, more, code, words):
    source = write_rows(tmp_path / "source", rows)
    assert (
        prepare(source, tmp_path / "data", *(more if "--join_field" in more else ["--join_field", "source", *more]))
        == code
    )
    assert words in capsys.readouterr().err


def test_texts_alone_cannot_be_joined(clean, tmp_path, capsys):
    assert prepare(clean.parent, tmp_path / "data", "--join_field", "source") == 2
    assert "has no rows of text" in capsys.readouterr().err


def test_two_books_of_one_name_and_a_row_without_text(tmp_path, capsys):
    rows = [ROW, {**ROW, "position": 1, "text": None}, {**ROW, "position": 2, "text": "deux"}, {**ROW, "text": "trois"}]
    source = write_rows(tmp_path / "source", rows)
    assert prepare(source, tmp_path / "data", "--join_field", "source") == 65
    assert "a.parquet: the field 'text' is NoneType, no text, in row 1" in capsys.readouterr().err
    assert prepare(source, tmp_path / "data", "--join_field", "source", "--on_bad_input", "skip") == 0
    [entry] = Manifest.load(tmp_path / "data").splits
    assert entry.skipped == {"no_field": 1}
    assert_conserved(source, tmp_path / "data", forms={"books train": ["un\n\ndeux", "trois"]})


def test_a_book_of_many_chunks_is_not_held_in_memory_as_a_whole(tmp_path):
    from utils.prepare.blocks import read_blocks
    from utils.prepare.documents import parse
    from utils.prepare.file_formats import PARQUET, CorpusFile

    rows = [{**ROW, "position": at, "text": f"mot{at} et le mot {at}. "} for at in range(3000)]
    write_rows(tmp_path / "source", rows)
    path = tmp_path / "source" / "books" / "a.parquet"
    blocks = list(read_blocks(CorpusFile(path, "a", PARQUET, join_field="source"), 5000, "text"))
    documents = [document for block in blocks for document in parse(block, "text")[0]]
    assert max(len(document.text) for document in documents) <= 2 * 5000 + 100 and len(documents) > 5
    assert [document.ends for document in documents] == [False] * (len(documents) - 1) + [True]
    whole = b"".join(document.text[document.context :] for document in documents)
    assert whole.decode() == "".join(row["text"] for row in rows).strip()
    assert np.all([document.at == 0 for document in documents])
