"""The paragraphs of a plain text: runs of lines that are not blank."""

from __future__ import annotations

from collections.abc import Iterator

from utils.books.edits import Text


class Paragraph:
    """The lines [first, past) of a text; none is blank, and a blank line or the text's end stands on both sides."""

    def __init__(self, text: Text, first: int, past: int) -> None:
        self.first, self.past = first, past
        self.lines = text.lines[first:past]

    @property
    def joined(self) -> str:
        """The paragraph as one line: phrases are found wherever lines are broken."""
        return " ".join(" ".join(self.lines).split())


def paragraphs_from(text: Text, line: int) -> Iterator[Paragraph]:
    """The paragraphs from a line on, one by one; the first is cut off at that line."""
    lines, count = text.lines, len(text.lines)
    while (first := begins_at(text, line)) < count:
        line = first
        while line < count and lines[line].strip():
            line += 1
        yield Paragraph(text, first, line)


def begins_at(text: Text, line: int) -> int:
    """The first line that is not blank, from `line` on; the number of lines where there is none."""
    while line < len(text.lines) and not text.lines[line].strip():
        line += 1
    return line


def line_before(text: Text, line: int) -> int:
    """The last line before `line` that is not blank; -1 where there is none."""
    line -= 1
    while line >= 0 and not text.lines[line].strip():
        line -= 1
    return line
