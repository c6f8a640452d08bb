"""Where a work begins and ends in a file of Project Gutenberg: the markers of fifty years, headers and licences.

1. A file opens with a header where its first lines name Project Gutenberg. The header goes to the last start marker
   that follows without anything between but a header; without a marker, as far as paragraphs are Project Gutenberg's.
2. An end marker counts where nothing but a footer follows it: up to the file's end or to another work's header. So a
   marker that a work quotes is left.
3. What lies outside of the works is taken out; a file that nowhere names Project Gutenberg is left whole.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from itertools import takewhile

from utils.books.boilerplate import BRACKETED_END, HEADER_BEGINS, NAME, Scan, is_broad, is_strict, lines_with
from utils.books.edits import Doubt, Edit, Text
from utils.books.paragraphs import begins_at, paragraphs_from

HEADER, FOOTER, INNER, GLUED = "header", "footer", "licence inside", "blanks before an end marker"
NO_START, NO_END = "no start marker", "no end marker"
QUOTED = "marker inside the text"
AFTER_END = "text after the end marker"

_GUTENBERG = r"(?:project|projekt|projet|proyecto|projecto|progetto)\s+gutenb[eu]rg"
_START = re.compile(
    rf"""\W*start\s+of\s+(?:th(?:e|is)\s+)?(?:copyrighted\s+)?{_GUTENBERG}
    | \W*\*\s*end\s*\*{{0,2}}\s*the\s+small\s+print | \*{{3,}}\s*small\s+print!\s+for\s
    | \W*(?:inizio\s+d\w+|beginn|anfang|d[ée]but)\s.{{0,20}}{_GUTENBERG}
    | \W*(?:beginning|here\s+begins)\s+(?:of\s+)?(?:th(?:e|is)\s+)?{_GUTENBERG}""",
    re.IGNORECASE | re.VERBOSE,
)
_SMALL_PRINT = re.compile(r"small\s+print", re.IGNORECASE)
_STARRED_END = re.compile(
    rf"\W*\*\s*end\s+of\s+(?:th(?:e|is)\s+)?(?:copyrighted\s+)?{_GUTENBERG}", re.IGNORECASE | re.VERBOSE
)
_END = re.compile(
    rf"""\W*(?:this\s+is\s+)?(?:the\s+|here\s+)?(?:ends?|ende|eind|einde|fin|fine|fim|slut|slutet|loppu)\s+
    (?:[\w'’]+\s+){{0,5}}?{_GUTENBERG}
    | \W*(?:this\s+is\s+)?(?:the\s+)?end\s+of\s+e-?text\b
    | \W*(?:this\s+is\s+)?(?:the\s+)?end\s+of\s+(?:th(?:e|is)\s+)(?:copyrighted\s+)?(?:e-?text|e-?book)\b
    | \W*ende\s+dieses\s+e-?(?:textes|books)\b | \W*use\s+of\s+the\s+{_GUTENBERG}\s+trademark\s+requires
    | \W*{_GUTENBERG}\S*\s.{{0,100}}\bloppu\b
    | \W*{_GUTENBERG}\s+(?:of\s+)?(?:australia|canada)\W*$
    | \W*\*\s*this\s+file\s+should\s+be\s+named | \W*\*\s*the\s+{_GUTENBERG}\s+e-?text\s.{{3,200}}\*\s*$
    | \W*\*\s*start:\s+full\s+licen[sc]e | \W*the\s+full\s+{_GUTENBERG}\s+licen[sc]e
    | \W*updated\s+editions\s+will\s+replace\s+the\s+previous
    | \W*section\s+1\.\s+general\s+terms\s+of\s+use\s+and\s+redis
    | \W*\*\s*start\**\s*the\s+small\s+print | \W*this\s+is\s+a\s+copyrighted\s+{_GUTENBERG}
    | \W*this\s+site\s+is\s+full\s+of\s+free\s+ebooks""",
    re.IGNORECASE | re.VERBOSE,
)
_SEEDS = (
    "gutenberg",
    "gutenburg",
    "small print",
    "file should be named",
    "etext",
    "e-text",
    "ebook",
    "e-book",
    "updated editions",
    "full license",
    "general terms of use",
    "end of",
)
"""What every marker has one of, in small letters."""
_INNER, _LONGEST_INNER = "<<THIS ELECTRONIC VERSION OF", 16
_GLUED = re.compile(r"(?<=[^\s*])[ \t]{0,20}(?=\*{3} ?END OF TH(?:E|IS) PROJECT GUTENBERG E)")
_OPENING_LINES = 12
"""Lines that are not blank, among which a header names itself."""
_MOST_HEADERS = 5
_LONGEST_HEADER = 1500
"""Lines of a header: those with the small print have 400."""
_MOST_STRANGE = 2000
"""Characters of a header's paragraphs that nothing says to be a header's."""
_LONGEST_MARKER = 6
"""Lines of a marker with its title."""


@dataclass
class Outside:
    """What of a text lies outside of its works."""

    regions: list[tuple[int, int, str]] = field(default_factory=list)
    """Lines [first, past) and whether they are a header or a footer, in order; a header may follow a footer."""
    doubts: list[Doubt] = field(default_factory=list)

    def edits(self, text: Text) -> list[Edit]:
        return [text.taken_out(first, past, reason) for first, past, reason in self.regions if past > first]


def find_outside(text: Text) -> Outside:
    """Headers and footers of a text of one or several works; nothing where Project Gutenberg is not named."""
    outside = Outside()
    starts, ends = _candidates(text)
    if not starts and not ends and not NAME.search(_head(text, 0)):
        return outside
    line = _take_header(text, 0, starts, outside)
    header = set(re.findall(r"\w+", "\n".join(text.lines[:line]).casefold()))
    ends = [end for end in ends if not BRACKETED_END.match(text.lines[end]) or _names_author(text, end, header)]
    used = set()
    while True:
        found = _next_footer(text, line, starts, ends)
        if found is None:
            break
        first, past = found
        outside.regions.append((first, past, FOOTER))
        used.update(range(first, past))
        line = _take_header(text, past, starts, outside)
        if line <= past and begins_at(text, past) < len(text.lines):
            outside.doubts.append(_doubt(text, begins_at(text, past), AFTER_END))
    _cut_bare_marker(text, line, ends, outside)
    taken = {i for first, past, _ in outside.regions for i in range(first, past)}
    for marker in [*starts, *(end for end in ends if _is_named_end(text, end))]:
        if marker not in taken:
            outside.doubts.append(_doubt(text, marker, QUOTED))
    kinds = {reason for *_, reason in outside.regions}
    if kinds == {HEADER}:
        outside.doubts.append(_doubt(text, len(text.lines) - 1, NO_END))
    elif kinds == {FOOTER}:
        outside.doubts.append(_doubt(text, 0, NO_START))
    return outside


def _candidates(text: Text) -> tuple[list[int], list[int]]:
    """Lines that look like start markers, and like end markers or a footer's first line."""
    starts: list[int] = []
    ends: list[int] = []
    for line in lines_with(text, _SEEDS):
        for number in (line - 1, line):  # "End of the Project" may stand at a line's end, "Gutenberg" on the next
            if number < 0 or number in starts[-2:] or number in ends[-2:] or not text.lines[number].strip():
                continue
            joined = text.lines[number] if number == line else f"{text.lines[number]} {text.lines[line]}"
            if len(joined) > 400:
                continue
            if _START.match(joined):
                starts.append(number)
            elif _STARRED_END.match(joined) or _END.match(joined) or BRACKETED_END.match(joined):
                ends.append(number)
    return starts, ends


def _names_author(text: Text, line: int, header: set[str]) -> bool:
    """Whether `[End of TITLE by AUTHOR]` names who the header names: a letter in the work may end so, too."""
    return re.findall(r"[^\W_]+", text.lines[line].casefold())[-1] in header


def _is_named_end(text: Text, line: int) -> bool:
    joined = " ".join(text.lines[line : line + 2])
    return bool(_STARRED_END.match(joined) or (_END.match(joined) and NAME.search(joined)))


def _doubt(text: Text, line: int, reason: str) -> Doubt:
    return text.doubtful(line, line + 1, reason)


def _head(text: Text, line: int) -> str:
    """The first lines from a line on that are not blank, as one."""
    lines: list[str] = []
    while len(lines) < _OPENING_LINES and (line := begins_at(text, line)) < len(text.lines):
        lines.append(text.lines[line].strip())
        line += 1
    return " ".join(lines)


def _take_header(text: Text, line: int, starts: list[int], outside: Outside) -> int:
    """Notes the header that begins at `line`, if one does; returns the line at which the work begins.

    Files of the 1990s that were issued again have their old header below the new one.
    """
    past = line
    for _ in range(_MOST_HEADERS):
        if not _opens(text, past, starts):
            break
        markers = _header_markers(text, past, starts)
        if not markers:
            break
        past = _marker_end(text, _last_of_header(text, markers))
    if past == line and _opens(text, line, starts):
        past = _strict_end(text, line)
        if line < past and begins_at(text, past) < len(text.lines):
            outside.doubts.append(_doubt(text, begins_at(text, past), NO_START))
    if past > line:
        outside.regions.append((line, past, HEADER))
    return past


def _last_of_header(text: Text, markers: list[int]) -> int:
    """The first marker, or the last one of a small print, whose beginning may look like its end."""
    small = [marker for marker in markers if _SMALL_PRINT.search(text.lines[marker])]
    return small[-1] if small and markers[0] == small[0] else markers[0]


def _opens(text: Text, line: int, starts: list[int]) -> bool:
    """Whether the first paragraphs from a line on say that a header begins."""
    end = line
    for _ in range(_OPENING_LINES):
        end = begins_at(text, end) + 1
    for paragraph in paragraphs_from(text, line):
        if paragraph.first >= end or _STARRED_END.match(paragraph.lines[0]):
            return False  # behind a short poem its own footer may be near
        if paragraph.first in starts or HEADER_BEGINS.match(paragraph.joined):
            return True
    return False


def _header_markers(text: Text, line: int, starts: list[int]) -> list[int]:
    """The start markers from a line on before which nothing but a header stands: a work may quote a marker."""
    near = starts[bisect_left(starts, line) : bisect_left(starts, line + _LONGEST_HEADER)]
    strange, count = 0, 0
    for paragraph in paragraphs_from(text, line):
        count = bisect_left(near, paragraph.past)
        if count == len(near) or _STARRED_END.match(paragraph.lines[0]):
            break
        if not is_strict(paragraph) and not is_broad(paragraph.joined):
            strange += len(paragraph.joined)
            if strange > _MOST_STRANGE:
                break
    return near[:count]


def _strict_end(text: Text, line: int) -> int:
    """The line after paragraphs that no author could have written, with those between them that a licence may have."""
    past = line
    for paragraph in paragraphs_from(text, line):
        if is_strict(paragraph):
            past = paragraph.past
        elif not is_broad(paragraph.joined):
            break
    return past


def _marker_end(text: Text, line: int) -> int:
    """The line after a start marker, whose title may go over several lines, up to its closing stars."""
    for past in range(line + 1, min(line + 1 + _LONGEST_MARKER, len(text.lines) + 1)):
        if text.lines[past - 1].rstrip().endswith("*"):
            return past
        if past == len(text.lines) or not text.lines[past].strip():
            break
    return line + 1


def _next_footer(text: Text, line: int, starts: list[int], ends: list[int]) -> tuple[int, int] | None:
    """The lines of the next footer from `line` on: all that follows its marker is a footer."""
    for end in ends:
        if end < line:
            continue
        scan = Scan(text, end)
        rest = begins_at(text, scan.past)
        at_end = rest == len(text.lines) or _opens(text, rest, starts)
        if scan.past > end and (at_end or scan.has_licence) and not _is_work_between(text, end, scan.past, ends):
            return end, scan.past
    return None


def _is_work_between(text: Text, end: int, past: int, ends: list[int]) -> bool:
    """Whether paragraphs of a work stand between a marker and the next starred one, which then is the first."""
    near = ends[bisect_right(ends, end) : bisect_left(ends, past)]
    starred = next((line for line in near if _STARRED_END.match(text.lines[line])), end)
    between = takewhile(lambda paragraph: paragraph.first < starred, paragraphs_from(text, end))
    return any(not is_strict(paragraph) and not is_broad(paragraph.joined) for paragraph in between)


def _cut_bare_marker(text: Text, line: int, ends: list[int], outside: Outside) -> None:
    """Takes out the last starred end marker of a file with a header, though what follows is no footer; that is kept."""
    has_footer = any(reason == FOOTER for *_, reason in outside.regions)
    starred = [end for end in ends if end >= line and _STARRED_END.match(text.lines[end])]
    if not outside.regions or has_footer or not starred:
        return
    past = _marker_end(text, starred[-1])
    outside.regions.append((starred[-1], past, FOOTER))
    outside.doubts.append(_doubt(text, begins_at(text, past) % len(text.lines), AFTER_END))


def find_glued_markers(text: Text) -> list[Edit]:
    """Puts a starred end marker that stands behind a sentence on a line of its own."""
    return [Edit(match.start(), match.end(), GLUED, "\n\n") for match in _GLUED.finditer(text.text)]


def find_inner_licences(text: Text) -> list[Edit]:
    """The paragraphs `<<THIS ELECTRONIC VERSION … >>` that World Library put between Shakespeare's acts."""
    edits = []
    place = 0
    while (place := text.text.find(_INNER, place)) >= 0:
        first = text.line_at(place)
        place += 1
        for past in range(first + 1, min(first + _LONGEST_INNER, len(text.lines))):
            if text.lines[past - 1].rstrip().endswith(">>"):
                edits.append(text.taken_out(first, past, INNER))
                break
    return edits
