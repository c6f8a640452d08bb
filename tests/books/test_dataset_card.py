"""The card of a dataset of chunks: what the Hub, `datasets` and readers find in it, with hostile titles too."""

from __future__ import annotations

import datasets
import pytest
import yaml

from lit_gpt.errors import DataError
from tests.books.chunk_folders import BOOKS, MADE, book, make_folder, rows_of, write_chunks
from utils.books.dataset_card import dataset_card, shown


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


def test_text_stays_text():
    assert shown("a|b\n# c `d` <e>\\|*_[]\x00\u202e\t") == (
        "a&#124;b &#35; c &#96;d&#96; &#60;e&#62;&#92;&#124;&#42;&#95;&#91;&#93;"
    )
    assert shown("L’Île: 1984, “x”-y") == "L’Île: 1984, “x”-y"
