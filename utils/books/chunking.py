"""Cuts a book's text into chunks of about one size, between paragraphs where sizes allow, and loses nothing.

1. Borders: all ends of paragraphs; in a long paragraph the ends of sentences, in a sentence longer than a chunk those
   of lines and words, in a word longer than a chunk any place. What follows a border begins with a letter or with the
   line's indentation: white space stays with the text before it, so that the chunks joined are the text.
2. Of all ways to cut at borders the one of least cost, by a dynamic programme whose time is linear in the text. In this
   order of weight: no chunk is longer than 1.3 × target or shorter than the minimum, few cuts are within paragraphs,
   lengths are near the target. So a rest at the end is shared with the chunks before it instead of left as a stub.
"""

import re
from collections.abc import Iterator
from enum import IntEnum
from functools import cache
from typing import NamedTuple

import numpy as np

from utils.books.sentences import sentence_ends

PARAGRAPH_END = re.compile(r"(?:\r\n?|\n)(?:[^\S\r\n]*(?:\r\n?|\n))+")
_WORD_END = re.compile(r"\s+")
_HEADING = re.compile(r"\s*(?:[^a-z]*|[^.!?…:;,—\"”’»]*\w|(?i:chapter|book|part|act|scene|kapitel|chapitre)\b.*)\s*")
"""A paragraph without small letters, one that ends with a letter or digit, or one that names itself a chapter."""
LONGEST_HEADING = 80


class Border(IntEnum):
    """What ends at a border; the value is the cost of a cut there. A deviation from the target costs up to 1,000."""

    PARAGRAPH = 0
    HEADING = 2_000
    SENTENCE_AND_LINE = 4_000
    SENTENCE = 5_000
    LINE = 10_000
    WORD = 15_000
    LETTER = 30_000

    @property
    def description(self) -> str:
        return f"after a {self.name.lower().partition('_')[0]}"


TOO_SHORT = 1_000_000
"""Cost of each twentieth of the minimum that a chunk lacks, squared: two chunks lack half each, not one of them all."""
TOO_LONG = 1_000_000_000
CELLS = 128
"""Parts of the target's length in which no more than one border is looked at: it bounds the time of dense borders."""


class Chunk(NamedTuple):
    text: str
    """With the white space that follows it in the book."""
    end: Border
    """What it ends with."""


class Sizes(NamedTuple):
    """Characters of chunks."""

    target: int
    least: int

    @property
    def most(self) -> int:
        return self.target * 13 // 10


def cut(text: str, sizes: Sizes, language: str = "en") -> list[Chunk]:
    """The chunks of a book, which joined are its text; none of a text without letters."""
    if not text or text.isspace():
        return []
    borders = _thinned(list(_borders(text, sizes, language)), max(1, sizes.target // CELLS))
    places = np.array([0, *(place for place, _ in borders)])
    kinds = [border for _, border in borders]
    chosen = _cheapest(places, np.array([0, *kinds]), sizes)
    begins = [0, *(int(places[number]) for number in chosen[:-1])]
    return [
        Chunk(text[begin : places[number]], kinds[number - 1]) for begin, number in zip(begins, chosen, strict=True)
    ]


def _borders(text: str, sizes: Sizes, language: str) -> Iterator[tuple[int, Border]]:
    """Places in order where a chunk may end, the text's end last; between two of them is more than white space."""
    begin = 0
    last = len(text.rstrip())
    # Paragraphs of half of what lengths may vary by let chunks of a good length end between them.
    long = max(1, (sizes.most - sizes.least) // 2)
    for match in PARAGRAPH_END.finditer(text):
        end = match.end()
        if end >= last:
            break
        if text[begin:end].isspace():
            continue
        if end - begin > long:
            yield from _within_paragraph(text, begin, match.start(), sizes, language)
        is_heading = end - begin <= LONGEST_HEADING and _HEADING.fullmatch(text, begin, end)
        yield end, Border.HEADING if is_heading else Border.PARAGRAPH
        begin = end
    if last - begin > long:
        yield from _within_paragraph(text, begin, last, sizes, language)
    yield len(text), Border.PARAGRAPH


def _within_paragraph(text: str, begin: int, end: int, sizes: Sizes, language: str) -> Iterator[tuple[int, Border]]:
    """Borders in the paragraph [begin, end), without its end."""
    sentence = begin
    for length in [*sentence_ends(text[begin:end], language), end - begin]:
        place = begin + length
        if text[sentence:place].isspace():
            continue
        if place - sentence > sizes.target:
            yield from _within_sentence(text, sentence, place, sizes)
        if place < end:
            yield place, Border.SENTENCE_AND_LINE if _ends_line(text, place) else Border.SENTENCE
        sentence = place


def _ends_line(text: str, place: int) -> bool:
    """Whether the white space before a place has a line's end."""
    while place and text[place - 1].isspace():
        place -= 1
        if text[place] in "\r\n":
            return True
    return False


def _within_sentence(text: str, begin: int, end: int, sizes: Sizes) -> Iterator[tuple[int, Border]]:
    """Borders in the sentence [begin, end), without its end."""
    word = begin
    places = [match.end() for match in _WORD_END.finditer(text, begin, end)]
    for place in [*(place for place in places if place < end), end]:
        if text[word:place].isspace():
            continue
        if place - word > sizes.target:
            step = max(1, sizes.target // CELLS)
            first = place - len(text[word:place].lstrip())
            past = word + len(text[word:place].rstrip())
            yield from ((letter, Border.LETTER) for letter in range(first + step, past, step))
        if place < end:
            yield place, Border.LINE if _ends_line(text, place) else Border.WORD
        word = place


def _thinned(borders: list[tuple[int, Border]], cell: int) -> list[tuple[int, Border]]:
    """The best border of each `cell` characters, and the text's end."""
    kept: list[tuple[int, Border]] = []
    for place, border in borders[:-1]:
        if kept and place // cell == kept[-1][0] // cell:
            if border <= kept[-1][1]:
                kept[-1] = place, border
        else:
            kept.append((place, border))
    return [*kept, borders[-1]]


def _cheapest(places: np.ndarray, costs: np.ndarray, sizes: Sizes) -> list[int]:
    """Numbers of the borders to cut at, the last one included. Border number 0 is the text's begin."""
    of_length = _costs_of_lengths(sizes)
    totals = np.zeros(len(places), np.int64)
    before = [0] * len(places)
    most = sizes.most
    firsts = np.searchsorted(places, places - most)
    for number in range(1, len(places)):
        first = min(int(firsts[number]), number - 1)
        lengths = np.minimum(places[number] - places[first:number], most + 1)
        candidates = totals[first:number] + of_length[lengths]
        best = int(candidates.argmin())
        totals[number] = candidates[best] + costs[number]
        before[number] = first + best
    chosen = [len(places) - 1]
    while before[chosen[-1]]:
        chosen.append(before[chosen[-1]])
    return chosen[::-1]


@cache
def _costs_of_lengths(sizes: Sizes) -> np.ndarray:
    """The cost of a chunk by its length; the last one is that of all longer chunks."""
    lengths = np.arange(sizes.most + 2)
    deviations = 1000 * (lengths - sizes.target) ** 2 // sizes.target**2
    lacking = np.maximum(sizes.least - lengths, 0)
    steps = -(-20 * lacking // sizes.least)
    costs = deviations + TOO_SHORT * steps**2
    costs[-1] = TOO_LONG
    return costs
