"""What stands behind a work: transcribers' notes, and a publisher's advertisements after the line `THE END`."""

from __future__ import annotations

import re
from bisect import bisect_left
from itertools import accumulate

from utils.books.edits import Doubt, Edit, Found, Text
from utils.books.notes import TRANSCRIBERS, UNSURE_TRANSCRIBERS, is_note, note_end, speaks_of_text
from utils.books.paragraphs import Paragraph, begins_at, paragraphs_from

ADVERTISEMENTS = "advertisements"
UNSURE_ADVERTISEMENTS = "advertisements unsure"

_THE_END = re.compile(
    r"[\W_]*(?:the\s+end|end|finis|fin|fine|ende|fim|einde|eind|slut|loppu|конец|koniec|konec|vége|τελοσ|τέλος)[\W_]*",
    re.IGNORECASE,
)
_PRICE = re.compile(
    r"\b\d{1,3}\s?s\.(?:\s?\d{1,2}\s?d\.)?|[$£]\s?\d|\b\d{1,2}/(?:6|-)|\b\d+\s?(?:cents|cts)\b|\bfr\.\s?\d|\d\s?(?:fr|mk|mark)\.|"
    r"\bprice\b|\bnet\b|\bpostage\b|\bpost-?paid\b",
    re.IGNORECASE,
)
_BINDING = re.compile(
    r"\b(?:crown|demy|royal|post|large|fcap\.?|imperial)\s+8vo|\b(?:8|12|16|4)(?:vo|mo|to)\b|\b(?:cloth|boards|buckram|morocco)"
    r"\s+(?:gilt|extra|binding|bound|boards|\d)|\bcloth\b.*\bgilt\b|\bin-(?:8|12|18)\b|\bgr\.\s*8|\bfrontispiece\b|\bbroch[ée]",
    re.IGNORECASE,
)
_SELLS = re.compile(
    r"\bby\s+the\s+same\s+author|\bworks\s+(?:by|of)\b|\bnew\s+(?:novels?|books|editions?)\b|\bpublish(?:ers?|ed|ing)\b"
    r"|\bcatalogue|\bjust\s+(?:out|ready|published)|\bbooksellers?\b|\bopinions\s+of\s+the\s+press|\bpress\s+(?:notices|opinions)"
    r"|\bdu\s+m[êe]me\s+auteur|\bvom\s+(?:gleichen|selben)\s+verfasser|\bverlag\b|\bédit(?:eur|ion)\b|\b&\s+co\b|\bdel\s+mismo\s+autor"
    r"|\bpopular\s+(?:novels|copyright)|\bedition\b|\bgrosset\b",
    re.IGNORECASE,
)
_OF_THE_WORK = re.compile(
    r"[\W_]*(?:foot-?notes?|end-?notes?|notes?|index|appendix|appendices|glossary|epilogue|postscript|errata|corrigenda|addenda"
    r"|bibliography|chapter|part|book|volume|vol|act|canto|register|anmerkungen|anhang|fu(?:ß|ss)noten|notes\s+de\s+fin|annexe"
    r"|[íi]ndice|notas|note|apéndice|appendice|[\[{(]\s*(?:\d+|footnote)|\d+[.)\]])(?:\b|[\W_]|$)",
    re.IGNORECASE,
)
"""Headings, and beginnings of notes, that belong to a work though they stand behind its end."""
_BACK = 0.4
"""The share of a work that its advertisements have at most."""
_LAST_LINES, _OFFERS = 200, 5


def find_back_notes(text: Text) -> Found:
    """The transcriber's notes at a work's end, and those in brackets or a frame wherever they stand."""
    edits: list[Edit] = []
    doubts: list[Doubt] = []
    done = 0
    lines = _note_lines(text)
    ending = _Ending(text, lines[0]) if lines else None
    for number in lines:
        if number < done:
            continue
        paragraph = next(paragraphs_from(text, number))
        found = note_end(text, paragraph)
        if found is None and ending and ending.is_note(paragraph):
            found = (number, len(text.lines))
        if found is None or found[0] < done:
            doubts.append(text.doubtful(number, paragraph.past, UNSURE_TRANSCRIBERS))
            continue
        edits.append(text.taken_out(*found, TRANSCRIBERS))
        done = found[1]
    return edits, doubts


def _note_lines(text: Text) -> list[int]:
    """The lines at which transcribers' notes begin paragraphs."""
    lines = []
    begin = last = -1
    for match in re.finditer("ranscri|RANSCRI|bewerker|Transkri|trascri", text.text):
        number = seen = text.line_at(match.start())
        while number > max(last, 0) and text.lines[number - 1].strip():
            number -= 1
        is_same = number <= last  # the paragraph of the match before
        last = seen
        if is_same or number == begin:
            continue
        begin = number
        if is_note(next(paragraphs_from(text, number))):
            lines.append(number)
    return lines


class _Ending:
    """A text's last paragraphs, among which notes without brackets may stand; each is looked at once."""

    def __init__(self, text: Text, first: int) -> None:
        past = len(text.lines)
        size = max(0.1 * len(text.text), 3000)
        begin = bisect_left(text.starts, text.starts[past] - size, first, past)
        if begin > first and text.lines[begin - 1].strip():  # within a paragraph, which begins too early
            begin = next((i for i in range(begin, past) if not text.lines[i].strip()), past)
        self._parts = list(paragraphs_from(text, begin))
        self._numbers = {part.first: i for i, part in enumerate(self._parts)}
        self._speaks = [speaks_of_text(part) for part in self._parts]
        self._speaking = [0, *accumulate(self._speaks)]

    def is_note(self, paragraph: Paragraph) -> bool:
        """Whether nothing but a note comes from a paragraph on: most of what it has speaks of the text."""
        number = self._numbers.get(paragraph.first)
        if number is None:
            return False
        rest = len(self._parts) - number - 1
        if not rest:
            return len(paragraph.lines) > 1 and self._speaks[number]
        speaking = self._speaking[-1] - self._speaking[number + 1]
        # an index or an advertisement behind the note would be long lines of something else
        return speaking >= 0.6 * rest and self._speaks[number + 1]


def find_advertisements(text: Text) -> Found:
    """A publisher's lists behind the last line `THE END`; the signs of it elsewhere are for a human's look."""
    number = _last_end(text)
    if number is None:
        return [], _offers(text)
    rest = begins_at(text, number + 1)
    if not _signs(text, rest):
        return [], []
    if _is_advertisement(text, rest):
        return [text.taken_out(rest, len(text.lines), ADVERTISEMENTS)], []
    return [], [text.doubtful(rest, rest + 5, UNSURE_ADVERTISEMENTS)]


def _offers(text: Text) -> list[Doubt]:
    """The first of several lines with prices or bindings at the end of a work that does not say where it ends."""
    last = range(max(0, len(text.lines) - _LAST_LINES), len(text.lines))
    offers = [number for number in last if _PRICE.search(text.lines[number]) or _BINDING.search(text.lines[number])]
    if len(offers) < _OFFERS or _signs(text, offers[0]) < 3:
        return []
    return [text.doubtful(offers[0], offers[0] + 1, UNSURE_ADVERTISEMENTS)]


def _last_end(text: Text) -> int | None:
    for number in range(len(text.lines) - 1, -1, -1):
        if len(text.lines[number]) < 80 and _THE_END.fullmatch(text.lines[number]):
            return number
    return None


def _signs(text: Text, rest: int) -> int:
    """How many of the kinds of signs an advertisement has: prices, bindings, publishers."""
    passage = "\n".join(text.lines[rest:])
    return sum(bool(kind.search(passage)) for kind in (_PRICE, _BINDING, _SELLS))


def _is_advertisement(text: Text, rest: int) -> bool:
    if len(text.text) - text.starts[rest] > _BACK * len(text.text):
        return False
    lines = [line for line in text.lines[rest:] if line.strip()]
    if any(map(_OF_THE_WORK.match, lines)):
        return False
    offered = sum(bool(_PRICE.search(line) or _BINDING.search(line)) for line in lines)
    selling = sum(bool(_PRICE.search(line) or _BINDING.search(line) or _SELLS.search(line)) for line in lines)
    return _signs(text, rest) == 3 and offered > 1 and selling > 3 and selling >= 0.1 * len(lines)
