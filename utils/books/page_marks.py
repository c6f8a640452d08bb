"""Page numbers and running heads, told by what pages are: they follow in order, are equally long, and break sentences.

A number goes only as one of a chain of numbers in steps of one to three (pages with a picture have none), at distances
of a page, in the middle of sentences for a good part of them. So years of a diary, sections, verses, stanzas, lines of
tables, and references to footnotes or to other books' pages stay. Only `[Pg 12]` may be few.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Set
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from utils.books.edits import Doubt, Edit, Found, Text
from utils.books.gaps import closed, is_amid_sentence, removed_inline

PAGE, HEAD, FEED = "page numbers", "running heads", "form feeds"
DOUBTFUL, UNSURE = "numbers that may be pages'", "lines that may be running heads"

_NAMED = re.compile(
    r"[\[{] ?(?:Pg|Page|PAGE|page|pg\.?|p\.|Seite|S\.|pag\.|página|pagina|стр\.)[ _]?(\d{1,4}|[ivxlcIVXLC]{1,8}) ?[\]}]"
)
_BARE = (re.compile(r"\[(\d{1,4})\]"), re.compile(r"\{(\d{1,4})\}"))
_LONE = re.compile(
    r"\s*(?:[-–—*~•] ?)?(?:(?:Page|page|PAGE|p\.|pg\.) ?|[\[({] ?)?(\d{1,4})\.?(?: ?[\])}])?(?: ?[-–—*~•])?\s*"
)
_HEADED = re.compile(r"\s*(?:(\d{1,4})[\s.\[\]|-]+(\S.{1,68}?)|(\S.{1,68}?)[\s.\[\]|-]+(\d{1,4}))\s*")
_NOTE = re.compile(r"\[(?:Footnote|Note|Fußnote|Voetnoot|Nota|Alaviite)\b", re.IGNORECASE)
_BLANK = re.compile(r"\s*[\[{] ?(?:Blank Page|blank page|Blank page)\.? ?[\]}]\s*")

_LEAST_CHAIN, _LONGEST_STEP = 6, 3
_SHORTEST_PAGE, _LONGEST_PAGE = 500, 12_000
_EVEN = (0.5, 1.7)
"""Between what parts of the median most distances lie."""
_MOST, _BREAKING = 0.75, 0.25
"""Shares of a chain: of distances that are even, and of numbers amid sentences."""
_FRONT_MATTER = 60
"""Pages that a book may have had before its first number, which are not in the text."""
_LEAST_HEADS, _LINE = 5, 90
_ABOUT = 12
"""Lines on either side of a page's number in which its head is looked for."""


class _Mark(NamedTuple):
    begin: int
    end: int
    number: int
    line: int
    """The line that a mark takes whole; -1 for a mark within a line."""
    head: str = ""


def find_page_marks(text: Text) -> Found:
    """Page numbers and running heads, and numbers that follow in order but may be the work's."""
    recurring = _recurring(text)
    feeds = {i for i, line in enumerate(text.lines) if line.startswith("\f")} if "\f" in text.text else set()
    skipped = {i for places in recurring.values() for i in places}
    doubts: list[Doubt] = []
    named = _in_text(text, _NAMED)
    # nobody but a transcriber writes "Pg"; a scholar may write "[Page 12]" of another book
    marks = [mark for mark in named if "Pg" in text.text[mark.begin : mark.end]]
    cited = [mark for mark in named if "Pg" not in text.text[mark.begin : mark.end]]
    bare = [marks for marks in (_in_text(text, pattern) for pattern in _BARE) if not _are_notes(text, marks)]
    for found in (cited, *bare, _lone(text), _headed(text)):
        for chain in _chains(found, _LONGEST_STEP):
            page = _page_of(chain)
            amid = sum(_is_amid(text, mark, skipped) for mark in chain) if page else 0
            # a first number beyond all pages before it is a year's, or a journal's page
            is_possible = page and chain[0].number <= chain[0].begin / page + _FRONT_MATTER
            if is_possible and (amid >= _BREAKING * len(chain) or found is cited):
                marks += chain
            elif amid:
                doubts.append(Doubt(chain[0].begin, chain[-1].end, DOUBTFUL))
    lines = {mark.line: HEAD if mark.head else PAGE for mark in marks if mark.line >= 0}
    lines |= {i: PAGE for i, line in enumerate(text.lines) if "[" in line and _BLANK.fullmatch(line)}
    lines |= {i: FEED for i in feeds if not text.lines[i].strip()}
    lines |= _heads_without_numbers(text, recurring, lines.keys() | feeds, doubts)
    edits = _of_lines(text, lines)
    edits += [removed_inline(text.text, mark.begin, mark.end, PAGE) for mark in marks if mark.line < 0]
    edits += [Edit(text.starts[i], text.starts[i] + 1, FEED) for i in feeds if i not in lines]
    return _apart(edits), sorted(doubts)


def _recurring(text: Text) -> dict[str, list[int]]:
    """The places of lines that may be running heads."""
    counts = Counter(text.lines)
    often = {line for line, count in counts.items() if count >= _LEAST_HEADS / 2 and 3 < len(line) < _LINE}
    places: dict[str, list[int]] = {}
    for i, line in enumerate(text.lines):
        if line in often or line.startswith("\f"):
            bare = line.strip()
            if sum(map(str.isalpha, bare)) >= 3 and (bare[0].isupper() or bare[0].isdigit()):
                places.setdefault(bare, []).append(i)
    return {bare: found for bare, found in places.items() if len(found) >= _LEAST_HEADS}


def _in_text(text: Text, pattern: re.Pattern[str]) -> list[_Mark]:
    """All marks of a pattern; those that are alone on their line take it whole."""
    marks = []
    for match in pattern.finditer(text.text):
        line = text.line_at(match.start())
        is_alone = len(text.lines[line]) < _LINE and text.lines[line].strip() == match[0].strip()
        number = int(match[1]) if match[1].isdigit() else _roman(match[1])
        marks.append(_Mark(match.start(), match.end(), number, line if is_alone else -1))
    return marks


def _are_notes(text: Text, marks: list[_Mark]) -> bool:
    """Whether numbers in brackets refer to notes, which have them as well; pages have theirs once."""
    numbers = {mark.number for mark in marks}
    return len(numbers) < 0.9 * len(marks) or len(_NOTE.findall(text.text)) * 4 > len(numbers)


def _roman(digits: str) -> int:
    values = [{"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}[digit] for digit in digits.lower()]
    return sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))


def _lone(text: Text) -> list[_Mark]:
    marks = []
    for i, line in enumerate(text.lines):
        if line and len(line) < _LINE and (match := _LONE.fullmatch(line)):
            marks.append(_Mark(text.starts[i], text.starts[i] + len(line), int(match[1]), i))
    return marks


def _headed(text: Text) -> list[_Mark]:
    """Lines of a number and words that recur with other numbers."""
    found = []
    for i, line in enumerate(text.lines):
        bare = line.strip()
        if bare and len(bare) < 80 and bare[0].isdigit() != bare[-1].isdigit() and (match := _HEADED.fullmatch(line)):
            head, number = match[2] or match[3], int(match[1] or match[4])
            found.append(_Mark(text.starts[i], text.starts[i] + len(line), number, i, head))
    counts = Counter(mark.head for mark in found)
    return [mark for mark in found if counts[mark.head] > 2]


def _chains(marks: list[_Mark], longest_step: int) -> list[list[_Mark]]:
    """Numbers that follow each other, apart or one amid others: of a second volume a second chain."""
    before: list[int] = []
    lengths: list[int] = []
    newest: dict[int, int] = {}
    ends = set()
    for i, mark in enumerate(marks):
        steps = range(1, longest_step + 1)
        found = next((newest[mark.number - step] for step in steps if mark.number - step in newest), -1)
        before.append(found)
        lengths.append(lengths[found] + 1 if found >= 0 else 1)
        ends.discard(found)
        ends.add(i)
        newest[mark.number] = i
    chains, taken = [], set()
    for end in sorted(ends, key=lambda i: (-lengths[i], i)):
        chain = []
        while end >= 0 and end not in taken:
            taken.add(end)
            chain.append(marks[end])
            end = before[end]
        chains.append(chain[::-1])
    return chains


def _page_of(chain: list[_Mark]) -> float:
    """The characters of a page, 0 where the distances are not those of pages."""
    if len(chain) < _LEAST_CHAIN:
        return 0
    distances = [(after.begin - before.begin) / (after.number - before.number) for before, after in pairwise(chain)]
    page = median(distances)
    even = sum(_EVEN[0] * page <= distance <= _EVEN[1] * page for distance in distances)
    return page if even >= _MOST * len(distances) and _SHORTEST_PAGE <= page <= _LONGEST_PAGE else 0


def _is_amid(text: Text, mark: _Mark, skipped: Set[int]) -> bool:
    """Whether a mark stands amid a sentence, with what else stands at a page's end."""
    if mark.line >= 0:
        first, past = _widened(text, mark.line, skipped)
        return is_amid_sentence(text, first, past)
    before = text.text[max(mark.begin - 3, 0) : mark.begin].rstrip()
    after = text.text[mark.end : mark.end + 3].lstrip()
    return (before[-1:].isalpha() or before[-1:] in (",", "-")) and after[:1].islower()


def _widened(text: Text, line: int, skipped: Set[int]) -> tuple[int, int]:
    """The lines from the first to past the last of `skipped` and blank ones about a line, a few on either side."""
    first, past = line, line + 1
    least, most = max(line - _ABOUT, 0), min(line + _ABOUT, len(text.lines))
    while first > least and (first - 1 in skipped or not text.lines[first - 1].strip()):
        first -= 1
    while past < most and (past in skipped or not text.lines[past].strip()):
        past += 1
    return first, past


def _heads_without_numbers(
    text: Text, recurring: dict[str, list[int]], marks: Set[int], doubts: list[Doubt]
) -> dict[int, str]:
    """Lines that recur at pages' distances, amid sentences or beside what is known to end a page.

    Where no page's end is known, a refrain of unpunctuated verse looks the same: it stays, with a doubt, unless it is
    all capitals.
    """
    heads = {}
    for line, places in recurring.items():
        places = [i for i in places if i not in marks or text.lines[i].startswith("\f")]
        distances = [text.starts[after] - text.starts[before] for before, after in pairwise(places)]
        if len(places) < _LEAST_HEADS or median(distances) < _SHORTEST_PAGE:
            continue
        least, most = _EVEN[0] * median(distances), _EVEN[1] * median(distances)
        is_even = [least <= distance <= most for distance in distances]
        at_breaks = []
        is_marked = False
        for i in places:
            first, past = _widened(text, i, marks)
            has_mark = any(j in marks for j in range(first, past))
            is_marked = is_marked or has_mark
            if has_mark or is_amid_sentence(text, first, past):
                at_breaks.append(i)
        if sum(is_even) < 0.6 * len(distances) or len(at_breaks) < 0.4 * len(places):
            continue
        if is_marked or line.isupper():
            a_page_on = [i for i, is_page in zip(places[1:], is_even, strict=True) if is_page]
            heads |= dict.fromkeys([*at_breaks, *a_page_on], HEAD)
        else:
            first = text.starts[places[0]]
            doubts.append(Doubt(first, first + len(text.lines[places[0]]), UNSURE))
    return heads


def _of_lines(text: Text, lines: dict[int, str]) -> list[Edit]:
    """One edit for the lines of a page's end, with the blank lines between them."""
    edits: list[Edit] = []
    run: list[int] = []
    for i in sorted(lines):
        if run and any(map(str.strip, text.lines[run[-1] + 1 : i])):
            edits.append(_of_run(text, run, lines))
            run = []
        run.append(i)
    return [*edits, _of_run(text, run, lines)] if run else edits


def _of_run(text: Text, run: list[int], lines: dict[int, str]) -> Edit:
    reasons = {lines[i] for i in run}
    reason = next(reason for reason in (HEAD, PAGE, FEED) if reason in reasons)
    return closed(text, run[0], run[-1] + 1, reason)


def _apart(edits: list[Edit]) -> list[Edit]:
    """The edits in order, without those that begin within the one before."""
    apart: list[Edit] = []
    for edit in sorted(edits):
        if not apart or edit.begin >= apart[-1].end:
            apart.append(edit)
    return apart
