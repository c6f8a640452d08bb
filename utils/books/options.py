"""Options of the commands for books in data/. Nothing heavy is imported here, so that `--help` answers at once."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lit_gpt.errors import raise_problems

GUTENDEX = "https://gutendex.com"
MAX_CHUNK = 1_000_000
"""Characters; what is longer is a book."""


@dataclass(frozen=True)
class AcquireOptions:
    """Download books of Project Gutenberg as text; a second call goes on where the first stopped."""

    SECTION = "acquire"

    output_dir: Path
    """Folder for the books, UTF-8 text each, and for books.csv, which says where each comes from."""
    topic: str | None = None
    """Words to look for in subjects and bookshelves, such as horror."""
    language: tuple[str, ...] = ()
    """Two-letter codes of the languages that a book may be in. Default: any."""
    author: str | None = None
    """Words that one of a book's authors has all in the name, such as "shelley mary"; upper and lower case are one."""
    ids: tuple[int, ...] = ()
    """Numbers of books at Project Gutenberg. One that cannot be had is an error, once all others are there."""
    num_records: int | None = None
    """How many books that fit the other options to have in the folder, the most downloaded first. Default: all."""
    server: str = GUTENDEX
    """Address of the Gutendex catalogue; who asks much of it runs one of their own."""
    delay: float = 1.0
    """Least seconds from an answer to the next request."""
    debug: bool = False
    """Show tracebacks."""

    def __post_init__(self) -> None:
        problems = []
        if self.num_records is not None and self.num_records < 1:
            problems.append(f"--num_records must be at least 1, not {self.num_records}")
        if not 0 <= self.delay <= 3600:
            problems.append(f"--delay must be from 0 to 3600 seconds, not {self.delay}")
        if not (self.topic or self.language or self.author or self.ids or self.num_records):
            problems.append("say which books: --topic, --language, --author, --ids or --num_records")
        problems += [f"--{name} is empty" for name in ("topic", "author") if not (getattr(self, name) or "x").strip()]
        wrong = [code for code in self.language if not re.fullmatch("[A-Za-z]{2,3}", code)]
        problems += [f"--language {code!r} is no two-letter code of a language, such as en" for code in wrong]
        problems += [f"--ids {number}: books are numbered from 1" for number in self.ids if not 0 < number < 10**9]
        if self.output_dir.exists() and not self.output_dir.is_dir():
            problems.append(f"--output_dir {self.output_dir} is a file")
        problems += _problems_of_address(self.server)
        raise_problems(problems)


def _problems_of_address(server: str) -> list[str]:
    """What is wrong with --server, without repeating it: a password in it would be in every log."""
    try:
        parts = urlsplit(server)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        good = False
    if not good or not server.isascii() or not server.isprintable():
        return ["--server must be an address such as https://gutendex.com"]
    if parts.username is not None or parts.query or parts.fragment:
        return ["--server must be an address without a user, a password or a query"]
    return []


@dataclass(frozen=True)
class CleanOptions:
    """Take from books what is not the work: licences, notes, contents, page numbers; all of it is reported."""

    SECTION = "clean"

    input_dir: Path
    """Folder of *.txt files: acquired books, or your own."""
    output_dir: Path
    """Folder for the cleaned books and their reports."""
    unwrap: bool = True
    """Whether hard line breaks are joined into paragraphs."""
    num_workers: int | None = None
    """Processes that clean. Default: one for each core."""
    debug: bool = False
    """Show tracebacks."""

    def __post_init__(self) -> None:
        raise_problems(_problems_of_workers(self.num_workers))


def _problems_of_workers(number: int | None) -> list[str]:
    return [] if number is None or number > 0 else [f"--num_workers must be at least 1, not {number}"]


@dataclass(frozen=True)
class ChunkOptions:
    """Cut cleaned books between paragraphs and sentences into the rows of Parquet files, with no text lost."""

    SECTION = "chunk"

    input_dir: Path
    """Folder of cleaned books, as clean_gutenberg.py makes it."""
    output_dir: Path
    """Folder for the Parquet files and the dataset's card."""
    chunk_target: int = 7000
    """Characters that a chunk should have."""
    chunk_min: int = 6000
    """Least characters of a chunk that has a neighbour in its book."""
    licence: str | None = None
    """The dataset's licence, for its card, such as cc-by-4.0. Default: the one that all books have in books.csv."""
    num_workers: int | None = None
    """Processes that cut. Default: one for each core."""
    debug: bool = False
    """Show tracebacks."""

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.chunk_target <= MAX_CHUNK:
            problems.append(f"--chunk_target must be from 1 to {MAX_CHUNK:,} characters, not {self.chunk_target}")
        elif not 0 < self.chunk_min <= self.chunk_target:
            problems.append(f"--chunk_min {self.chunk_min} must be from 1 to --chunk_target {self.chunk_target}")
        raise_problems(problems + _problems_of_workers(self.num_workers))
