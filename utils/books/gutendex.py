"""The catalogue: what a Gutendex server says of the books that fit a search, page by page.

The API: https://github.com/garethbjohnson/gutendex, its readme.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx

from lit_gpt.errors import DataError
from utils.books.file_names import on_one_line
from utils.books.options import AcquireOptions
from utils.books.polite_client import Answer, PoliteClient

MOST_PAGE_BYTES = 2**24
"""A page has 32 books at most, about 100 kB."""
MOST_TEXT = 20_000
"""Characters of a book's title, authors and languages: readers of CSV take values of 131,072 at most."""
IDS_A_SEARCH = 100
"""Numbers of books in one address: servers take addresses of some thousand characters."""


@dataclass(frozen=True)
class Found:
    """A book of the catalogue."""

    number: int
    title: str
    authors: list[str]
    languages: list[str]
    copyright: bool | None
    """False in the public domain of the USA, None where the catalogue does not know."""
    formats: dict[str, str]
    """Media type → address."""


@dataclass(frozen=True)
class Page:
    count: int
    """Books on all pages of the search."""
    books: list[Found]
    next: str | None


def search(options: AcquireOptions, client: PoliteClient) -> Iterator[Page]:
    """The pages of all books that the options ask the server for, the most downloaded books first.

    Copyright, formats and authors' names are not asked for: what is left out for one of them is to be named.

    Raises:
        DataError: for an answer that is not of the API, or pages that lead elsewhere or in a circle.
        NotThere, Unavailable: as the client does.
    """
    common = {}
    if options.topic:
        common["topic"] = options.topic.strip()
    if options.language:
        common["languages"] = ",".join(code.lower() for code in options.language)
    if options.author:
        common["search"] = " ".join(options.author.split())
    base = options.server.rstrip("/") + "/books"
    numbers = sorted(set(options.ids))
    groups = [numbers[at : at + IDS_A_SEARCH] for at in range(0, len(numbers), IDS_A_SEARCH)] or [[]]
    for group in groups:
        query = {**common, "ids": ",".join(map(str, group))} if group else common
        for page in _pages(base + ("?" + urlencode(query) if query else ""), client):
            strangers = [book.number for book in page.books if group and book.number not in group]
            if strangers:
                raise DataError(f"{base} answers with book {strangers[0]}, which was not asked for")
            yield page


def _pages(address: str | None, client: PoliteClient) -> Iterator[Page]:
    seen: set[str] = set()
    lists: set[tuple[int, ...]] = set()
    while address is not None:
        seen.add(address)
        answer = client.get(address, MOST_PAGE_BYTES)
        seen.add(answer.address)  # where it redirected to
        page = read_page(answer)
        numbers = tuple(book.number for book in page.books)
        if not numbers:
            return  # results have run out, whatever follows
        if numbers in lists:
            raise DataError(f"{answer.address} has the same books as a page before it")
        lists.add(numbers)
        yield page
        address = page.next and next_address(page.next, answer.address)
        if address in seen:
            raise DataError(f"{answer.address} leads back to {address}")


def next_address(link: str, page: str) -> str:
    """A page's link to the next one, on the same server; one behind a proxy may take itself for http where it is https.

    Raises a DataError for a link that leads elsewhere.
    """
    here = httpx.URL(page)
    try:
        url = here.join(link)
    except (httpx.InvalidURL, ValueError):
        raise DataError(f"{page}: next is no address: {on_one_line(link)[:200]}") from None
    if (url.host, url.port) != (here.host, here.port) or url.scheme not in ("http", "https") or url.userinfo:
        raise DataError(f"{page}: next leads to another server: {on_one_line(link)[:200]}")
    return str(url.copy_with(scheme=here.scheme))


def read_page(answer: Answer) -> Page:
    """The page in an answer; a DataError that names the address for what is none."""
    try:
        value = json.loads(answer.content)
    except (ValueError, RecursionError):
        start = on_one_line(answer.content[:80].decode(errors="replace"))
        raise DataError(f"{answer.address} answers with what is no JSON, as a Gutendex server would: {start}") from None
    try:
        count, results = _checked(value, "count", int), _checked(value, "results", list)
        if not isinstance(value.get("next"), str | None):
            raise _Foreign("next is neither an address nor null")
        return Page(count, list(map(_book, results)), value.get("next"))
    except _Foreign as e:
        raise DataError(f"{answer.address} does not answer as a Gutendex server: {e}") from None


class _Foreign(Exception):
    """A value that the API does not have there."""


def _checked(value: Any, key: str, kind: type) -> Any:
    """`value[key]`, which must be of a kind."""
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, kind) or isinstance(found, bool):
        names = {int: "number", list: "list", dict: "mapping", str: "text"}
        raise _Foreign(f"{key} is no {names[kind]}")
    return found


def _book(value: Any) -> Found:
    number = _checked(value, "id", int)
    if not 0 < number < 10**9:
        raise _Foreign(f"id {number} is no number of a book")
    title = value.get("title")
    if not isinstance(title, str | None):
        raise _Foreign(f"title of book {number} is no text")
    if not isinstance(value.get("copyright"), bool | None):
        raise _Foreign(f"copyright of book {number} is neither true, false nor null")
    languages, formats = _checked(value, "languages", list), _checked(value, "formats", dict)
    if not all(isinstance(text, str) for text in (*languages, *formats.values())):
        raise _Foreign(f"languages or formats of book {number} have what is no text")
    authors = [on_one_line(_checked(author, "name", str)) for author in _checked(value, "authors", list)]
    size = sum(map(len, (title or "", *authors, *languages)))
    if size > MOST_TEXT:
        raise _Foreign(f"title, authors and languages of book {number} have {size} characters")
    codes = [code.lower() for code in languages if re.fullmatch("[A-Za-z-]{2,12}", code)]
    return Found(number, on_one_line(title or ""), authors, codes, value.get("copyright"), formats)
