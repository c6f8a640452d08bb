"""What is changed in a book's text: passages that are taken out or replaced, each with its reason.

Finders look at a `Text` and return `Edit`s in places of that text; `applied` makes the new text of them. So nothing is
ever changed that is not also reported: characters in = characters kept + characters of edits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple


class Edit(NamedTuple):
    """The characters [begin, end) of a text become `replacement`."""

    begin: int
    end: int
    reason: str
    replacement: str = ""


class Doubt(NamedTuple):
    """The characters [begin, end) are left as they are, for a human's look."""

    begin: int
    end: int
    reason: str


Found = tuple[list[Edit], list[Doubt]]
"""What a finder returns: both in order, the edits apart from each other."""


class Text:
    """A book's text with `\\n` at the ends of its lines, and its lines."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = text.split("\n")
        self.starts = [0, *accumulate(len(line) + 1 for line in self.lines)]
        """Place of each line's first character; one more than there are lines, which is past the text's end."""

    def line_at(self, place: int) -> int:
        """Number, from 0, of the line that a character is in."""
        return bisect_right(self.starts, place) - 1

    def taken_out(self, first: int, past: int, reason: str) -> Edit:
        """Takes out the lines [first, past), with their ends."""
        return Edit(self.starts[first], min(self.starts[past], len(self.text)), reason)

    def doubtful(self, first: int, past: int, reason: str) -> Doubt:
        """Leaves the lines [first, past), or those of them that there are."""
        return Doubt(self.starts[first], min(self.starts[min(past, len(self.lines))], len(self.text)), reason)


def applied(text: str, edits: Sequence[Edit]) -> str:
    """The text after `edits`, which are in order and do not overlap."""
    parts, place = [], 0
    for edit in edits:
        assert place <= edit.begin <= edit.end <= len(text), (place, edit)
        parts += [text[place : edit.begin], edit.replacement]
        place = edit.end
    return "".join([*parts, text[place:]])
