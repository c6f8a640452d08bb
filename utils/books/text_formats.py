"""Which of the files that a book is offered in is its text, and the text in it."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

from lit_gpt.errors import DataError
from utils.books.header_fields import declared_encoding
from utils.files.text_encoding import Decoded, decode

SCRIPTS = {
    **dict.fromkeys(("be", "bg", "mk", "ru", "uk"), "CYRILLIC"),
    **{"el": "GREEK", "he": "HEBREW", "ar": "ARABIC", "fa": "ARABIC", "zh": "CJK", "ko": "HANGUL", "ja": "HIRAGANA"},
}
"""Languages that are written in letters which no encoding of Western Europe has."""
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html)\b", re.IGNORECASE)


class TextFormat(NamedTuple):
    address: str
    charset: str
    """The charset that the catalogue names, in small letters; empty where it names none."""


def text_formats(formats: dict[str, str]) -> list[TextFormat]:
    """The plain texts among a book's formats, UTF-8 first, then other charsets, ASCII last."""
    texts = []
    for media_type, address in formats.items():
        kind, _, rest = media_type.partition(";")
        if kind.strip().lower() != "text/plain":
            continue
        name = _file_name(address)
        if name.endswith((".zip", ".gz")) or "readme" in name:  # a readme stands beside recordings and pictures
            continue
        charset = rest.strip().lower().removeprefix("charset=").strip('"')
        texts.append((_rank(charset, name), media_type, TextFormat(address, charset)))
    return [text for _, _, text in sorted(texts)]


def _file_name(address: str) -> str:
    try:
        return PurePosixPath(urlsplit(address).path).name.lower()
    except ValueError:
        return ""


def _rank(charset: str, name: str) -> int:
    """The smaller, the better: ASCII has lost a book's accents. us-ascii is also said of addresses that give UTF-8."""
    if charset in ("utf-8", "utf8") or name.endswith((".txt.utf-8", "-0.txt")):
        return 0
    if charset in ("us-ascii", "ascii"):
        return 3
    return 1 if charset else 2


def book_text(data: bytes, charset: str, languages: list[str], name: str) -> Decoded:
    """The text in a file of the catalogue, without a byte order mark.

    What the file and the catalogue say of its encoding gives way where the bytes speak clearly for another, or where
    it would have none of the letters of the book's language.

    Raises:
        DataError: for what is no text, or a page of the web.
    """
    if _PAGE.match(data):
        raise DataError(f"{name} is a page of the web")
    decoded = decode(data, declared_encoding(data) or charset, name)
    missing = _lacks_letters(decoded.text, languages)
    if decoded.doubt or missing:
        by_bytes = decode(data, None, name)
        is_better = not _lacks_letters(by_bytes.text, languages) if missing else not by_bytes.doubt
        decoded = by_bytes if is_better else decoded
    if not decoded.text.strip():
        raise DataError(f"{name} is empty")
    return decoded


def _lacks_letters(text: str, languages: list[str]) -> bool:
    """Whether a text in one language, of a script of its own, has letters beyond ASCII, and none of that script."""
    script = SCRIPTS.get(languages[0]) if len(languages) == 1 else None
    letters = {character for character in text if character > "\x7f" and character.isalpha()} if script else set()
    return bool(letters) and not any(unicodedata.name(letter, "").startswith(script or "") for letter in letters)
