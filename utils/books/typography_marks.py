"""Marks of typography in plain text: `_italics_`, `=bold=`, `+small caps+`, `~spaced~`, `$spaced$`, `<i>italics</i>`.

Each has to open before a word and close behind one, in pairs. So snake_case, file names, blanks to be filled in
(`____`), sums, prices and formulas stay. A kind of mark other than the underscore is taken for one only where the book
has several pairs of it and hardly any such character beside them. What the marks stood about stays, to the letter.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from utils.books.edits import Doubt, Edit, Found, Text

AMBIGUOUS = "marks that may be of typography"


class _Kind(NamedTuple):
    mark: str
    reason: str
    least: int
    """Pairs that a book must have."""
    content: str
    """A regular expression that what stands between two marks must match, in full."""


# a regular expression begins with the mark and looks back from there, which is twice as quick
_WORDS = r"(?s:(?=.*[^\W\d_]).{1,600})"
_LETTERS = r"(?=.*[^\W\d_]{2})[^\d<>{}\\^_+=$~]{2,300}"
_KINDS = (
    _Kind("=", "marks of bold type", 3, _WORDS),
    _Kind("+", "marks of small capitals", 3, _LETTERS),
    _Kind("~", "marks of spaced type", 3, _LETTERS),
    _Kind("$", "marks of spaced type", 5, _LETTERS),
    _Kind("#", "marks of bold type", 5, _LETTERS),
)
ITALICS, TAGS, CONTROLS = "marks of italics", "tags of typography", "control characters"
_CONTROLS = re.compile("[\x01-\x08\x0e-\x1f\x7f\ufeff]+")
"""Such as \x1a, which ended files of DOS, and byte order marks amid files that were put together."""
_LONGEST = 5000
"""Characters between the two underscores of a pair: a page or two of a letter in italics."""
_STRAY = 0.1
"""The share of characters that may be no mark, where the others are."""
_TAGS = re.compile(r"</?(?:i|b|em|strong|sc|small|u)>", re.IGNORECASE)
_UNDERSCORE = re.compile(r"_(?<!__)(?!_)")
_PART = re.compile(r"_(?:(?<!\w_)[^\W\d_]+-?_(?=[^\W\d_])|(?<=[^\W\d_]_)[^\W\d_]+_(?!\w))")
"""An emphasis on a part of a word, as in `_dis_like` and `other_wise_`."""
_MANY = 40
"""Underscores of italics by which a book is one that writes them."""
_CODE = re.compile(r"_(?<=[^\W_]_)[^\W_]")


def find_control_characters(text: Text) -> list[Edit]:
    """Control characters, which hide a file's last line, and its markers, from who looks for them."""
    return [Edit(match.start(), match.end(), CONTROLS) for match in _CONTROLS.finditer(text.text)]


def find_typography_marks(text: Text) -> Found:
    edits, doubts = _underscores(text.text)
    for kind in _KINDS:
        if text.text.count(kind.mark) >= 2 * kind.least:
            edits += _pairs_of(text.text, kind)
    edits += _tags(text.text)
    return sorted(edits), doubts


def _underscores(text: str) -> Found:
    places = _italics(text, set())
    within = len(_CODE.findall(text))
    if within * 4 > len(places) > 0:  # a text about programs: `_name_` may be a name there
        return [], [Doubt(places[0], places[1] + 1, AMBIGUOUS)]
    if len(places) >= _MANY:
        parts = [place for match in _PART.finditer(text) for place in (match.start(), match.end() - 1)]
        places = [*parts, *_italics(text, set(parts))]
    return [Edit(place, place + 1, ITALICS) for place in places], []


def _italics(text: str, skipped: set[int]) -> list[int]:
    """The places of underscores that open and close by turns."""
    places: list[int] = []
    opened = -1
    for match in _UNDERSCORE.finditer(text):
        place = match.start()
        if place in skipped:
            continue
        before, after = text[place - 1 : place] or "\n", text[place + 1 : place + 2] or "\n"
        can_open = not before.isalnum() and not after.isspace()
        can_close = not before.isspace() and not after.isalnum()
        if can_close and opened >= 0 and _is_italic(text, opened + 1, place):
            places += [opened, place]
            opened = -1
        elif can_open:
            opened = place
        elif not (before.isalnum() and after.isalnum()):
            opened = -1
    return places


def _is_italic(text: str, begin: int, end: int) -> bool:
    return end - begin <= _LONGEST and any(map(str.isalnum, text[begin:end]))


def _pairs_of(text: str, kind: _Kind) -> list[Edit]:
    mark = re.escape(kind.mark)
    pattern = re.compile(
        rf"(?<![\w{mark}\\/&?]){mark}(?![\s{mark}])([^{mark}]{{1,600}}?)(?<!\s){mark}(?![\w{mark}\\/])"
    )
    edits = []
    for match in pattern.finditer(text):
        if "\n\n" not in match[1] and re.fullmatch(kind.content, match[1]):
            edits.append(Edit(match.start(), match.start() + 1, kind.reason))
            edits.append(Edit(match.end() - 1, match.end(), kind.reason))
    total = text.count(kind.mark)
    is_mark = len(edits) >= 2 * kind.least and total - len(edits) <= _STRAY * total
    return edits if is_mark else []


def _tags(text: str) -> list[Edit]:
    """Tags of HTML in a text that has as many closing ones as opening ones, and no others."""
    tags = list(_TAGS.finditer(text)) if "</" in text else []
    closing = sum(tag[0][1] == "/" for tag in tags)
    if 2 * closing != len(tags) or len(re.findall(r"</?[a-zA-Z]+[ >]", text)) > len(tags):
        return []
    return [Edit(tag.start(), tag.end(), TAGS) for tag in tags]
