"""The card of a dataset of chunks: what the Hub, `datasets` and readers find in it, with hostile titles too."""

from __future__ import annotations

import re

import datasets
import pytest
import yaml
from markdown_it import MarkdownIt

from data import chunk_books, clean_gutenberg
from lit_gpt.errors import DataError
from tests.books.chunk_folders import BOOKS, MADE, book, make_folder, rows_of, write_chunks
from tests.conftest import run_command
from utils.books.dataset_card import dataset_card, shown
from utils.books.options import ChunkOptions, CleanOptions


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_counts_and_columns_are_those_of_the_files(tmp_path):
    folder = make_folder(tmp_path / "chunks")
    card = (folder / "README.md").read_text(encoding="utf-8")
    rows = datasets.Dataset.from_parquet(sorted(map(str, folder.glob("*.parquet"))), cache_dir=str(tmp_path / "cache"))
    info = front_matter(card)["dataset_info"]
    assert info["splits"][0]["num_examples"] == len(rows)
    assert {one["name"]: one["dtype"] for one in info["features"]} == {n: f.dtype for n, f in rows.features.items()}
    assert info["download_size"] == sum(path.stat().st_size for path in folder.glob("*.parquet"))
    characters = sum(map(len, rows["text"]))
    assert f"| all | {len(BOOKS)} | {len(rows)} | {characters:,} |" in card
    french = [row for row in rows if row["source"] == BOOKS[1].file]
    assert f"| fr | 1 | {len(french)} | {sum(len(row['text']) for row in french):,} |" in card
    assert dataset_card(folder, BOOKS, MADE) == card
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["text"][:] == rows["text"][:]


@pytest.mark.parametrize(
    ("licences", "chosen", "expected"),
    [
        (["Public domain in the USA."] * 2, None, ("other", "public-domain-in-the-usa")),
        (["cc-by-4.0"] * 2, None, ("cc-by-4.0", None)),
        (["", ""], "CC-BY-4.0", ("cc-by-4.0", None)),
        (["", ""], "My own licence, 2nd", ("other", "my-own-licence-2nd")),
        (["", ""], "Свободно", ("other", None)),
        (["", ""], " ", (None, None)),
        (["cc-by-4.0", ""], None, (None, None)),
        (["", ""], None, (None, None)),
        (["cc-by-4.0", "Public domain in the USA."], None, (None, None)),
    ],
)
def test_licence_is_the_common_one_or_the_chosen_one(tmp_path, licences, chosen, expected):
    books = [book(str(at), licence=licence) for at, licence in enumerate(licences)]
    write_chunks(tmp_path, rows_of(books))
    found = front_matter(dataset_card(tmp_path, books, MADE, chosen))
    assert (found.get("license"), found.get("license_name")) == expected


def test_sources_are_the_listed_books(tmp_path):
    write_chunks(tmp_path, rows_of(BOOKS[:2]))
    with pytest.raises(DataError, match=r"books\.csv lists 'mine\.txt', of which"):
        dataset_card(tmp_path, BOOKS, MADE)
    with pytest.raises(DataError, match=r"chunks of '12 - Verne - Île\.txt', which books\.csv does not list"):
        dataset_card(tmp_path, BOOKS[:1], MADE)


HOSTILE = [
    "a | b | c",
    "back\\slash \\| and \\",
    "line\nbreak\r\n\n# heading\n| all | 9 | 9 | 9 |",
    "<script>alert(1)</script><!-- -->",
    "`code` ``and`` ``` more",
    "[link](javascript:x) ![image](http://x) <http://x> &lt;b&gt; &amp;",
    "*bold* __too__ ~~gone~~ $x^2$ 1. - + > :smile:",
    "---\nlicense: mit\n---",
    "\x00\u202eright to left\u2066",
    " ",
    "Война и мир — «том» 1",
]


def cells_of(markdown):
    """The texts of all cells of all tables as a browser shows them, by a parser of CommonMark with GitHub's tables."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    cells = []
    for at, token in enumerate(tokens):
        if token.type == "td_open":
            kinds = {child.type for child in tokens[at + 1].children}
            assert kinds <= {"text", "text_special", "link_open", "link_close", "code_inline"}, kinds
            cells.append("".join(child.content for child in tokens[at + 1].children))
    return cells


def test_hostile_titles_authors_and_addresses_are_shown_as_they_are(tmp_path):
    books = []
    for at, text in enumerate(HOSTILE):
        address = f"https://x/{at}>|" if at % 2 else f"https://www.gutenberg.org/ebooks/{at}"
        books.append(book(f"b{at}", at + 1, text, language="en | fr", authors=text[::-1], address=address))
    write_chunks(tmp_path, rows_of(books))
    card = dataset_card(tmp_path, books, MADE)
    metadata, _, text = card.removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(metadata)["license"] == "other"
    cells = cells_of(text)
    works = cells[-7 * len(books) :]
    for at, one in enumerate(books):
        hidden = str.maketrans("\x00\u202e\u2066", "   ")
        title, authors = (" ".join(value.translate(hidden).split()) for value in (one.title, one.authors))
        number, *words, language, _, address, _ = works[7 * at : 7 * at + 7]
        assert (number, language, address) == (str(one.number), one.language, one.address)
        assert words == [title or one.file, authors]


def test_card_says_how_the_books_were_cleaned(tmp_path):
    """By the records of the cleaning, whatever the folders are called; a book that was changed since is counted."""
    (tmp_path / "raw").mkdir()
    for name in ("one", "two"):
        (tmp_path / "raw" / f"{name}.txt").write_text(f"The only line of {name}.\n")
    words = ["--input_dir", tmp_path / "raw", "--output_dir", tmp_path / "clean", "--unwrap", "false"]
    assert run_command(CleanOptions, clean_gutenberg.main, list(map(str, words))) == 0
    line = r"1\. `data/clean_gutenberg.py` with `unwrap`: false, `version of the rules`: [0-9a-f]{12}"
    for at, more in enumerate(("", ", `books changed since`: 1")):
        words = ["--input_dir", tmp_path / "clean", "--output_dir", tmp_path / f"chunks{at}", "--chunk_min", 100]
        assert run_command(ChunkOptions, chunk_books.main, list(map(str, words))) == 0
        card = (tmp_path / f"chunks{at}" / "README.md").read_text(encoding="utf-8")
        assert re.search(f"^{line}{more}$", card, re.MULTILINE)
        assert "2. `data/chunk_books.py` with `chunk_target`: 7000, `chunk_min`: 100\n" in card
        assert str(tmp_path) not in card
        (tmp_path / "clean" / "two.txt").write_text("Changed by hand.\n")
    words[1] = tmp_path / "raw"
    words[3] = tmp_path / "uncleaned"
    assert run_command(ChunkOptions, chunk_books.main, list(map(str, words))) == 0
    assert "clean_gutenberg" not in (tmp_path / "uncleaned" / "README.md").read_text(encoding="utf-8")


def test_text_stays_text():
    assert shown("a|b\n# c `d` <e>\\|*_[]\x00\u202e\t") == (
        "a&#124;b &#35; c &#96;d&#96; &#60;e&#62;&#92;&#124;&#42;&#95;&#91;&#93;"
    )
    assert shown("L’Île: 1984, “x”-y") == "L’Île: 1984, “x”-y"
