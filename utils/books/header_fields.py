"""The table of a header: title, author, language, encoding and number, as books.csv has them."""

from __future__ import annotations

import re
from typing import NamedTuple

_FIELD = re.compile(r"\W{0,3}([A-Za-z][A-Za-z ]{2,40}?)\s*:\s*(.*)")
_NAMED = re.compile(
    r"\W*(?:The\s+|This\s+is\s+the\s+)?Project\s+Gutenberg(?:['’]s)?\s+(?:E-?(?:book|text)\s+(?:of\s+|,\s*))?"
    r"(?P<title>.{2,300}?)[,\s]+by\s+(?P<author>[^*]{2,120}?)\W*$",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\[?\s*e-?(?:book|text)\s*(?:no\.?:?)?\s*#\s*(\d{1,8})", re.IGNORECASE)
_ENCODING = re.compile(rb"(?:character set encoding|character set):\s*([A-Za-z0-9_ .()-]{2,40})", re.IGNORECASE)
_HEAD_BYTES = 20_000
LANGUAGES = {
    "english": "en",
    "french": "fr",
    "german": "de",
    "italian": "it",
    "spanish": "es",
    "portuguese": "pt",
    "dutch": "nl",
    "finnish": "fi",
    "swedish": "sv",
    "danish": "da",
    "norwegian": "no",
    "russian": "ru",
    "latin": "la",
    "greek": "el",
    "chinese": "zh",
    "japanese": "ja",
    "hungarian": "hu",
    "polish": "pl",
    "czech": "cs",
    "esperanto": "eo",
    "catalan": "ca",
    "tagalog": "tl",
    "welsh": "cy",
    "hebrew": "he",
    "bulgarian": "bg",
    "serbian": "sr",
    "afrikaans": "af",
    "irish": "ga",
    "icelandic": "is",
    "friulian": "fur",
    "galician": "gl",
    "romanian": "ro",
    "ukrainian": "uk",
    "turkish": "tr",
    "arabic": "ar",
    "korean": "ko",
}
"""Headers name languages in English; books.csv has their codes of ISO 639."""


class Fields(NamedTuple):
    """What a header says of its book; empty, or None, where it says nothing."""

    title: str = ""
    authors: str = ""
    language: str = ""
    number: int | None = None


def read_fields(header: str) -> Fields:
    """The fields of a header's text, with titles of several lines joined."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in header.split("\n"):
        match = _FIELD.fullmatch(line.strip()) if line[:1].strip() else None
        if match:
            current = found.setdefault(" ".join(match[1].lower().split()), [])
            current.append(match[2].strip())
        elif current and line[:1].isspace() and line.strip():
            current.append(line.strip())
        else:
            current = []
    named = next((match for line in header.split("\n")[:60] if (match := _NAMED.match(line))), None)
    number = _NUMBER.search(header)
    languages = re.split(r"\s*(?:,|;|/|\band\b)\s*", " ".join(found.get("language", [])))
    return Fields(
        " ".join(found.get("title", [])) or (named["title"].strip() if named else ""),
        "; ".join(found.get("author", [])) or (named["author"].strip() if named else ""),
        "; ".join(LANGUAGES.get(name.lower(), name) for name in languages if name),
        int(number[1]) if number else None,
    )


def declared_encoding(data: bytes) -> str | None:
    """The encoding that a header names, in its words; None where it names none."""
    match = _ENCODING.search(data, 0, _HEAD_BYTES)
    return match[1].decode("ascii").strip() if match else None
