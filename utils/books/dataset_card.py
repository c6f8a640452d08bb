"""The card (README.md) of a dataset of chunks: works, licences, how it was made, counts, and how it is used.

Titles and names come from elsewhere: `shown` keeps them texts, whatever they hold. Nothing here depends on the machine
or the time: the same books make the same card.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.errors import DataError
from utils.books.book_list import BOOKS, Book
from utils.books.chunk_files import CHUNK_FILES, ChunkFiles, Counts, chunk_file_names, read_chunk_files
from utils.prepare.languages import language_of_code

_SPECIAL = re.compile(r"[\\`*_{}\[\]<>#|~&$]")  # what Markdown, HTML or mathematics could begin with
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # controls, and those that turn a line around
_ADDRESS = re.compile(r"https?://[A-Za-z0-9.:/~%?&=+,;@!$_-]+")

# Licences for texts that the Hub has a name for; another one is `other` with its own name.
_HUB_NAMES = """
    apache-2.0 mit unlicense wtfpl gpl-2.0 gpl-3.0 agpl-3.0 gfdl pddl odbl odc-by etalab-2.0 afl-3.0 artistic-2.0
    cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
"""
_HUB_LICENCES = frozenset(_HUB_NAMES.split())
_LINKS = {"public-domain-in-the-usa": "https://www.gutenberg.org/policy/permission.html"}
_SIZES = (
    *((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")),
    *((10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B")),
)

_GUTENBERG = """
Project Gutenberg is a registered trademark of the Project Gutenberg Literary Archive Foundation. Its licence text,
headers and notes were taken out of the works, as its terms ask of those who pass texts on without them; the name stands
here only to say where the texts come from. This dataset is neither made nor endorsed by Project Gutenberg. The works
are in the public domain in the United States where the table says so; who lives elsewhere has to look at the law there.
"""
_USE = """
```python
from datasets import load_dataset

chunks = load_dataset("ORG/NAME", split="train")  # this dataset's name; or a folder that holds its files
```

Whole books train better than chunks: the chunks of a book, joined again, are packed into windows, with an end token
only where a book ends. Fabricant, which made this dataset, does that in `prepare_data.py --config FILE`, with this
file:

```yaml
datasets: [{name: books, hub: ORG/NAME, join_field: source}]
checkpoint_dir: MODEL
destination_path: DATA
```

or, of a folder that holds the files, with `--source_path FOLDER --join_field source`.
"""


def dataset_card(
    folder: Path, books: Sequence[Book], made: Sequence[tuple[str, Mapping[str, Any]]], licence: str | None = None
) -> str:
    """The text of README.md for the Parquet files in `folder`.

    Args:
        folder: Holds the Parquet files, all of them.
        books: Those of books.csv beside them, each with its chunks in the files.
        made: The commands that made the dataset, in order, each with the settings that the result depends on.
        licence: As the Hub names it, or any other name. Default: the one that all books have; a card without licence
            if they have several or one has none, which cannot be uploaded.

    Raises:
        DataError: if the Parquet files are damaged, or their sources are not the books.
    """
    licence = (licence or "").strip() or None
    files = read_chunk_files(folder, chunk_file_names(folder))
    if problem := difference(files, books):
        raise DataError(f"{folder}: {problem}")
    front = _front_matter(files, books, licence or common_licence(books))
    metadata = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=1000).strip()
    sections = [
        f"---\n{metadata}\n---",
        f"# {_name(books)}",
        _opening(files, books),
        f"## Counts\n\n{_counts_table(files, books)}",
        f"## Use\n{_USE.rstrip()}",
        f"## How it was made\n\n{_made(made)}",
        f"## Licences\n\n{_licences(books, licence)}",
        f"## Works\n\n{_works(books, files)}",
    ]
    return "\n\n".join(sections) + "\n"


def difference(files: ChunkFiles, books: Sequence[Book]) -> str | None:
    """What the sources of Parquet files and a list of books do not have in common; None if they are the same."""
    listed = {book.file for book in books}
    if foreign := [source for source in files.by_source if source not in listed]:
        return f"the {CHUNK_FILES} have chunks of {foreign[0]!r}, which {BOOKS} does not list"
    if missing := [book.file for book in books if book.file not in files.by_source]:
        return f"{BOOKS} lists {missing[0]!r}, of which the {CHUNK_FILES} have no chunk"
    return None


def common_licence(books: Sequence[Book]) -> str | None:
    """The licence that all books have; None if they have several, or one has none."""
    licences = {book.licence.strip() for book in books}
    return licences.pop() or None if len(licences) == 1 else None


def shown(text: str) -> str:
    """A text in one line of Markdown that is nothing but text, in a table's cell too."""
    line = " ".join(_HIDDEN.sub(" ", text).split())
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", line)


# ------------------------------------------------------------------------------------------------------------ metadata


def _front_matter(files: ChunkFiles, books: Sequence[Book], licence: str | None) -> dict[str, Any]:
    codes = _codes(books)
    return {
        **_licence_metadata(licence),
        **({"language": codes} if codes else {}),
        "pretty_name": _name(books),
        "size_categories": [next((name for limit, name in _SIZES if files.chunks < limit), "other")],
        "task_categories": ["text-generation"],
        "tags": ["books"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": CHUNK_FILES}]}],
        "dataset_info": dataset_info(files),
    }


def dataset_info(files: ChunkFiles) -> dict[str, Any]:
    """Columns and counts, in the form that `datasets` reads in a card."""
    return {
        "features": [{"name": name, "dtype": kind} for name, kind in files.types.items()],
        "splits": [{"name": "train", "num_bytes": files.value_bytes, "num_examples": files.chunks}],
        "download_size": files.file_bytes,
        "dataset_size": files.value_bytes,
    }


def _licence_metadata(licence: str | None) -> dict[str, str]:
    if licence is None:
        return {}
    name = re.sub("[^a-z0-9.]+", "-", licence.lower()).strip("-.")
    if name in _HUB_LICENCES:
        return {"license": name}
    link = {"license_link": _LINKS[name]} if name in _LINKS else {}
    named = {"license_name": name} if name else {}  # the Hub takes no other letters; the text has the whole name
    return {"license": "other", **named, **link}


def _codes(books: Sequence[Book]) -> list[str]:
    """The languages of all books, those of most books first."""
    books_of: Counter[str] = Counter()
    for book in books:
        books_of.update({language_of_code(word.strip()) for word in book.language.split(";")} - {""})
    return sorted(books_of, key=lambda code: (-books_of[code], code))


def _name(books: Sequence[Book]) -> str:
    codes = _codes(books)
    languages = f" ({', '.join(codes[:5])}{', …' if len(codes) > 5 else ''})" if codes else ""
    return f"{_number(len(books), 'book')}{languages}"


# ---------------------------------------------------------------------------------------------------------------- text


def _opening(files: ChunkFiles, books: Sequence[Book]) -> str:
    size = f"{_number(files.chunks, 'chunk')}, {files.characters:,} characters"
    what = f"{_number(len(books), 'book')} as plain text in {size}"
    return f"""{what}. Chunks end between paragraphs, or between sentences where a paragraph is longer; no text is lost.

| Column | Meaning |
| --- | --- |
| `text` | A chunk of a book, with the white space behind it: all of a book's, joined, are its text |
| `source` | The book's file, as in [books.csv]({BOOKS}), which says where each book comes from |
| `number` | Its number at Project Gutenberg; null for other books |
| `position` | The chunk's place among those of its book |"""


def _counts_table(files: ChunkFiles, books: Sequence[Book]) -> str:
    """Books, chunks and characters of each language, as books.csv names it, and of all."""
    by_language: dict[str, list[Counts]] = defaultdict(list)
    for book in books:
        by_language[book.language].append(files.by_source[book.file])
    rows = []
    for language, counts in sorted(by_language.items()):
        chunks, characters = map(sum, zip(*counts, strict=True))
        rows.append((shown(language) or "not known", f"{len(counts):,}", f"{chunks:,}", f"{characters:,}"))
    rows.append(("all", f"{len(books):,}", f"{files.chunks:,}", f"{files.characters:,}"))
    return _table(("Language", "Books", "Chunks", "Characters"), rows)


def counts_of_all(card: str) -> tuple[int, int, int] | None:
    """The books, chunks and characters that the text of a card says it has in all; None if it says nothing of it."""
    rows = re.findall(r"^\| all \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", card, re.MULTILINE)
    if not rows:
        return None
    books, chunks, characters = (int(figure.replace(",", "")) for figure in rows[-1])
    return books, chunks, characters


def _made(made: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    lines = ["With Fabricant, from the texts at the addresses below:", ""]
    for number, (command, settings) in enumerate(made, start=1):
        words = ", ".join(f"`{name}`: {shown(str(value))}" for name, value in settings.items())
        lines.append(f"{number}. `{command}`{f' with {words}' if words else ''}")
    return "\n".join(lines)


def _licences(books: Sequence[Book], licence: str | None) -> str:
    number_of = Counter(book.licence.strip() for book in books)
    rows = [(shown(name) or "not known", f"{number:,}") for name, number in sorted(number_of.items())]
    text = _table(("Licence, as the source says it", "Books"), rows)
    if licence:
        text = f"The dataset is published under this licence: {shown(licence).rstrip('.')}.\n\n{text}"
    is_of_gutenberg = any(book.number is not None for book in books)
    return f"{text}\n{_GUTENBERG.rstrip()}" if is_of_gutenberg else text


def _works(books: Sequence[Book], files: ChunkFiles) -> str:
    rows = []
    for book in books:
        number = "" if book.number is None else str(book.number)
        words = (number, *map(shown, (book.title.strip() or book.file, book.authors, book.language, book.licence)))
        rows.append((*words, _address(book.address), f"{files.by_source[book.file].chunks:,}"))
    return _table(("Number", "Title", "Authors", "Language", "Licence", "Address", "Chunks"), rows)


def _address(address: str) -> str:
    return f"<{address}>" if _ADDRESS.fullmatch(address) else shown(address)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"
