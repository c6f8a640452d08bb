"""Contents pages and lists of illustrations: a heading, then entries that occur again as headings, or end in pages.

1. From the heading on, lines are entries as long as each occurs again below as a line of its own, or ends in the number
   of a page. A few lines between two entries, such as a second line of a long title, go with them.
2. An entry that the list has twice has to occur at least twice below.
3. A list ends where the work's own first heading comes: at an entry's repetition, or at one that prose follows.
4. Where fewer than three entries are found, or most lines are none, nothing is taken out.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from itertools import pairwise

from utils.books.edits import Doubt, Edit, Found, Text
from utils.books.paragraphs import begins_at, line_before

CONTENTS, ILLUSTRATIONS = "contents", "list of illustrations"
UNSURE = "contents unsure"

_WORDS = (
    r"(?:table\s+of\s+)?contents(?:\s+of\s+(?:the\s+)?(?:\w+\s+)?(?:volume|vol\.?|part|book)(?:\s+\w+)?)?",
    r"(?:the\s+)?(?:table|argument)\s+of\s+(?:the\s+)?chapters",
    r"inhalt(?:sverzeichni(?:s|ß)|sübersicht|sangabe)?|verzeichnis\s+der\s+kapitel",
    r"table(?:\s+des\s+(?:mati[eè]res|chapitres))?|sommaire",
    r"[ií]ndice(?:\s+(?:general|de\s+(?:materias|mat[eé]rias|cap[ií]tulos)|dei\s+capitoli))?|contenido|sommario|sum[aá]rio",
    r"inhoud(?:sopgave|sopgaaf)?|inneh[aå]ll(?:sf[oö]rteckning)?|indhold(?:sfortegnelse)?|innhold",
    r"sis[aä]lly(?:s|sluettelo)?|sis[aä]lt[oö]",
    r"содержание|оглавление|зм[iі]ст|spis\s+(?:treści|rzeczy)|obsah|tartalom(?:jegyz[eé]k)?|περιεχομενα|περιεχόμενα",
)
_PICTURES = (
    r"(?:list\s+of\s+)?(?:the\s+)?(?:full[\s-]page\s+)?(?:illustrations|plates|maps|figures|engravings|portraits)"
    r"(?:\s+and\s+(?:maps|plates|diagrams))?",
    r"(?:verzeichnis\s+der\s+)?abbildungen|(?:table|liste)\s+des\s+(?:illustrations|gravures|planches)",
    r"lista?\s+(?:de|de\s+las)\s+(?:ilustraciones|ilustrações|l[aá]minas)|(?:lijst\s+der\s+)?(?:platen|illustraties)",
)
_HEADING = re.compile(
    rf"[\W_]*(?:(?P<contents>{'|'.join(_WORDS)})|(?P<pictures>{'|'.join(_PICTURES)}))[\W_]*", re.IGNORECASE
)
_LONGEST_HEADING = 60
_PAGE = re.compile(
    r"(?P<gap>\s{2,}|\t|\.{2,}\s*|(?:\s\.){2,}\s*|[,;]?\s+(?:pp?\.\s*|page\s+)?)_?"
    r"(?P<page>\d{1,4}|[ivxlc]{1,7}|frontispiece)[.\s_]*$",
    re.IGNORECASE,
)
_PAGE_WORD = re.compile(
    r"(?:[\W_]*(?:page|pages|seite|bladz|blz|pag|p[aá]gina|chapter|chap|kapitel|chapitre|cap|facing|to\s+face|frontispiece))+[\W_]*",
    re.IGNORECASE,
)
_HEAD = re.compile(
    r"\W*((?:chapter|kapitel|chapitre|letter|book|part|act|canto|cap[ií]tulo|capitolo)\s+\w+)\b", re.IGNORECASE
)
_NUMBERED = re.compile(r"(\d{1,4}|[IVXLC]{1,8})[.)]\s+\S")
_ENTRY_NUMBER = re.compile(r"\W*(?:\d{1,3}|[ivxlc]{1,8})[.:)]\s+", re.IGNORECASE)
_PICTURE = re.compile(r"\[(?:illustration|abbildung|gravure|figure)\S*\s*(.*?)\]?$", re.IGNORECASE)
_LONGEST_TITLE = 80
"""Characters of a paragraph that may be a heading's."""
_MOST_LINES = 1500
_MOST_BETWEEN = 4
"""Lines between two entries that are none."""
_LEAST, _LEAST_PAGES, _MANY = 3, 5, 12
"""Entries that occur again, or that end in pages, at least; more than a work's first headings can be."""
_SHARE = 0.6
_FRONT = 0.25
"""The share of a work in which its contents may stand, and the least lines."""
_FRONT_LINES = 800
_SHORT_LINE, _LONGEST_LINE = 100, 300
"""Characters of a heading's line, and of one in a list."""
_SPEECH = "“”\"«»„‘'—–"
_MOST_HEADINGS, _GAP = 4, 3
"""Headings that a work may begin with, as those of a book, a chapter and its title; the blank lines above them."""
_TELLING = 7
"""Characters of a form that say which entry is meant, where only its beginning is there."""


def find_contents(text: Text) -> Found:
    """The contents pages and lists of illustrations at the front of the work."""
    edits: list[Edit] = []
    doubts: list[Doubt] = []
    front = min(max(int(_FRONT * len(text.lines)), _FRONT_LINES), len(text.lines))
    headings = [number for number in range(front) if _is_heading(text, number)]
    if not headings:
        return edits, doubts
    places = _places_of_forms(text, headings[0])
    done = 0
    for number in headings:
        if number < done:
            continue
        match = _HEADING.fullmatch(text.lines[number].strip())
        assert match is not None
        end = _List(text, number, places, bool(match["pictures"])).past
        if end is None:
            doubts.append(text.doubtful(number, number + 12, UNSURE))
            continue
        edits.append(text.taken_out(number, end, ILLUSTRATIONS if match["pictures"] else CONTENTS))
        done = end
    return edits, doubts


def _is_heading(text: Text, number: int) -> bool:
    if number and text.lines[number - 1].strip():
        return False
    line = text.lines[number].strip()
    if not 4 < len(line) < _LONGEST_HEADING or not _HEADING.fullmatch(line):
        return False
    first = next(character for character in line if character.isalpha())
    return first.isupper()


def _form(line: str) -> str:
    """A line without what differs between a list and the headings: points, marks, capitals."""
    if match := _PICTURE.match(line.strip()):
        line = match[1]
    return "".join(filter(str.isalnum, line.casefold()))


def _places_of_forms(text: Text, first: int) -> dict[str, list[int]]:
    """Where the work's headings may be: a form → the lines at which paragraphs begin that have it."""
    places: dict[str, list[int]] = defaultdict(list)
    before = True
    for number in range(first, len(text.lines)):
        line = text.lines[number]
        is_blank = not line or line.isspace()
        if before and not is_blank and len(line) < _SHORT_LINE:
            form = _form(line)
            forms = {form}
            # a heading of two lines, as `CHAPTER I` and its title, may be one line of the list
            below = begins_at(text, number + 1)
            if below < len(text.lines) and len(text.lines[below]) < _SHORT_LINE:
                forms.add(form + _form(text.lines[below]))
            if head := _HEAD.match(line):
                forms.add(_form(head[1]))
            for one in forms:
                places[one].append(number)
        before = is_blank
    return places


class _List:
    """The list below a heading. `past` is the line after it; None where it is not sure to be a list."""

    def __init__(self, text: Text, heading: int, places: dict[str, list[int]], pictures: bool) -> None:
        self._text, self._limit, self._places = text, len(text.lines), places
        self._entries: list[tuple[int, str, int | None]] = []
        """Line, form and page of each entry."""
        self._counts: Counter[str] = Counter()
        self._lines = 0
        self._is_ended = False
        """Whether the work's own headings were seen to begin."""
        self._read(heading)
        self._drop_headings()
        self.past = self._end() if self._is_sure(pictures) else None

    def _read(self, heading: int) -> None:
        between = 0
        number = begins_at(self._text, heading + 1)
        while number < min(self._limit, heading + _MOST_LINES):
            line = self._text.lines[number].strip()
            if len(line) > _LONGEST_LINE:
                return
            if not _PAGE_WORD.fullmatch(line):
                page = _page_of(line)
                form = self._again(line, number)
                if page is None and (self._restarts(line) or self._is_after_gap(number, line)):
                    self._is_ended = True
                    return
                if form or page is not None:
                    self._lines += between + 1
                    between = 0
                    self._entries.append((number, form or _form(line), page))
                    self._counts[form] += 1
                else:
                    between += 1
                    if between > _MOST_BETWEEN or len(line) > _SHORT_LINE:
                        return
            number = begins_at(self._text, number + 1)

    def _again(self, line: str, number: int) -> str:
        """The form by which a line occurs below, as often as the list has it; empty where it does not."""
        if line[0] in _SPEECH:
            return ""  # what is said twice is no heading
        page = _PAGE.search(line)
        forms = [_form(line)]
        if page and page.start() > 1:
            titled = line[: page.start()]
            # the heading below may have its number on a line of its own: `CHAPTER I`
            forms += [_form(titled), _form(_ENTRY_NUMBER.sub("", titled))]
        if number_of_entry := _NUMBERED.match(line):
            forms.append(_form(number_of_entry[1]))  # the heading may be `217.` alone
        for form in filter(None, forms):
            places = self._places.get(form, [])
            if len(places) - bisect_right(places, number) > self._counts[form]:
                return form
        return ""

    def _restarts(self, line: str) -> bool:
        """Whether the work begins with a line: it is in the list, and not as a part's chapter that each part has."""
        form = _form(line)
        forms = [known for _, known, _ in self._entries]
        if not forms:
            return False
        if form == forms[0] or (len(form) > _TELLING and forms[0].startswith(form)):
            return True
        if form not in forms:
            return False
        first = forms.index(form)
        return self._word(first - 1) != self._word(-1)

    def _word(self, index: int) -> str:
        """The first word of an entry, which says what it is: a book, a chapter."""
        words = re.findall(r"[^\W\d_]+", self._text.lines[self._entries[index][0]])
        return words[0].casefold() if words else ""

    def _is_after_gap(self, number: int, line: str) -> bool:
        """Whether more blank lines than lie between entries come before a line that the list has already."""
        if len(self._entries) < _LEAST or self._text.lines[number - 1].strip():
            return False
        places = [entry for entry, *_ in self._entries]
        widest = max(self._blank_above(place) for place in places[1:])
        form = _form(line)
        known = any(other == form or (len(form) > _TELLING and other.startswith(form)) for _, other, _ in self._entries)
        return known and self._blank_above(number) > max(widest, 2)

    def _blank_above(self, number: int) -> int:
        return number - 1 - line_before(self._text, number)

    def _drop_headings(self) -> None:
        """Takes what may be the work's own first headings from the list's end: a line too much in it is no harm."""
        paged = sum(page is not None for *_, page in self._entries)
        while self._entries and paged > len(self._entries) / 2 and self._entries[-1][2] is None:
            self._entries.pop()
        if self._is_ended or paged > len(self._entries) / 2:
            return
        while self._entries and self._is_earlier(-1):
            self._entries.pop()
        for index in range(max(1, len(self._entries) - _MOST_HEADINGS), len(self._entries)):
            if self._has_gap(self._entries[index - 1][0], self._entries[index][0]):
                del self._entries[index:]
                break
        is_long = len(self._entries) > _MANY
        if self._entries and (self._is_before_text(self._entries[-1][0]) or not (is_long or self._is_set_off())):
            self._entries.clear()

    def _has_gap(self, first: int, past: int) -> bool:
        """Whether several blank lines follow one another between two lines."""
        blank = [not line.strip() for line in self._text.lines[first:past]]
        return any(all(blank[i : i + _GAP]) for i in range(len(blank) - _GAP + 1))

    def _is_earlier(self, index: int) -> bool:
        form = self._entries[index][1]
        return any(form == other for _, other, _ in self._entries[:index])

    def _is_before_text(self, number: int) -> bool:
        """Whether no heading, but a sentence follows a line, of which it is the heading."""
        below = past = begins_at(self._text, number + 1)
        while past < self._limit and self._text.lines[past].strip():
            past += 1
        passage = " ".join(self._text.lines[below:past])
        return len(passage) > _LONGEST_TITLE or bool(re.search('[,;!?“”"«»]', passage))

    def _is_set_off(self) -> bool:
        """Whether more blank lines follow the list than lie between its entries."""
        inside = max((self._blank_above(number) for number, *_ in self._entries[1:]), default=0)
        return self._blank_above(begins_at(self._text, self._entries[-1][0] + 1)) > inside

    def _is_sure(self, pictures: bool) -> bool:
        pages = [page for *_, page in self._entries if page]
        again = sum(form in self._places for _, form, _ in self._entries)
        steps = list(pairwise(pages))
        if len(self._entries) < _LEAST or len(self._entries) < _SHARE * self._lines:
            return False
        if sum(a <= b for a, b in steps) < 0.8 * len(steps):
            return False
        return again >= _LEAST or len(pages) >= (_LEAST if pictures else _LEAST_PAGES)

    def _end(self) -> int:
        """The line after the last entry, with its other lines."""
        past = self._entries[-1][0] + 1
        while past < self._limit and self._text.lines[past].strip() and self._text.lines[past][:1].isspace():
            past += 1
        return past


def _page_of(line: str) -> int | None:
    """The page that a line ends with; 0 for one in Roman figures, or for a frontispiece; None without a page."""
    match = _PAGE.search(line)
    if not match or not any(map(str.isalpha, line[: match.start()])):
        return None
    if match["gap"] in (" ", ", ", "; "):
        return None  # as in `Chapter 4`
    return int(match["page"]) if match["page"].isdigit() else 0
