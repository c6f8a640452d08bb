"""Names that come from a catalogue, made such that they are shown, and name files, on Linux, macOS and Windows."""

import re
import unicodedata
from collections.abc import Sequence

MAX_BYTES = 120
"""UTF-8 bytes of a file's name: file systems take 255, paths of Windows 260 characters in all."""
AUTHOR_BYTES = 40
MOST_LISTED = 5
"""Files' names in a line."""
SEPARATORS = r'[<>:"/\\|?*]'
"""What no file's name has on one of the systems. Names here begin with a number: none is a device's, or hidden."""


def on_one_line(text: str) -> str:
    """The text, composed (NFC), with single spaces, without what a terminal acts on or UTF-8 cannot write.

    What joins letters and keeps them apart stays: some scripts need it.
    """
    text = " ".join(unicodedata.normalize("NFC", re.sub("[\ud800-\udfff]", "", text)).split())
    return "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cf", "Cn") or c in "\u200c\u200d")


def file_name(number: int, authors: list[str], title: str) -> str:
    """`NUMBER - AUTHOR - TITLE.txt` of the first author, without what is not known; unique by its number."""
    author = _part(authors[0], AUTHOR_BYTES) if authors else ""
    taken = sum(len(part.encode()) + len(" - ") for part in (str(number), author) if part)
    parts = [str(number), author, _part(title, MAX_BYTES - len(".txt") - taken)]
    return " - ".join(part for part in parts if part) + ".txt"


def _part(text: str, most_bytes: int) -> str:
    """A part of a file's name, cut between characters, before a letter whose accents would not fit."""
    text = " ".join(re.sub(SEPARATORS, " ", on_one_line(text)).split())
    text = re.sub("[\u200c\u200d]", "", text).strip(" .-")
    cut = text.encode()[:most_bytes].decode(errors="ignore")
    end = len(cut)
    if end < len(text):
        while end and unicodedata.combining(text[end]):
            end -= 1
    return text[:end].strip(" .-")


def printable(name: str) -> str:
    """A file's name on one line."""
    return name if name.isprintable() else repr(name)


def listing(names: Sequence[str]) -> str:
    """The first of several files' names."""
    return ", ".join([*map(printable, names[:MOST_LISTED]), *["…"] * (len(names) > MOST_LISTED)])
