"""Text of unknown encoding: what it is found to be, in short and long texts, and what is said of doubtful ones."""

from __future__ import annotations

import codecs

import pytest

from lit_gpt.errors import DataError
from utils.files.text_encoding import decode

GERMAN = "Heiße Magister, heiße Doktor gar, und führe schon an die zehen Jahr »herauf, herab« meine Schüler herum.\n"
FRENCH = "Où est passé l’été ? Là-bas, peut-être ; ça dépend de l’année, des élèves et de leur mère, Hélène.\n"
ENGLISH = "“Don’t go there,” said the fiancée of the naïve curé — and they went to the café all the same, for £5.\n"
SPANISH = "¿Cuántos años tenía el corazón del niño? No quería acordarse; comió salpicón, después, y durmió mucho más.\n"
SWEDISH = "Så gick han in i rummet där fönstret stod öppet, och där låg en gammal påfågel från Åbo, ännu ej död.\n"
POLISH = (
    "Litwo! Ojczyzno moja! ty jesteś jak zdrowie. Ile cię trzeba cenić, ten tylko się dowie, kto cię stracił. Żółw.\n"
)
CZECH = "Příliš žluťoučký kůň úpěl ďábelské ódy. Byl pozdní večer, první máj, byl lásky čas, zval ku lásce hlas.\n"
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. Ёлка стоит.\n"
GREEK = "Σε γνωρίζω από την κόψη του σπαθιού την τρομερή, σε γνωρίζω από την όψη που με βία μετράει τη γη.\n"
TURKISH = "Korkma, sönmez bu şafaklarda yüzen al sancak; sönmeden yurdumun üstünde tüten en son ocak. Çığlık, İzmir.\n"
JAPANESE = (
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。ニャーニャー泣いていた事だけは記憶している。\n"
)
CHINESE = "道可道，非常道。名可名，非常名。无名天地之始；有名万物之母。故常无，欲以观其妙；常有，欲以观其徼。\n"

CASES = [
    (GERMAN, ["cp1252", "latin-1", "mac_roman", "cp850"]),
    (FRENCH, ["cp1252", "latin-1", "mac_roman", "cp850"]),
    (ENGLISH, ["cp1252", "mac_roman"]),
    (SPANISH, ["cp1252", "mac_roman", "cp850"]),
    (SWEDISH, ["latin-1", "mac_roman"]),
    (POLISH, ["cp1250", "iso8859_2"]),
    (CZECH, ["cp1250", "iso8859_2"]),
    (RUSSIAN, ["cp1251", "koi8_r", "cp866", "iso8859_5", "mac_cyrillic"]),
    (GREEK, ["cp1253", "iso8859_7"]),
    (TURKISH, ["cp1254"]),
    (JAPANESE, ["shift_jis", "euc_jp"]),
    (CHINESE, ["gb18030"]),
]


@pytest.mark.parametrize(("text", "encoding"), [(text, encoding) for text, all_of in CASES for encoding in all_of])
def test_text_of_each_encoding_is_read_as_it_was_written(text: str, encoding: str) -> None:
    for times in (2, 40, 3000):
        data = (text * times).encode(encoding, "replace")
        found = decode(data)
        assert found.text == data.decode(encoding), (times, found[1:])
        assert data.decode(found.encoding) == found.text  # the name is one that Python knows


@pytest.mark.parametrize("encoding", ["cp1252", "mac_roman"])
@pytest.mark.parametrize("text", ["GRÖSSE ÜBER ALLES", "SCÈNE PREMIÈRE. HARPAGON, VALÈRE, ÉLISE"])
def test_text_of_capitals_is_read_as_it_was_written(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding)).text == text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_unicode_is_known_by_its_marks_its_nuls_or_its_validity(encoding: str) -> None:
    found = decode((ENGLISH + FRENCH).encode(encoding), declared="iso-8859-1")
    assert found.text == ENGLISH + FRENCH
    assert not found.doubt


def test_a_declaration_counts_where_it_can_be_true() -> None:
    few = "The Café".encode("latin-1")
    for name in ("ISO Latin-1", "ISO-LATIN-1", "latin1"):
        assert decode(few, name)[:2] == ("The Café", "iso-8859-1")
    assert decode("Œ".encode("iso8859_15"), "iso-8859-15").text == "Œ"
    # Latin-1 has control characters where Windows-1252 has quotes
    quotes = decode(ENGLISH.encode("cp1252"), "ISO-8859-1")
    assert (quotes.text, quotes.encoding, quotes.doubt) == (ENGLISH, "windows-1252", "")
    wrong = decode(FRENCH.encode("cp1252"), "UTF-8")
    assert (wrong.text, wrong.doubt) == (FRENCH, "declared as UTF-8, which it is not")
    assert decode(FRENCH.encode("cp1252"), "ISO-646-US (US-ASCII)").text == FRENCH


def test_a_declaration_that_the_letters_contradict_is_doubted_and_not_followed() -> None:
    for encoding in ("koi8-r", "windows-1251", "iso-8859-5"):
        found = decode(RUSSIAN.encode(encoding), "iso-8859-1")
        assert (found.text, found.encoding) == (RUSSIAN, encoding)
        assert found.doubt == "declared as iso-8859-1, which it is not"
    turned = decode(RUSSIAN.encode("windows-1251"), "koi8-r")
    assert (turned.text, turned.doubt) == (RUSSIAN, "declared as koi8-r, which it is not")


@pytest.mark.parametrize("name", ["undefined", "unicode_escape", "rot13", "punycode", "base64", "idna", "no such", ""])
def test_what_is_no_encoding_of_texts_cannot_be_declared(name: str) -> None:
    assert decode(FRENCH.encode("cp1252"), name).text == FRENCH


def test_doubts_are_named() -> None:
    mixed = decode((FRENCH * 20).encode() + "café “a”\n".encode("cp1252"))
    assert mixed.text == FRENCH * 20 + "café “a”\n"
    assert mixed.doubt == "3 bytes are not UTF-8 and were read as Windows-1252, the first in line 21"
    twice = FRENCH.encode().decode("cp1252", "replace").encode()
    assert "look encoded twice" in decode(twice).doubt
    assert decode("lost: \ufffd".encode()).doubt == "1 characters were lost before (U+FFFD)"
    short = decode("dziś ćma".encode("cp1250"))  # could be French as well
    assert short.doubt.endswith("fits as well")


def test_what_is_not_text_is_refused_by_its_name() -> None:
    with pytest.raises(DataError, match=r"a\.txt is not text: byte 4 is NUL"):
        decode(b"\x89PNG\0\0\0abc", name="a.txt")
    with pytest.raises(DataError, match=r"a\.txt is not text: 50 of its 100 bytes are control characters"):
        decode(b"\x01a" * 50, name="a.txt")
    assert decode(b"The end.\r\n\x1a").text == "The end.\r\n\x1a"  # the end of a file of DOS
    assert decode(b"").text == ""
    with pytest.raises(DataError, match=r"a\.txt is not utf-8: line 2, byte 2 has e9 74 e9 \(invalid continuation"):
        decode(codecs.BOM_UTF8 + b"a\n\xe9t\xe9", name="a.txt")
