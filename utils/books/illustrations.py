"""Marks of illustrations, `[Illustration: A caption.]`.

A picture's caption goes with its mark: without the picture it is a sentence out of place, often amid another one, and
it stands where the transcriber had room for it. Each is in the report with its text, to be put back by who needs it.
A mark amid a line stays: there a picture stands for a letter or sign, and the sentence needs it.
"""

from __future__ import annotations

import re

from utils.books.edits import Doubt, Edit, Found, Text
from utils.books.gaps import closed

ILLUSTRATION = "illustrations"
UNCLOSED, AMID = "an illustration's mark without an end", "illustrations amid lines"

_BEGIN = re.compile(
    r"\[[_*]?(?:(?:Full[- ]page )?Illustrations?(?=[\]:. _*—-])|(?:Ilustraci[oó]n|Ilustra[cç][aã]o|Illustrazione|"
    r"Illustratie|Abbildung|Bild|Kuva|Kuvitus|Image|Picture|Decoration|Frontispiece|Иллюстрация)(?=[\]:.]))",
    re.IGNORECASE,
)
_LONGEST = 3000
"""Characters of a caption; a bracket that is open longer is one that was forgotten to be closed."""


def find_illustrations(text: Text) -> Found:
    edits: list[Edit] = []
    doubts, amid = [], []
    for match in _BEGIN.finditer(text.text):
        if edits and match.start() < edits[-1].end:
            continue
        end = _closing(text.text, match.start())
        if end < 0:
            doubts.append(Doubt(match.start(), match.end(), UNCLOSED))
            continue
        first, last = text.line_at(match.start()), text.line_at(end - 1)
        around = text.text[text.starts[first] : match.start()] + text.text[end : text.starts[last + 1]]
        if around.strip():
            amid.append(Doubt(match.start(), end, AMID))
            continue
        edit = closed(text, first, last + 1, ILLUSTRATION)
        if edits and edit.begin < edits[-1].end:  # two pictures with blank lines between: both edits would take those
            edit = edit._replace(begin=edits[-1].end, replacement="")
        edits.append(edit)
    return edits, sorted([*doubts, *amid[:1]])


def _closing(text: str, begin: int) -> int:
    """The place past the bracket that closes the one at `begin`; -1 if none does."""
    depth = 0
    for bracket in re.finditer(r"[\[\]]", text[begin : begin + _LONGEST]):
        depth += 1 if bracket[0] == "[" else -1
        if depth == 0:
            return begin + bracket.end()
    return -1
