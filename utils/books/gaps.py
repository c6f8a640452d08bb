"""How a text closes where lines of it are taken out: a sentence goes on, a paragraph's end stays one."""

from __future__ import annotations

from utils.books.edits import Edit, Text
from utils.books.paragraphs import begins_at, line_before

_ENDINGS = frozenset(".!?:;…。！？\"”»’')]_*")

_FULL = 40
"""Characters that a line of prose has at least where a page ends after it."""
_DEEP = 12
"""Blanks before a line by which it is one of a table."""


def is_amid_sentence(text: Text, first: int, past: int) -> bool:
    """Whether the lines [first, past) stand amid a sentence: a full line without an end is before them, and a
    small letter after."""
    before, after = line_before(text, first), begins_at(text, past)
    if before < 0 or after == len(text.lines):
        return False
    if len(text.lines[before].strip()) < _FULL or text.lines[before][:_DEEP].isspace():
        return False
    if text.lines[after][:_DEEP].isspace():
        return False
    last, following = text.lines[before].rstrip()[-1], text.lines[after].lstrip("\f _\"'“‘«„")[:1]
    return last not in _ENDINGS and following.islower()


def closed(text: Text, first: int, past: int, reason: str) -> Edit:
    """Takes out the lines [first, past) and the blank lines beside them that are there for them."""
    before, after = line_before(text, first), begins_at(text, past)
    if is_amid_sentence(text, first, past):
        end_before = text.starts[before] + len(text.lines[before].rstrip())
        return Edit(end_before, text.starts[after], reason, "\n")
    fewer, more = sorted((first - before - 1, after - past))
    # a mark has a blank line of its own on either side; the other ones are of a paragraph's or chapter's end
    kept = more - 1 if fewer == 1 and more > 1 else more
    # the blank lines that stay are the first ones before the mark
    begin = min(before + 1 + kept, first)
    end = min(text.starts[after], len(text.text))
    return Edit(text.starts[begin], end, reason, "\n" * (before + 1 + kept - begin))


def removed_inline(text: str, begin: int, end: int, reason: str) -> Edit:
    """Takes out the characters [begin, end) of a line, and one of the blanks on both sides."""
    is_open = begin == 0 or text[begin - 1] in " \n"
    if is_open and text[end : end + 1] == " ":
        return Edit(begin, end + 1, reason)
    if begin and text[begin - 1] == " " and text[end : end + 1] in ("", "\n"):
        return Edit(begin - 1, end, reason)
    return Edit(begin, end, reason)
