"""Books of a search, downloaded into a folder one by one; what cannot be had is named, counted and left out.

1. The catalogue gives the books that fit, page by page (`gutendex.py`). Those left out for what it says are not asked
   for: under copyright, in another language, by another author, without a text.
2. A book that is in the folder costs no request. Any other is downloaded in the best of its formats, decoded, and
   written as UTF-8 (`acquired_folder.py`).
3. A server that fails is asked again (`polite_client.py`). A book that fails all the same keeps its place among
   `--num_records`, so that a second call, which gets it, ends with the same folder; the command then exits with 75.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from typing import NoReturn

from lit_gpt.errors import DataError, Interrupted, UserError, raise_problems
from utils.books.acquired_folder import AcquiredFolder
from utils.books.book_list import Book
from utils.books.file_names import file_name
from utils.books.gutendex import Found, search
from utils.books.options import AcquireOptions
from utils.books.polite_client import AskedToWait, NotThere, PoliteClient, Unavailable, web_address
from utils.books.text_formats import TextFormat, book_text, text_formats
from utils.files.folder_lock import locked
from utils.prepare.progress import ProgressLine, say

MOST_BOOK_BYTES = 2**26
"""The largest texts of Project Gutenberg have some 30 MB."""
MOST_FAILURES = 3
"""So many books in a row that could not be downloaded mean that the server is down."""
PUBLIC_DOMAIN = "Public domain in the USA."
"""The licence's name in Project Gutenberg's own catalogue."""
AGAIN = "run the same command again to go on"


def acquire(options: AcquireOptions) -> None:
    """Downloads the books that the options name.

    Raises:
        UserError: where no book fits, or one of `--ids` cannot be had.
        DataError: for a folder's damaged list, or a server that speaks another language.
        Interrupted: for a server that fails: what there is stays, and the same command goes on.
        OSError: for a server that never answered, or a full disk.
    """
    progress = ProgressLine("downloaded", 1, "books")
    with (
        locked(options.output_dir, lambda take: take(), leave=False) as lock,
        closing(PoliteClient(options.delay, progress.line)) as client,
    ):
        assert lock is not None
        _Acquisition(options, client, AcquiredFolder(options.output_dir, lock), progress).run()


class _Acquisition:
    """One call of the command, and how far it came."""

    def __init__(
        self, options: AcquireOptions, client: PoliteClient, folder: AcquiredFolder, progress: ProgressLine
    ) -> None:
        self._options, self._client, self._folder, self._progress = options, client, folder, progress
        self._seen: set[int] = set()
        self._there = self._new = 0
        self._left_out: dict[str, list[str]] = defaultdict(list)
        """Reason → what books it holds for."""
        self._failed: list[str] = []
        self._failed_in_a_row = 0

    def run(self) -> None:
        try:
            for found in self._catalogue():
                self._take(found)
                if self._places() == self._options.num_records:
                    break
        finally:
            self._progress.close()
            self._summarise()
        self._check_end()

    def _places(self) -> int:
        """Books that fit the search and are in the folder, or would be with a better server."""
        return self._there + self._new + len(self._failed)

    def _catalogue(self) -> Iterator[Found]:
        """Each book that the server finds, once: one that rose among the most downloaded meanwhile comes twice."""
        pages, count = search(self._options, self._client), 0
        while True:
            try:
                page = next(pages, None)
            except NotThere as e:
                raise UserError(f"{self._options.server}/books: {e}; is --server a Gutendex catalogue?") from None
            except Unavailable as e:
                self._stop(str(e), "the catalogue")
            if page is None:
                return
            count = max(count, page.count)
            for found in page.books:
                if found.number not in self._seen:
                    self._seen.add(found.number)
                    self._progress.resize(self._left_to_do(count))
                    yield found

    def _left_to_do(self, count: int) -> int:
        """How many books are downloaded by the end of this call, as far as is known."""
        left_out = sum(map(len, self._left_out.values()))
        wanted = min(count - left_out, self._options.num_records or count)
        return wanted - self._there

    def _take(self, found: Found) -> None:
        """Sees to it that a book is in the folder, or says why not."""
        reason = _reason_against(found, self._options)
        if reason:
            self._leave_out(found, reason)
            return
        state = self._folder.state(found.number)
        if state != "missing":
            self._there += 1
            if state == "changed":
                self._progress.line(
                    f"{_named(found)}: the file has changed since it was downloaded, and stays as it is"
                )
            return
        try:
            self._download(found)
        except NotThere as e:
            self._leave_out(found, str(e))
        except Unavailable as e:
            self._failed.append(_named(found))
            self._failed_in_a_row += 1
            self._progress.line(f"{_named(found)}: {e}; for now it is left out")
            if isinstance(e, AskedToWait) or self._failed_in_a_row == MOST_FAILURES:
                self._stop(str(e), _named(found))
        else:
            self._failed_in_a_row = 0

    def _download(self, found: Found) -> None:
        """Tries a book's formats, the best first; raises a NotThere with each one's reason, or Unavailable."""
        reasons = []
        for form in text_formats(found.formats):
            try:
                self._download_format(found, form)
            except (NotThere, DataError) as e:
                reasons.append(str(e))
            else:
                self._new += 1
                self._progress.advance(1)
                return
        raise NotThere("; ".join(dict.fromkeys(reasons)))

    def _download_format(self, found: Found, form: TextFormat) -> None:
        answer = self._client.get(form.address, MOST_BOOK_BYTES)
        if answer.media_type == "text/html":
            raise Unavailable("the server answers with a page of the web")
        decoded = book_text(answer.content, form.charset, found.languages, "its text")
        content = decoded.text.encode()
        name = self._folder.name(found.number, file_name(found.number, found.authors, found.title))
        book = Book(
            file=name,
            number=found.number,
            title=found.title,
            authors="; ".join(found.authors),
            language="; ".join(found.languages),
            licence=PUBLIC_DOMAIN,
            address=str(web_address(form.address)),
            encoding=decoded.encoding,
            sha256=hashlib.sha256(content).hexdigest(),
        )
        if not self._folder.add(book, content):
            raise NotThere(f"{name} is there and is another file; move it away to have the book")
        if decoded.doubt:
            self._progress.line(f"{_named(found)}: read as {decoded.encoding}; look at it: {decoded.doubt}")

    def _leave_out(self, found: Found, reason: str) -> None:
        self._left_out[reason].append(_named(found))
        self._progress.line(f"{_named(found)}: left out, {reason}")

    def _stop(self, reason: str, what: str) -> NoReturn:
        if not self._client.reached:
            raise OSError(f"{self._options.server} {reason}; check --server and the network")
        raise Interrupted(f"{what}: {reason}; {self._so_far()}; {AGAIN}") from None

    def _so_far(self) -> str:
        return f"{self._there + self._new} books are in {self._options.output_dir}"

    def _summarise(self) -> None:
        """Says how far it came: also where an error ends the command."""
        say(f"{self._so_far()} that fit, {self._new} of them new")
        for reason, books in sorted(self._left_out.items()):
            say(f"left out, {reason}: {len(books)}")
        if self._failed:
            say(f"not answered for: {len(self._failed)}: {'; '.join(self._failed)}")

    def _check_end(self) -> None:
        """Raises an error if the folder is not what the options ask for."""
        if self._failed:
            raise Interrupted(f"{len(self._failed)} books could not be downloaded; {self._so_far()}; {AGAIN}")
        if self._options.ids and self._places() != self._options.num_records:
            unknown = [number for number in sorted(set(self._options.ids)) if number not in self._seen]
            problems = [f"--ids {number}: the catalogue has none that fits" for number in unknown]
            problems += [f"{book}: {reason}" for reason, books in self._left_out.items() for book in books]
            raise_problems(problems)
        if not self._places():
            raise UserError(f"no book of {self._options.server} fits, or can be had")


def _reason_against(found: Found, options: AcquireOptions) -> str:
    """Why a book is left out for what the catalogue says of it; empty where it is not."""
    if found.copyright is not False:
        return "under copyright" if found.copyright else "its copyright is not known"
    wanted = {code.lower() for code in options.language}
    if wanted and not wanted & set(found.languages):
        return "in another language"
    if options.author and not _is_by(found.authors, options.author):
        return "by another author"
    return "" if text_formats(found.formats) else "without a text"


def _is_by(authors: list[str], words: str) -> bool:
    """Whether one author's name has all the words, as the server compares them: as parts, in any case."""
    return any(all(word in author.casefold() for word in words.casefold().split()) for author in authors)


def _named(found: Found) -> str:
    by = f", {found.authors[0]}" if found.authors else ""
    title = found.title if len(found.title) <= 60 else found.title[:59] + "…"
    return f"{found.number} {title}{by}"
