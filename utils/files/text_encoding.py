"""Text of unknown encoding: decoded by what its bytes are, with the reason, and with what remains in doubt.

1. A byte order mark says UTF-8, UTF-16 or UTF-32; NULs on every second byte say UTF-16 without one.
2. Bytes that are valid UTF-8 are UTF-8: other encodings' accented letters hardly ever make valid sequences.
3. The declared encoding counts where it decodes to no control characters, and no other reads far better.
4. Else each encoding of `_FAMILIES` is tried: it fits as far as its characters beyond ASCII are letters of one
   language, or punctuation, in places where those stand. charset-normalizer alone reads German in Mac Roman or Spanish
   of 100 characters as Windows-1250, so it decides only what no alphabet explains, such as Chinese and Japanese.
   chardet 7 finds as much as this file, but cannot be installed beside lm-eval, which needs chardet < 7.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from typing import NamedTuple

from charset_normalizer import from_bytes

from lit_gpt.errors import DataError


class Decoded(NamedTuple):
    text: str
    """Without byte order mark, with its line ends as they came."""
    encoding: str
    """A name that Python knows, such as utf-8, iso-8859-1 or windows-1252."""
    reason: str
    """What speaks for the encoding."""
    doubt: str = ""
    """What a human should look at; empty where nothing is doubtful."""


_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_FAMILIES = (
    (
        ("windows-1252", "mac-roman", "iso-8859-15", "cp850"),
        (
            "àâæçéèêëîïôœùûüÿ",  # French
            "äöüßéàëæœçêèïôñ",  # German; English's loans
            "áéíóúñüªº",  # Spanish
            "áâãàçéêíóôõúüªº",  # Portuguese
            "àèéìíîòóùúïç·",  # Italian, Catalan
            "åäöéæøüà",  # Swedish, Danish, Norwegian, Finnish
            "áéíóúýðþæö",  # Icelandic
        ),
    ),
    (
        ("windows-1250", "iso-8859-2"),
        ("ąćęłńóśźż", "áčďéěíňóřšťúůýžäľĺôŕ", "áéíóöőúüű", "čćđšž", "ăâîşţșțŞŢ"),
    ),
    (
        ("windows-1251", "koi8-r", "iso-8859-5", "cp866", "mac-cyrillic", "koi8-u"),
        ("абвгдежзийклмнопрстуфхцчшщъыьэюяё", "абвгґдеєжзиіїйклмнопрстуфхцчшщьюяыэъ", "абвгдђежзијклљмнњопрстћуфхцчџш"),
    ),
    (("windows-1253", "iso-8859-7"), ("αβγδεζηθικλμνξοπρσςτυφχψωάέήίόύώϊϋΐΰ",)),
    (("windows-1254",), ("çğıöşüâîİ",)),
)
"""Encodings in the order in which they are preferred where they fit equally, and the alphabets written in them."""

_OTHERS = ("shift_jis", "euc_jp", "gb18030", "big5", "euc_kr", "cp1255", "cp1256", "cp437", "mac_greek", "mac_latin2")
_OF_TEXTS = re.compile(r"utf-8|ascii|iso8859-\d+|cp\d+|koi8-.|mac-\w+|gb\w+|big5\w*|euc_\w+|shift_jis\w*|tis-620|hz")
"""Python's names of encodings that a file may declare; `undefined` or `unicode_escape` are none of texts."""
_POINTS = frozenset("“”‘’„‚«»‹›—–…¡¿°£§·•½¼¾×÷©®™†‡№€´\xa0\xad")
_INSIDE_WORDS = frozenset("’‘—–·\xa0\xad•…")
_SPOTS = re.compile(rb"[A-Za-z]?[\x80-\xff]+[A-Za-z]?")
_CONTROLS = re.compile("[\x80-\x9f]")
_BINARY = bytes(i for i in range(32) if i not in b"\t\n\v\f\r\x1a\x1b")  # \x1a ended files of CP/M and DOS
_TWICE = re.compile("[ÃÂ][\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|â€[\x80-\xbf™œ˜“”¦]")
_SAMPLE, _PIECES = 1 << 20, 64
_FITS, _CONTRADICTS = 0.9, 0.6
_LEAST_SPOTS = 10  # fewer contradict no declaration
_SEVERAL = 0.93  # a text of one language is likelier than one that quotes several, as English ones do French and German


def decode(data: bytes, declared: str | None = None, name: str = "the data") -> Decoded:
    """Decodes text that says itself, or says wrongly, what its encoding is.

    Raises a DataError that tells `name` and place where the data are not text.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            text = _strictly(data.removeprefix(mark), encoding, name)
            return _with_doubts(text, encoding, "its byte order mark")
    if wide := _wide_encoding(data):
        return _with_doubts(_strictly(data, wide, name), wide, "a NUL in every second byte")
    _refuse_binary(data, name)
    if data.isascii():
        return Decoded(data.decode("ascii"), "utf-8", "it is all ASCII")
    text = _decoded(data, "utf-8")
    if text is not None:
        return _with_doubts(text, "utf-8", "it is valid UTF-8")
    if mended := _almost_utf8(data):
        return mended
    return _of_single_bytes(data, declared)


def _strictly(data: bytes, encoding: str, name: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        found = data[e.start : e.start + 4].hex(" ")
        raise DataError(f"{name} is not {encoding}: line {line}, byte {e.start} has {found} ({e.reason})") from None


def _decoded(data: bytes, encoding: str) -> str | None:
    """The text, or None where the bytes, or the name of their encoding, mean nothing."""
    try:
        return data.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return None


def _wide_encoding(data: bytes) -> str | None:
    """UTF-16 by its NULs, which stand on one side of most characters of languages that use ASCII; else None."""
    head = data[: 1 << 16]
    pairs = len(head) // 2
    if pairs < 2:
        return None
    first, second = head[0 : 2 * pairs : 2].count(0) / pairs, head[1 : 2 * pairs : 2].count(0) / pairs
    if second > 0.4 and first < 0.02:
        return "utf-16-le"
    return "utf-16-be" if first > 0.4 and second < 0.02 else None


def _refuse_binary(data: bytes, name: str) -> None:
    place = data.find(0)
    if place >= 0:
        raise DataError(f"{name} is not text: byte {place} is NUL")
    controls = len(data) - len(data.translate(None, _BINARY))
    if controls > len(data) / 100:
        raise DataError(f"{name} is not text: {controls} of its {len(data)} bytes are control characters")


def _with_doubts(text: str, encoding: str, reason: str) -> Decoded:
    """What a text of the encoding shows of an earlier, wrong conversion."""
    doubts = []
    if lost := text.count("\N{REPLACEMENT CHARACTER}"):
        doubts.append(f"{lost} characters were lost before (U+FFFD)")
    if controls := len(_CONTROLS.findall(text)):
        doubts.append(f"{controls} control characters of U+0080 to U+009F")
    if (twice := len(_TWICE.findall(text))) > 2:
        doubts.append(f"{twice} places look encoded twice, such as {_TWICE.search(text)[0]!r}")
    return Decoded(text, encoding, reason, "; ".join(doubts))


def _almost_utf8(data: bytes) -> Decoded | None:
    """UTF-8 in which single bytes of Windows-1252 lie, as of pages put together; else None."""
    text = data.decode("utf-8", "surrogateescape")
    strays = re.findall("[\udc80-\udcff]+", text)
    stray_bytes = sum(map(len, strays))
    if stray_bytes * 20 > sum(1 for character in text if character > "\x7f"):
        return None
    line = text.count("\n", 0, text.index(strays[0])) + 1

    def windows(match: re.Match[str]) -> str:
        found = match[0].encode("utf-8", "surrogateescape")
        as_windows = _decoded(found, "windows-1252")
        return found.decode("latin-1") if as_windows is None else as_windows

    doubt = f"{stray_bytes} bytes are not UTF-8 and were read as Windows-1252, the first in line {line}"
    text = re.sub("[\udc80-\udcff]+", windows, text)
    return Decoded(text, "utf-8", "nearly all of it is valid UTF-8", doubt)


def _of_single_bytes(data: bytes, declared: str | None) -> Decoded:
    """Text that is neither ASCII nor Unicode."""
    spots = Counter(_SPOTS.findall(_sample(data)))
    if not spots:  # the few accents lie outside of the sample
        spots = Counter(_SPOTS.findall(data))
    ranked = _ranked(spots)
    best, fit = ranked[0] if ranked else ("", 0.0)
    known = _known_name(declared) if declared else ""
    text = _decoded(data, known) if known else None
    if text is not None and not _CONTROLS.search(text):
        is_little = sum(spots.values()) < _LEAST_SPOTS
        if is_little or fit < _FITS or _fit_of(known, spots) >= _CONTRADICTS:
            return Decoded(text, known, "it is declared so")
    # who says Latin-1 or ASCII and writes curly quotes means Windows-1252, as browsers have it
    is_meant = not declared or (best == "windows-1252" and known in ("iso-8859-1", "ascii"))
    doubts = [] if is_meant else [f"declared as {declared}, which it is not"]
    text = _decoded(data, best)
    if fit >= _FITS and text is not None:
        reason = f"{fit:.0%} of its characters beyond ASCII are such as that encoding's languages write"
        if rival := _rival(ranked, spots):
            doubts.append(f"{rival} fits as well")
        return Decoded(text, _by_content(data, best), reason, "; ".join(doubts))
    guess = from_bytes(_sample(data), cp_isolation=[*_OTHERS, *dict(ranked)], preemptive_behaviour=False).best()
    text = _decoded(data, guess.encoding) if guess else None
    if text is not None and guess.encoding in _OTHERS:
        reason = "charset-normalizer finds it the likeliest"
        if sum(spots.values()) < _LEAST_SPOTS:
            doubts.append("guessed from few characters beyond ASCII")
        return Decoded(text, _known_name(guess.encoding), reason, "; ".join(doubts))
    best = best or "latin-1"
    doubts.append(f"no encoding fits well; {best} fits best, by {fit:.0%}")
    return Decoded(data.decode(best), _by_content(data, best), "it fits best", "; ".join(doubts))


def _sample(data: bytes) -> bytes:
    """All of the data, or pieces spread evenly over them, that large files take no longer than others."""
    if len(data) <= _SAMPLE:
        return data
    step, size = len(data) // _PIECES, _SAMPLE // _PIECES
    pieces = [data[i * step : i * step + size] for i in range(_PIECES)]
    # pieces begin and end between lines where there are any, so that no character of two bytes is cut
    whole = (piece[piece.find(b"\n") + 1 : piece.rfind(b"\n") + 1] or piece for piece in pieces)
    return b"".join(whole)


def _ranked(spots: Counter[bytes]) -> list[tuple[str, float]]:
    """Encodings of `_FAMILIES` that can decode the spots, the best first."""
    used = bytes(set(b"".join(spots)))
    fits = []
    for encodings, _ in _FAMILIES:
        for encoding in encodings:
            if _decoded(used, encoding) is not None:
                fits.append((encoding, _fit_of(encoding, spots)))
    return sorted(fits, key=lambda pair: -pair[1])  # stable: the order of `_FAMILIES` decides among equals


def _rival(ranked: list[tuple[str, float]], spots: Counter[bytes]) -> str:
    """The encoding that fits as well as the best one and means other letters, as in short texts; else empty."""
    best, fit = ranked[0]
    text = b"".join(spots).decode(best)
    letters = sum(character.isalpha() for character in text if character > "\x7f")
    if 2 * letters < sum(character > "\x7f" for character in text):
        return ""  # quotes and dashes of Windows-1252 are accented letters of Mac Roman, which stand elsewhere
    for encoding, other in ranked[1:]:
        pairs = zip(text, b"".join(spots).decode(encoding), strict=True)
        if other > fit - 0.01 and any(one != another and one.isalpha() for one, another in pairs):
            return encoding
    return ""


def _fit_of(encoding: str, spots: Counter[bytes]) -> float:
    """The share of characters beyond ASCII that stand where one language has them; the best language's."""
    places = Counter()
    for spot, count in spots.items():
        text = spot.decode(encoding, "replace")
        for i, character in enumerate(text):
            if character > "\x7f":
                places[text[i - 1 : i], character, text[i + 1 : i + 2]] += count
    alphabets = [alphabet for _, languages in _FAMILIES for alphabet in languages]
    own = [languages for encodings, languages in _FAMILIES if encoding in encodings]
    if own:
        alphabets = own[0]
    of_one = max(_share_that_fits(places, frozenset(alphabet)) for alphabet in alphabets)
    if alphabets != _FAMILIES[0][1]:
        return of_one
    return max(of_one, _SEVERAL * _share_that_fits(places, frozenset("".join(alphabets))))


def _share_that_fits(places: Counter[tuple[str, str, str]], alphabet: frozenset[str]) -> float:
    is_latin = min(alphabet) < "Ͱ"
    lower = upper = capitals = points = total = 0
    for (before, character, after), count in places.items():
        total += count
        if character in alphabet or character.lower() in alphabet:  # İ has no lower case of one character
            if not is_latin and (before + after).isascii() and before + after:
                continue  # words of Greek and Cyrillic letters hold no others
            beside = before + after
            if character in alphabet:
                lower += 0 if after.isascii() and after.isupper() else count
            elif beside.isascii() and beside.isupper():
                capitals += count
            elif not before.islower():  # capitals do not follow small letters
                upper += count
        elif character in _POINTS:
            is_inside = before.isalpha() and after.isalpha()
            is_among_capitals = is_inside and (before + after).isupper() and character != "’"
            points += 0 if is_among_capitals or (is_inside and character not in _INSIDE_WORDS) else count
    # capitals beside no others are rare: KOI8-R read as Windows-1251 has all letters' cases turned round
    return (lower + min(upper, lower) + capitals + points) / total if total else 0.0


def _by_content(data: bytes, encoding: str) -> str:
    """Windows-1252 without its own characters is what is known as Latin-1."""
    is_latin = encoding == "windows-1252" and not re.search(rb"[\x80-\x9f]", data)
    return "iso-8859-1" if is_latin else encoding


def _known_name(declared: str) -> str:
    """The name that Python knows in what a file says of itself, such as "ISO Latin-1" or "iso-8859-1 (Latin-1)"."""
    words = re.findall(r"[\w.:-]+", declared)
    for word in ["-".join(words), *words, declared.lower().removeprefix("iso-")]:
        try:
            name = codecs.lookup(word).name
        except LookupError:
            continue
        if _OF_TEXTS.fullmatch(name):
            return name.replace("iso8859", "iso-8859").replace("cp125", "windows-125")
    return ""
