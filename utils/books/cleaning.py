"""One book cleaned: its bytes in, its work out, with each edit and what needs a human's look.

1. Decoded (`utils/files/text_encoding.py`); lines end in `\\n`, and control characters go.
2. Edges: all before the work's first and after its last line (`markers.py`, `front_matter.py`, `back_matter.py`).
3. Body: page numbers, running heads, marks, hard line breaks.

Each step's edits are applied before the next looks. Characters in = kept + taken out - put in.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from utils.books.back_matter import find_advertisements, find_back_notes
from utils.books.boilerplate import named_lines
from utils.books.contents import find_contents
from utils.books.edits import Doubt, Edit, Text, applied
from utils.books.header_fields import Fields, declared_encoding, read_fields
from utils.books.illustrations import find_illustrations
from utils.books.markers import FOOTER, HEADER, find_glued_markers, find_inner_licences, find_outside
from utils.books.notes import find_front_notes
from utils.books.page_marks import find_page_marks
from utils.books.paragraphs import begins_at
from utils.books.typography_marks import find_control_characters, find_typography_marks
from utils.books.unwrap import find_line_ends
from utils.files.text_encoding import decode

LINE_ENDS, BLANK_LINES = "line ends", "blank lines"
NOT_MARKED = "Project Gutenberg named, but not marked"
LEFTOVER = "Project Gutenberg named in the work"
MUCH_REMOVED, SHORT, NOTHING_LEFT, ENCODING = "much taken out", "very short", "nothing left", "encoding"
CONTENTS_LEFT, PUBLISHERS = "contents left in", "publisher's page left in"
_PUBLISHERS = re.compile(
    r"\bISBN\b|©|\ball rights reserved|\btous droits r[eé]serv[eé]s"
    r"|\balle rechte vorbehalten|\balle rechten voorbehouden"
    r"|\b(?:todos los derechos|todos os direitos) reservados|\btutti i diritti (?:sono )?riservati|\bprinted in [A-Z]"
    r"|\bd[eé]p[oô]t l[eé]gal\b|\bachev[eé] d.imprimer\b|\bimprim[eé] en [A-Z]",
    re.IGNORECASE,
)
_FRONT_LINES, _BACK_LINES = 200, 60
"""Lines at the edges of a book of one's own in which a publisher's page is looked for."""
_MUCH, _LEAST, _MOST_AROUND = 0.3, 3000, 60_000
"""The share of a work, and its characters, that are much to be taken out; the longest header and footer together."""
_SHORT = 500
"""Characters of a very short work."""
_CONTEXT = 80
"""Characters of the text before and after that a report shows."""
_MOST_LEFTOVERS = 20
"""Lines of a book that are shown because they name Project Gutenberg."""
_SHOWN = 200
"""Characters of a doubtful passage that a report shows."""


@dataclass(frozen=True)
class Removed:
    """A passage that was taken out or replaced, with its place in the file that came in."""

    reason: str
    line: int
    characters: int
    text: str
    before: str
    after: str
    replacement: str


@dataclass(frozen=True)
class Review:
    """A passage that a human should look at."""

    reason: str
    line: int
    text: str


@dataclass
class CleanedBook:
    text: str = ""
    encoding: str = ""
    characters: int = 0
    """Of the file that came in, decoded, without a byte order mark."""
    taken_out: Counter[str] = field(default_factory=Counter)
    """Characters by reason."""
    put_in: Counter[str] = field(default_factory=Counter)
    """Characters of replacements by reason."""
    removed: list[Removed] = field(default_factory=list)
    reviews: list[Review] = field(default_factory=list)
    fields: Fields = field(default_factory=Fields)


class Passes:
    """A text through several steps of edits, with each place's line in the text that came in."""

    def __init__(self, text: str, book: CleanedBook) -> None:
        self.text = Text(text)
        self._book = book
        self._source = self.text
        self._shifts: list[tuple[list[int], list[int]]] = []
        self._reviewed: set[Review] = set()

    def apply(self, edits: Sequence[Edit], doubts: Sequence[Doubt] = ()) -> None:
        """Reports edits, which are in order and apart from each other, and makes the next text of them."""
        text = self.text.text
        for doubt in doubts:
            self.review(doubt.reason, doubt.begin, doubt.end)
        for edit in edits:
            self._book.taken_out[edit.reason] += edit.end - edit.begin
            self._book.put_in[edit.reason] += len(edit.replacement)
            passage = text[edit.begin : edit.end]
            # blank lines, joined lines and marks such as underscores are counted, not listed
            if any(map(str.isalnum, passage)):
                before = text[max(edit.begin - _CONTEXT, 0) : edit.begin]
                after = text[edit.end : edit.end + _CONTEXT]
                line = self.source_line(edit.begin)
                removed = Removed(edit.reason, line, len(passage), passage, before, after, edit.replacement)
                self._book.removed.append(removed)
        if edits:
            gone = list(accumulate(edit.end - edit.begin - len(edit.replacement) for edit in edits))
            ends = [edit.end - count for edit, count in zip(edits, gone, strict=True)]
            self._shifts.append((ends, gone))
            self.text = Text(applied(text, edits))

    def review(self, reason: str, begin: int, end: int) -> None:
        passage = " ".join(self.text.text[begin : min(end, begin + _SHOWN)].split())
        review = Review(reason, self.source_line(begin), passage)
        if review not in self._reviewed:
            self._reviewed.add(review)
            self._book.reviews.append(review)

    def source_line(self, place: int) -> int:
        """The line, from 1, in the text that came in of a place in the present text."""
        for ends, total in reversed(self._shifts):
            number = bisect_right(ends, place) - 1
            place += total[number] if number >= 0 else 0
        return self._source.line_at(min(place, len(self._source.text))) + 1


def clean(data: bytes, name: str, unwrap: bool) -> CleanedBook:
    """Cleans a book. A work of which nothing is left has an empty text and a review that says so.

    Raises:
        DataError: for data that are no text.
    """
    book = CleanedBook()
    decoded = decode(data, declared_encoding(data), name)
    book.encoding, book.characters = decoded.encoding, len(decoded.text)
    text = decoded.text
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        # a lone \r is one character, and so is the \n in its place
        book.taken_out[LINE_ENDS] = len(decoded.text) - len(text)
    passes = Passes(text, book)
    if decoded.doubt:
        book.reviews.append(Review(ENCODING, 1, f"{decoded.encoding}: {decoded.doubt}"))
    passes.apply(find_control_characters(passes.text))
    passes.apply(find_glued_markers(passes.text))
    clean_edges(passes, book)
    _clean_body(passes, unwrap)
    _trim(passes)
    book.text = passes.text.text
    _review_work(passes, book)
    return book


def clean_edges(passes: Passes, book: CleanedBook) -> None:
    """Takes out what stands before and after the work; a text without any marker is left whole."""
    text = passes.text
    outside = find_outside(text)
    header = "\n".join("\n".join(text.lines[first:past]) for first, past, reason in outside.regions if reason == HEADER)
    book.fields = read_fields(header)
    if not outside.regions:
        for line in named_lines(text)[:1]:
            passes.review(NOT_MARKED, text.starts[line], text.starts[line] + _SHOWN)
        _review_edges(passes)
        return
    passes.apply(outside.edits(text), outside.doubts)
    passes.apply(find_inner_licences(passes.text))
    for find in (find_front_notes, find_contents, find_back_notes, find_advertisements):
        passes.apply(*find(passes.text))


def _review_edges(passes: Passes) -> None:
    """Lists what one's own books may have at their edges, contents and publishers' pages, which stay in them."""
    text = passes.text
    count = len(text.lines)
    edits, doubts = find_contents(text)
    for part in (*edits, *doubts):
        passes.review(CONTENTS_LEFT, part.begin, part.end)
    front = min(_FRONT_LINES, count // 2)
    for first, past in ((0, front), (max(front, count - _BACK_LINES), count)):
        lines = [line for line in range(first, past) if _PUBLISHERS.search(text.lines[line])]
        if lines:
            passes.review(PUBLISHERS, text.starts[lines[0]], text.starts[lines[-1]] + len(text.lines[lines[-1]]))


def _clean_body(passes: Passes, unwrap: bool) -> None:
    for find in (find_page_marks, find_illustrations, find_typography_marks):
        passes.apply(*find(passes.text))
    if unwrap:
        passes.apply(*find_line_ends(passes.text))


def _trim(passes: Passes) -> None:
    """Takes out blank lines before and after the work, which ends with one line end."""
    text = passes.text
    if not text.text.strip():
        passes.apply([Edit(0, len(text.text), BLANK_LINES)] if text.text else [])
        return
    edits = []
    if begin := text.starts[begins_at(text, 0)]:
        edits.append(Edit(0, begin, BLANK_LINES))
    end = len(text.text.rstrip())
    if text.text[end:] != "\n":
        edits.append(Edit(end, len(text.text), BLANK_LINES, "\n"))
    passes.apply(edits)


def _review_work(passes: Passes, book: CleanedBook) -> None:
    if not book.text:
        book.reviews.append(Review(NOTHING_LEFT, 1, ""))
        return
    if NOT_MARKED not in {review.reason for review in book.reviews}:
        for line in named_lines(passes.text)[:_MOST_LEFTOVERS]:
            passes.review(LEFTOVER, passes.text.starts[line], passes.text.starts[line + 1])
    if len(book.text) < _SHORT:
        passes.review(SHORT, 0, _SHOWN)
    _review_sizes(book)


def _review_sizes(book: CleanedBook) -> None:
    """A header and a footer are as long for a poem as for a novel, and line ends are no text."""
    around = sum(book.taken_out[reason] for reason in (HEADER, FOOTER))
    added = sum(book.put_in.values())
    rest = book.characters - around - book.taken_out[LINE_ENDS]
    gone = rest + added - len(book.text)
    if gone > max(_MUCH * rest, _LEAST) or around > _MOST_AROUND:
        reasons = ", ".join(f"{reason} {count}" for reason, count in book.taken_out.most_common(3))
        book.reviews.append(Review(MUCH_REMOVED, 1, f"{book.characters - len(book.text)} characters: {reasons}"))
