"""Hard line breaks: paragraphs wrapped by another program are found again; what is not wrapped keeps its lines."""

from __future__ import annotations

import random
import re
import textwrap

import pytest

from tests.conftest import SHARED
from utils.books.edits import Text, applied
from utils.books.unwrap import LEFT, PARTED, find_line_ends

FRANKENSTEIN = SHARED / "data" / "gutenberg" / "Mary Shelley - Frankenstein.txt"
SPEECHES = SHARED / "data" / "claire" / "FR" / "TheatreMoliere" / "test.txt"

SONNET = """Let me not to the marriage of true minds
Admit impediments. Love is not love
Which alters when it alteration finds,
Or bends with the remover to remove:
O no! it is an ever-fixed mark
That looks on tempests and is never shaken;
It is the star to every wandering bark,
Whose worth's unknown, although his height be taken.
Love's not Time's fool, though rosy lips and cheeks
Within his bending sickle's compass come;
Love alters not with his brief hours and weeks,
But bears it out even to the edge of doom.
    If this be error and upon me prov'd,
    I never writ, nor no man ever lov'd."""
HEXAMETERS = """This is the forest primeval. The murmuring pines and the hemlocks,
Bearded with moss, and in garments green, indistinct in the twilight,
Stand like Druids of eld, with voices sad and prophetic,
Stand like harpers hoar, with beards that rest on their bosoms.
Loud from its rocky caverns, the deep-voiced neighboring ocean
Speaks, and in accents disconsolate answers the wail of the forest."""
MODERN = """the moon is thin
and the street goes down
to where the water keeps its light
and nobody is home"""
PLAIN = """The house stood at the end of the road, where the fields began, and nobody had lived in it for years. \
In the garden the apple trees had grown together, so that one could hardly find the way to the well, and the well \
itself was covered with boards on which somebody had once put a heavy stone.

When they came to it in the evening the light was already going, and they saw the windows only as darker places in \
the wall. "We shall have to wait until tomorrow," he said, but she had gone on without him and was at the door.

It was not locked; it had never been locked, as the old man told them afterwards, because there was nothing inside \
that anybody would have wanted to carry away, and because the people of the village did not like to go there at all.

She called out, once, and listened to how the rooms took up her voice and gave it back a little later and lower."""


def unwrapped(text: str) -> str:
    result = applied(text, find_line_ends(Text(text))[0])
    assert "".join(result.split()) == "".join(text.split()), "more than white space was changed"
    return result


def wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.fill(line, width, break_on_hyphens=False) for line in text.split("\n"))


def stays(passage: str, width: int = 70) -> None:
    """Asserts that a passage keeps its lines between paragraphs that lose theirs, and alone."""
    text = f"{PLAIN}\n\n{passage}\n\n{PLAIN}"
    assert unwrapped(f"{wrapped(PLAIN, width)}\n\n{passage}\n\n{wrapped(PLAIN, width)}") == text
    assert unwrapped(passage) == passage


@pytest.mark.parametrize("width", [40, 65, 68, 72, 75, 80, 100])
def test_prose_is_as_before_it_was_wrapped(width: int) -> None:
    assert unwrapped(wrapped(PLAIN, width)) == PLAIN


@pytest.mark.parametrize("width", [65, 70, 75])
@pytest.mark.shared
def test_long_speeches_are_as_before_they_were_wrapped(width: int) -> None:
    speeches = [re.sub(r"^\[.*?:\] ", "", line) for line in SPEECHES.read_text(encoding="utf-8").split("\n")]
    text = "\n\n".join(speech for speech in speeches if speech)
    assert unwrapped(wrapped(text, width)) == text


@pytest.mark.shared
def test_speeches_without_blank_lines_keep_apart() -> None:
    lines = SPEECHES.read_text(encoding="utf-8").split("\n")[:600]
    text = "\n".join(line for line in lines if 0 < line.find(":]") < 60)
    assert unwrapped(wrapped(text, 70)) == text


@pytest.mark.shared
def test_a_real_book_has_paragraphs() -> None:
    text = FRANKENSTEIN.read_text(encoding="utf-8-sig").replace("\r\n", "\n")
    text = text[text.index("Letter 1\n\n_To Mrs") : text.index("End of the Project")]
    result = unwrapped(text)
    paragraphs = re.split(r"\n\s*\n", text.strip())
    long = [" ".join(paragraph.split()) for paragraph in paragraphs if len(paragraph) > 300]
    lines = {" ".join(line.split()) for line in result.split("\n")}
    left = [paragraph for paragraph in long if paragraph not in lines]
    assert len(long) > 500
    assert len(left) <= 0.04 * len(long), left  # poems, and speeches that begin a line of their own
    # the poem of chapter 10, the date and the signature
    for line in ("  We rest; a dream has power to poison sleep.", "     Haunted him like a passion:  the tall rock,"):
        assert f"\n{line}\n" in result


@pytest.mark.parametrize("verse", [SONNET, HEXAMETERS, MODERN, textwrap.indent(SONNET, "    ")])
def test_verse_keeps_its_lines(verse: str) -> None:
    stays(verse)


@pytest.mark.parametrize(
    "passage",
    [
        "CHAPTER XII\nIN WHICH THE HOUSE IS SOLD, AND WHAT BECAME OF THE PEOPLE\nWHO HAD LIVED IN IT",
        "                                        London, May 3rd, 1812.\nMy dear Sister,",
        "I remain, with the greatest respect,\nyour obedient servant,\n                    JOHN SMITH.",
        "    BRUTUS.  Who's there?\n    CASSIUS.  A friend.\n    BRUTUS.  Come in.",
        "HAMLET.\nWhither wilt thou lead me? Speak; I'll go no further.\nGHOST.\nMark me.\nHAMLET.\nI will.",
        "1. Flour, two pounds, well sifted, and a little salt.\n2. Butter.\n3. Eggs, six of them.",
        "Flour     two pounds     1s. 4d.\nButter    one pound      1s. 2d.\nEggs      half a dozen      6d.",
        "12 + 7 = 19\n19 + 7 = 26\n26 + 7 = 33",
        "Chapter I. The House ........................ 1\nChapter II. The Garden ..................... 22",
        "\n".join(f"{item:<40}{price:>28}" for item in ("Flour, sifted", "butter", "eggs") for price in ("1s.", "2d.")),
        "From: a@example.org\nTo: b@example.org\nSubject: the house at the end of the road\nDate: Mon, 3 May 1999",
        "def area(a, b):\n    if a < 0:\n        return 0\n    return a * b",
        "* * * * *",
        "# a remark in a program that is as long as the page is wide here,\n# all of it, and that goes on here",
        "> They said that nobody had lived in it for many years, and that it is\n> not locked, and never was.",
        "X:1\nT:The House\nM:3/4\nK:G\n|:d2B G2B|d2B G2B|c2A A2A|c2A A2A|d2B G2B|d2B G2B|\n|:d2B G2B|d2B c2A|G6|]",
        "A | B | C\n--+---+--\n1 | 2 | 3",
        "He had carved in the wood of the door:\nJ. S. 1812",
    ],
)
def test_what_is_not_prose_keeps_its_lines(passage: str) -> None:
    stays(passage)


def test_parts_of_two_widths_are_both_joined() -> None:
    text = "\n\n".join([wrapped(PLAIN, 60)] * 20 + [wrapped(PLAIN, 76)] * 20)
    assert unwrapped(text) == "\n\n".join([PLAIN] * 40)


def test_lines_that_are_paragraphs_stay_beside_wrapped_ones() -> None:
    lines = PLAIN.replace("\n\n", "\n")
    assert unwrapped("\n\n".join([wrapped(PLAIN, 70)] * 5 + [lines])) == "\n\n".join([PLAIN] * 5 + [lines])


def test_blank_lines_and_indented_paragraphs_stay() -> None:
    text = PLAIN.replace("\n\n", "\n\n\n\n")
    assert unwrapped(wrapped(text, 70)) == text
    indented = "".join(f"  {paragraph}\n" for paragraph in PLAIN.split("\n\n"))
    assert unwrapped(wrapped(indented, 70)) == indented


def test_paragraphs_that_begin_with_blanks_and_end_with_full_lines_stay_apart() -> None:
    maker = random.Random(1)
    words = PLAIN.split()
    paragraphs = ["  " + " ".join(maker.choices(words, k=maker.randint(20, 90))) for _ in range(300)]
    text = "\n".join(paragraphs)
    assert unwrapped(wrapped(text, 70)) == text


def test_a_speech_ends_with_a_direction() -> None:
    text = PLAIN.replace("and lower.", "and lower.    [Exit.")
    assert unwrapped(wrapped(PLAIN, 70).replace("and lower.", "and lower.    [Exit.")) == text


def test_unwrapped_text_is_unchanged() -> None:
    assert find_line_ends(Text(PLAIN)) == ([], [])
    assert find_line_ends(Text(PLAIN.replace("\n\n", "\n"))) == ([], [])
    assert find_line_ends(Text("")) == ([], [])


def broken_at(text: str, place: str) -> str:
    """The text wrapped to such a width that a line ends within `place`, where it has a blank or hyphen."""
    broken = place.replace(" ", "\n") if " " in place else place.replace("-", "-\n")
    for width in range(35, 100):
        lines = "\n\n".join(textwrap.fill(paragraph, width) for paragraph in text.split("\n\n"))
        if broken in lines:
            return lines
    raise AssertionError(place)


def test_hyphens_at_line_ends() -> None:
    known = PLAIN.replace("because there", "a well-known tale because there")
    assert unwrapped(broken_at(known, "well-known")) == known
    broken = PLAIN.replace("In the garden", "In the gar-den")
    lines = broken_at(broken, "gar-den")
    assert unwrapped(lines) == broken  # no garden elsewhere
    lines += "\n\nThe garden."
    assert applied(lines, find_line_ends(Text(lines))[0]) == f"{PLAIN}\n\nThe garden."
    lines += "\n\nThe gar-den, the gar-den."  # which the book writes oftener
    assert unwrapped(lines).startswith(broken)
    suspended = PLAIN.replace("apple trees", "two- and three-year-old apple trees")
    assert unwrapped(broken_at(suspended, "two- and")) == suspended
    soft = broken_at(broken, "gar-den").replace("gar-\n", "gar\xad\n")
    assert applied(soft, find_line_ends(Text(soft))[0]) == PLAIN


def test_dashes_at_line_ends() -> None:
    tight = PLAIN.replace("without him and was", "without him--and was").replace("years.", "years--many of them.")
    for width in range(60, 80):
        lines = wrapped(tight.replace("--and", "-- and"), width)
        if "him--\nand" in lines:
            assert unwrapped(lines) == tight
    spaced = tight.replace("--", " — ")
    assert unwrapped(wrapped(spaced, 70)) == spaced


def test_books_whose_sentences_are_still_broken_are_for_a_humans_look() -> None:
    maker = random.Random(1)
    ragged = "\n".join(" ".join(maker.choices(PLAIN.split(), k=maker.randint(3, 12))) for _ in range(200))
    edits, doubts = find_line_ends(Text(ragged))
    assert (edits, [doubt.reason for doubt in doubts]) == ([], [LEFT])
    doubled = wrapped(PLAIN, 70).replace("\n", "\n\n") * 5
    edits, doubts = find_line_ends(Text(doubled))
    assert (edits, [doubt.reason for doubt in doubts]) == ([], [PARTED])
    assert find_line_ends(Text(f"{SONNET}\n\n" * 50)) == ([], [])
    assert find_line_ends(Text(wrapped(f"{PLAIN}\n\n" * 50, 70)))[1] == []


def test_lines_of_chinese_are_joined_without_blanks() -> None:
    sentence = "道可道非常道名可名非常名无名天地之始有名万物之母故常无欲以观其妙常有欲以观其徼此两者同出而异名同谓之玄"
    paragraphs = [sentence + sentence[: 7 * i] + "。" for i in range(1, 7)]
    text = "\n\n".join(paragraphs)
    lines = "\n\n".join("\n".join(re.findall(r".{1,30}", paragraph)) for paragraph in paragraphs)
    assert unwrapped(lines) == text
    couplets = "白日依山盡，黃河入海流。\n欲窮千里目，更上一層樓。"
    assert unwrapped(couplets * 20) == couplets * 20


def test_no_letter_is_lost_whatever_the_text() -> None:
    """Random lines of words, blanks, hyphens and marks: only white space changes, or a hyphen that is reported."""
    maker = random.Random(1)
    pieces = [
        "word",
        "a",
        "known",
        "well-",
        "--",
        "—",
        "\xad",
        "  ",
        "    ",
        "\n",
        "\n\n",
        "\t",
        "I.",
        '"',
        "1.",
        "无",
        "é",
    ]
    for _ in range(300):
        text = " ".join(maker.choices(pieces, k=400)) + "\n" + wrapped(" ".join(maker.choices(pieces[:6], k=300)), 60)
        edits = find_line_ends(Text(text))[0]
        for edit in edits:
            assert not text[edit.begin : edit.end].strip(" \n\t-\xad"), text[edit.begin : edit.end]
        kept = "".join(applied(text, edits).split())
        assert kept.replace("-", "").replace("\xad", "") == "".join(text.split()).replace("-", "").replace("\xad", "")


def test_a_quotation_in_shorter_lines_is_as_before_it_was_wrapped() -> None:
    first = PLAIN.split("\n\n")[0]
    around = wrapped("\n\n".join([PLAIN] * 4), 72)
    text = unwrapped(f"{around}\n\n{wrapped(first, 50)}\n\n{around}")
    assert text.split("\n\n").count(first) == 9
