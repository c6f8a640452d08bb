"""Hard line breaks, joined into paragraphs where it is sure that only the width of the page broke the line.

A program or typist that fills lines breaks where the next word no longer fits: each line is at most as long as the
page is wide, and with the next line's first word it would be longer. Such breaks are *forced*. Verse, headings,
addresses, signatures, lists and tables break where there was room left, so their breaks stay. The page's width is found
for each stretch of lines, as the one that explains most breaks, so that parts of an anthology may differ. A text whose
breaks no width explains is left as it is.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from utils.books.edits import Doubt, Edit, Found, Text

JOINED, SYLLABLE = "hard line breaks", "hyphens at line ends"
LEFT, PARTED = "line breaks left amid sentences", "blank lines between the lines of paragraphs"

_STRETCH = 120
"""Breaks by which a width is found: a few pages."""
_EXPLAINED = 0.75
"""Share of a stretch's breaks that its width must force. Filled lines have 0.9 and more, verse at most 0.6."""
_NARROWEST, _WIDEST = 30, 200
_SLACK = 3
"""Characters by which a typist's line may be too short for its break to be sure: wider words, two blanks, a dash."""
_MANY, _SEVERAL, _DOUBLE = 0.05, 20, 0.15
"""The share of breaks, and their number, that are many to be left amid sentences; the share of lines parted so."""
_VARIES = 6
"""Columns by which a paragraph's width differs from its surroundings' where a text was corrected by hand."""
_TERMINAL = frozenset(".!?:;…。！？»”\"’'」』)]")
_POINTS = frozenset(",—、，；：") | _TERMINAL
_IDEOGRAPHS = re.compile("[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef]")
_LABEL = re.compile(r"\[?[^\W\d_][\w.’' -]{0,60}?(?:[.:]\]?|\][.:]?)(?=\s|$)")
_SENTENCE = (False, False, ".")
"""The shape of a label that a sentence of one word has as well."""
_ITEM = re.compile(r"(?:[-*•+·]|\(?\d{1,3}[.)]|\(?[a-z][.)]|[ivxlIVXL]{1,6}[.)])\s")
_TALK = re.compile("(?:—|–|--|―|-) ?")
_QUOTES_OPEN, _QUOTES_CLOSED = tuple("\"“«„‘'「『"), tuple("\"”»’'」』")
_OPENERS = "_=*~+([{\"'“‘«„"
_SPACED = frozenset('?!;:»”"')
_DASHES = ("--", "—", "―")
_PREFIXES = "#>|;/%*\\{}<"
"""What begins each line of remarks in programs, of quotations in mails, of markup and of music."""
_SUSPENDED = frozenset(["and", "or", "to", "und", "oder", "bis", "et", "ou", "y", "e", "o", "og", "och", "en"])


class _Break(NamedTuple):
    """A line end between two lines that are not blank."""

    line: int
    length: int
    """Columns of the line before, its indentation with it."""
    needed: int
    """Columns that line would have with the next line's first word."""
    is_small: bool
    """Whether the next line begins with a small letter, or with one that has no capital."""
    is_pointed: bool
    """Whether the line before ends with punctuation."""


def find_line_ends(text: Text) -> Found:
    """The line ends to be joined, and a doubt where many sentences still go on in another line."""
    breaks = _breaks_of(text.lines)
    widths = _Widths(breaks)
    labels = _labels(text.lines) if widths.is_any else frozenset()
    words = _Words(text.text)
    edits, left = [], []
    for block in _blocks(breaks):
        joined = _joined_of(text.lines, block, widths.of(block), labels) if widths.is_any else []
        edits += [_edit(text, found.line, words) for found in joined]
        if len(joined) < len(block):
            left += [found for found in set(block).difference(joined) if found.is_small and not found.is_pointed]
    if len(left) > max(_MANY * len(breaks), _SEVERAL):
        line = min(left).line
        return edits, [Doubt(text.starts[line], text.starts[line + 2] - 1, LEFT)]
    return edits, _double_spaced(text.lines, text.starts)


def _double_spaced(lines: list[str], starts: list[int]) -> list[Doubt]:
    """A doubt where blank lines part the lines of paragraphs, as after a wrong conversion of line ends."""
    parted = []
    for i in range(2, len(lines)):
        before, line = lines[i - 2].rstrip(), lines[i].lstrip()
        if line[:1].islower() and before and before[-1] not in _POINTS and not lines[i - 1].strip():
            parted.append(i)
    if len(parted) <= max(_DOUBLE * len(lines), _SEVERAL):
        return []
    return [Doubt(starts[parted[0] - 2], starts[parted[0] + 1] - 1, PARTED)]


def _columns(line: str) -> int:
    return len(line) if line.isascii() else len(line) + len(_IDEOGRAPHS.findall(line))


def _breaks_of(lines: list[str]) -> list[_Break]:
    breaks = []
    before = ""
    for i, line in enumerate(lines):
        line = line.rstrip()
        if before and line:
            word = line.split(None, 1)[0]
            if not line.isascii() and _IDEOGRAPHS.match(word):
                word = word[:1]  # their lines break between any two characters
            first, last = word.lstrip(_OPENERS)[:1], before[-1]
            is_small = first.islower() or (first.isalpha() and not first.isupper() and last not in _POINTS)
            length = _columns(before)
            breaks.append(_Break(i - 1, length, length + 1 + _columns(word), is_small, last in _POINTS))
        before = line
    return breaks


def _blocks(breaks: list[_Break]) -> list[list[_Break]]:
    """The breaks of each run of lines that no blank line parts."""
    blocks: list[list[_Break]] = []
    line = -2
    for found in breaks:
        if found.line != line + 1:
            blocks.append([])
        blocks[-1].append(found)
        line = found.line
    return blocks


class _Widths:
    """The page's width in each stretch of breaks; 0 where none explains them."""

    def __init__(self, breaks: list[_Break]) -> None:
        # a small letter shows that the line goes on: breaks of verse, headings and lists are not asked
        self._asked = [found for found in breaks if found.is_small]
        stretches = range(0, len(self._asked), _STRETCH)
        self._widths = [_width_of(self._asked[i : i + _STRETCH]) for i in stretches]
        self._whole = _width_of(self._asked)
        self._lines = [self._asked[i].line for i in stretches]
        self.is_any = self._whole > 0 or any(self._widths)

    def of(self, block: list[_Break]) -> int:
        """The width that explains most of the block's breaks."""
        if not self._lines:
            return 0
        here = bisect_right(self._lines, block[0].line) - 1
        near = [self._widths[i] for i in (here, here + 1, here - 1) if 0 <= i < len(self._widths)]
        possible = [width for width in dict.fromkeys([*near, self._whole]) if width]
        longest = max(found.length for found in block)
        is_going_on = 2 * sum(found.is_small for found in block) >= len(block)
        if is_going_on and any(abs(longest - width) <= _VARIES for width in possible):
            possible.append(longest)
        return max(possible, key=lambda width: _merit(block, width), default=0)


def _merit(block: list[_Break], width: int) -> int:
    overrun = sum(found.length > width for found in block)
    return sum(found.length <= width < found.needed for found in block) - 2 * overrun


def _width_of(breaks: list[_Break]) -> int:
    """The width that forces the most breaks and is overrun by the fewest lines; 0 if it explains too few."""
    lengths = Counter(found.length for found in breaks)
    needed = Counter(found.needed for found in breaks)
    columns = range(_WIDEST + 1)
    # of the lines that are no longer than a width, those whose next word fitted as well
    fitting = list(accumulate(lengths[column] for column in columns))
    fitted = list(accumulate(needed[column] for column in columns))
    overrun = [len(breaks) - fitting[column] for column in columns]
    forced = [fitting[column] - fitted[column] for column in columns]
    width = max(columns[_NARROWEST:], key=lambda column: forced[column] - 2 * overrun[column])
    loose = fitting[width] - fitted[width - _SLACK]
    is_enough = loose >= max(_EXPLAINED * len(breaks), 4)
    return width if is_enough else 0


def _labels(lines: list[str]) -> frozenset[str]:
    """What begins the speeches of a play, such as `HAMLET.` and `[Nurse:]`; empty for other texts."""
    begins, others, total = Counter(), Counter(), 0
    before = ""
    for line in lines:
        line = line.strip()
        if line:
            total += 1
            first = line[1:2] if line[0] == "[" else line[0]
            if first.isupper() and (match := _LABEL.match(line)):
                is_begin = not before or before[-1] in _TERMINAL
                (begins if is_begin else others)[match[0]] += 1
        before = line
    labels = {label for label, count in begins.items() if count > 2 and others[label] * 5 <= count}
    spoken = sum(begins[label] for label in labels)
    if spoken * 50 <= total:  # a novel has lines that begin with "No." and "Yes." as well, but few
        return frozenset()
    shapes = Counter()
    for label in labels:
        shapes[_shape(label)] += begins[label]
    shape, count = shapes.most_common(1)[0]
    is_clear = shape != _SENTENCE and 2 * count > spoken
    return frozenset(labels | {label for label in begins if is_clear and _shape(label) == shape})


def _shape(label: str) -> tuple[bool, bool, str]:
    """How a play writes its speakers' names."""
    return label[0] == "[", label.isupper(), label[-1]


def _joined_of(lines: list[str], block: list[_Break], width: int, labels: frozenset[str]) -> list[_Break]:
    """The breaks of a block that the width forced."""
    base = min(_indentation(lines[line]) for line in range(block[0].line, block[-1].line + 2))
    open_breaks = [found for found in block if not _is_meant(lines, found.line, base, labels)]
    if not open_breaks:
        return []
    small = sum(found.is_small for found in open_breaks)
    if base and not small:  # a quotation of long verses
        return []
    overrun = sum(found.length > width for found in open_breaks)
    width = _own_width(open_breaks, small) or (0 if overrun * 10 > len(open_breaks) else width)
    if not width:
        return []
    forced = [found for found in open_breaks if found.needed > width - _SLACK]
    if len(forced) == len(open_breaks):
        return forced
    # text corrected by hand is filled unevenly: its sentences go on, in lines that are long all the same
    mean = sum(found.length for found in open_breaks) / len(open_breaks)
    if small < 0.4 * len(open_breaks) or mean < 0.8 * width:
        return []
    going_on = {found for found in open_breaks if _goes_on(found, width)}.union(forced)
    return [found for found in open_breaks if found in going_on]


def _goes_on(found: _Break, width: int) -> bool:
    if found.is_pointed:
        return found.is_small and found.length >= 0.8 * width
    return found.length >= (0.6 if found.is_small else 0.85) * width


def _own_width(breaks: list[_Break], small: int) -> int:
    """The width of a block that is filled to another one than what is around, such as a quotation; 0 if it is not."""
    longest = max(found.length for found in breaks)
    is_filled = longest < min(found.needed for found in breaks)
    return longest if is_filled and len(breaks) >= 3 and 2 * small >= len(breaks) and longest >= _NARROWEST else 0


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_meant(lines: list[str], i: int, base: int, labels: frozenset[str]) -> bool:
    """Whether somebody meant the break after line `i`, by what the two lines are."""
    before, after = lines[i].rstrip(), lines[i + 1].rstrip()
    indentation = _indentation(before)
    if _indentation(after) != base or indentation > base + 8:
        return True
    before, after = before[indentation:], after[base:]
    if _is_row(before) or _is_row(after) or (before.isupper() and after.isupper()):
        return True
    if before[0] == after[0] and before[0] in _PREFIXES:
        return True
    if before[-1] not in _TERMINAL:
        return False
    if after[0] in "-—–―" and _TALK.match(after):
        return True
    if before.endswith(_QUOTES_CLOSED) and after.startswith(_QUOTES_OPEN):
        return True
    if labels and (match := _LABEL.match(after)) and match[0] in labels:
        return True
    return _ITEM.match(after) is not None


def _is_row(line: str) -> bool:
    """Whether a line is one of a table or of a list with leaders, or a rule."""
    line = line.split("   [")[0].rstrip()  # a direction of a play, such as "[Exit.", stands apart at a speech's end
    if "   " in line or "\t" in line or "|" in line or "....." in line or ". . . ." in line:
        return True
    # points may stand alone in French, which writes blanks before them
    return not (line[0].isalnum() or any(map(str.isalnum, line)) or (len(line) < 5 and _SPACED & set(line)))


class _Words:
    """How the book writes words elsewhere: only a book with hyphens at its line ends is asked."""

    def __init__(self, text: str) -> None:
        self._text = text

    @cached_property
    def _words(self) -> Counter[str]:
        return Counter(re.findall(r"[^\W\d_]+", self._text.lower()))

    @cached_property
    def _hyphenated(self) -> Counter[str]:
        return Counter(re.findall(r"(?<![^\W\d_])(?=([^\W\d_]+-[^\W\d_]+))", self._text.lower()))

    def is_one(self, first: str, second: str) -> bool:
        """Whether the parts of a word that a hyphen breaks are known as one word without it."""
        first, second = first.lower(), second.lower()
        return self._words[first + second] > self._hyphenated[f"{first}-{second}"]


def _edit(text: Text, i: int, words: _Words) -> Edit:
    """Joins the lines `i` and `i + 1`."""
    before, after = text.lines[i].rstrip(), text.lines[i + 1].lstrip()
    begin = text.starts[i] + len(before)
    end = text.starts[i + 2] - 1 - len(after)
    if before[-1].isascii() and before[-1] != "-" and after[0] not in "-—":
        return Edit(begin, end, JOINED, " ")
    if before[-1] == "\xad":
        return Edit(begin - 1, end, SYLLABLE)
    if before.endswith(_DASHES) and not before.endswith((" --", " —")):
        return Edit(begin, end, JOINED)
    if after.startswith(_DASHES) and not after.startswith(("-- ", "— ")):
        return Edit(begin, end, JOINED, "" if before[-1] not in _TERMINAL else " ")
    parts = re.search(r"([^\W\d_]+)-$", before[-40:]), re.match(r"[^\W\d_]+", after)
    if parts[0] and parts[1]:
        if parts[1][0].islower() and words.is_one(parts[0][1], parts[1][0]):
            return Edit(begin - 1, end, SYLLABLE)
        return Edit(begin, end, JOINED, " " if after[:4].split(" ")[0] in _SUSPENDED else "")
    if before[-1] == "-" and before[-2:-1].isalnum() and after[0].isalnum():
        return Edit(begin, end, JOINED)
    is_unspaced = _IDEOGRAPHS.match(before[-1]) and _IDEOGRAPHS.match(after[0])
    return Edit(begin, end, JOINED, "" if is_unspaced else " ")
