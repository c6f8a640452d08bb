"""Text in the cells of a terminal: how wide it is, and where a row ends."""

import unicodedata


def cells(character: str) -> int:
    """How many cells a character takes: 2 for CJK and emoji, 0 for what is joined to the one before it."""
    is_joined = unicodedata.category(character) in ("Mn", "Me", "Cf")
    if is_joined or "\u1160" <= character <= "\u11ff":  # the second and third letter of a Korean syllable
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def width_of(text: str) -> int:
    return sum(map(cells, text))


def next_row(text: str, width: int, is_whole: bool) -> tuple[str, str] | None:
    """The first row of a text and what follows it; None where more of the text has to come before it is decided.

    A row ends at a line's end, else at the last space that lets it fit, else within a word.
    """
    taken, space = 0, -1
    for at, character in enumerate(text):
        if character == "\n":
            return text[:at], text[at + 1 :]
        if character == " ":
            space = at
        taken += cells(character)
        if taken > width and at:
            end = space if space > 0 else at
            return text[:end], text[end:].removeprefix(" ")
    return (text, "") if text and is_whole else None
