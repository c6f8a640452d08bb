"""A folder of chunks that goes to the Hub as a dataset: which of its files are sent, and whether they agree."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_gpt.checksums import SUMS, Check, expected
from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.hf_files import matches
from lit_gpt.formats.hub import Kind
from utils.books.book_list import BOOKS, Book, read_books
from utils.books.chunk_files import CHUNK_FILES, NEEDED, SENT, ChunkFiles, read_chunk_files
from utils.books.dataset_card import counts_of_all, dataset_info, difference
from utils.prepare.dataset_cards import CARD, configs_of, read_metadata, splits_of_subset

_UNFILLED = "[More Information Needed]"  # what the Hub's own template for cards has where something is to be said
_AGAIN = "data/chunk_books.py writes it anew"


def is_whole(folder: Path, names: Sequence[str]) -> bool:
    """True for a dataset whose files agree with each other; an error says what of it is missing, damaged or different.

    All Parquet files are read in full. `names` are those to send.
    """
    for path in folder.iterdir():
        if path.is_symlink() and matches(path.name, NEEDED):
            raise UserError(f"{path} is a link, and links are not sent: put the file in its place")
    for name in NEEDED[1:]:
        if name not in names:
            raise UserError(f"{folder} has no {name}: data/chunk_books.py writes it, beside the {CHUNK_FILES}")
    listed = expected(folder, lambda name: matches(name, SENT) and name != SUMS)
    for path, sha256, *_ in listed:
        if sha256 is None and matches(path.name, (CHUNK_FILES, BOOKS)):
            raise DataError(f"{path} is not in {SUMS}; cut the books again with data/chunk_books.py")
    with Check(file for file in listed if file.sha256):
        files = read_chunk_files(folder, [name for name in names if matches(name, (CHUNK_FILES,))])
        books = read_books(folder)
        if problem := difference(files, books):
            raise DataError(f"{folder}: {problem}; cut the books again with data/chunk_books.py")
        _check_card(folder / CARD, files, books, names)
    return True


def _check_card(card: Path, files: ChunkFiles, books: Sequence[Book], names: Sequence[str]) -> None:
    """Raises an error for a card that is not filled, or not of these files."""
    try:
        text = card.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise DataError(f"{card} is not UTF-8 text: {e}") from None
    metadata = read_metadata(card)
    if not metadata:
        raise UserError(f"{card} is no card, it has no metadata between first lines `---`; {_AGAIN}")
    if _UNFILLED in text:
        raise UserError(f"{card} is not filled, it says {_UNFILLED}; {_AGAIN}")
    if not metadata.get("license"):
        raise UserError(
            f"{card} names no licence, as the books have none or several: run data/chunk_books.py with --licence NAME"
        )
    chunks = {name for name in names if matches(name, (CHUNK_FILES,))}
    configs = configs_of(metadata)
    by_split = splits_of_subset(configs, "", sorted(chunks)) if configs else {}
    if {name for found in by_split.values() for name in found} != chunks:
        raise DataError(f"{card}: its configs do not name the {CHUNK_FILES}; {_AGAIN}")
    if problem := _different_info(metadata.get("dataset_info"), dataset_info(files)):
        raise DataError(f"{card}: its {problem}; {_AGAIN}")
    said, found = counts_of_all(text), (len(books), files.chunks, files.characters)
    if said and said != found:
        words = ["{:,} books, {:,} chunks and {:,} characters".format(*counts) for counts in (said, found)]
        raise DataError(f"{card} says {words[0]}, {BOOKS} and the {CHUNK_FILES} have {words[1]}; {_AGAIN}")


def _different_info(said: Any, found: dict[str, Any]) -> str | None:
    """What a card's dataset_info says that the files do not; None if they agree."""
    if not isinstance(said, dict):
        return f"metadata have no dataset_info with the counts of the {CHUNK_FILES}"
    if said.get("features") != found["features"]:
        columns = ", ".join(f"{one['name']} ({one['dtype']})" for one in found["features"])
        return f"features are not the columns of the {CHUNK_FILES}, {columns}"
    for name in ("splits", "download_size", "dataset_size"):
        if said.get(name) != found[name]:
            return f"{name} are {_flat(said.get(name))}, those of the {CHUNK_FILES} {_flat(found[name])}"
    return None


def _flat(value: Any) -> str:
    return re.sub(r"[][{}']", "", str(value))


DATASET = Kind(
    repo_type="dataset",
    sent=SENT,
    sent_of_folders=(),
    with_links=False,
    needed=(CHUNK_FILES,),
    needed_in_words=f"({CHUNK_FILES})",
    is_whole=is_whole,
    # rows of an earlier version would be read beside those of this one
    is_replaced=lambda name: "/" not in name and matches(name, (CHUNK_FILES, SUMS)),
)
