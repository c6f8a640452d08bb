"""Marks of italics, of bold type and of illustrations go, and what looks like them stays."""

from __future__ import annotations

import random

import pytest

from tests.books.test_unwrap import PLAIN
from utils.books.edits import Text, applied
from utils.books.illustrations import AMID, UNCLOSED, find_illustrations
from utils.books.typography_marks import AMBIGUOUS, find_control_characters, find_typography_marks

LONG = "\n\n".join([PLAIN] * 5)


def cleaned(text: str) -> str:
    return applied(text, find_typography_marks(Text(text))[0])


@pytest.mark.parametrize(("begin", "end"), ["__", "==", "++", "~~", "$$", "##", ("<i>", "</i>"), ("<b>", "</b>")])
def test_marks_put_about_words_go_again(begin: str, end: str) -> None:
    maker = random.Random(1)
    words = LONG.split(" ")
    for _ in range(60):
        i = maker.randrange(len(words) - 3)
        if "\n" not in "".join(words[i : i + 3]) and not any(begin in word for word in words[max(i - 3, 0) : i + 6]):
            words[i], words[i + 2] = begin + words[i], words[i + 2] + end
    text = " ".join(words)
    assert text.count(begin) >= 20
    assert cleaned(text) == LONG
    assert cleaned(cleaned(text)) == LONG


def test_italics_stand_beside_points_and_across_lines_and_in_words() -> None:
    text = "“_Ah!_” he said, “_très_-bien--_so_, in _The\nTimes_; _c'est\n\nla vie_.” (_Exit._) _A_'s, _l_’_on_. "
    plain = text.replace("_", "")
    assert cleaned(text) == plain
    parts = "I _dis_like other_wise_ the _ho-_tel."
    assert cleaned(text * 5 + parts) == plain * 5 + parts.replace("_", "")
    assert cleaned(parts) == parts  # in a book without italics it would be a guess


@pytest.mark.parametrize(
    "text",
    [
        "The function is_blank_line(a_line) of my_file_name.txt calls _is_row_ and _private.",
        "Fill in: ____ and __ of ___________, Mr. _____, and the year 18__.",
        "Monsieur_de_la_Vallée et Madame_la_Comtesse",
        "H_2 O and x_1 + y_1 = z_1; a_ and _b",
        'a = b = c; x=y=z; ?a=1&b=2; class="x" id="y"; if (a == b == c) return',
        "The rule =if= a=1 b=2 c=3 d=4 or =else= a=5",
        "1 + 2 + 3 + 4; a+b+c; C++, A+ and B+; +49 89 1234 + 5",
        "He paid $5 and then $6, not $ 7 or US$8 for $9$ and $x^2$ or $\\alpha$.",
        "about ~5 and ~6 of ~/files/~user, ~",
        "#1, #2 and #3; C# and F#; # a remark #",
        "a < b > c, <i> alone, <html><i>a</i></html>",
        "* * * * *\n\n*See note. word* other* **bold** *",
        "-- and --- and --so--",
    ],
)
def test_what_is_no_typography_stays(text: str) -> None:
    for several in (text, f"{text}\n\n" * 8, f"{LONG}\n\n{text}"):
        assert cleaned(several) == several


def test_a_text_about_programs_is_for_a_humans_look() -> None:
    text = "Call make_it_so and do_it with _name_; then a_b, c_d, e_f.\n"
    edits, doubts = find_typography_marks(Text(text))
    assert (edits, [doubt.reason for doubt in doubts]) == ([], [AMBIGUOUS])


def test_illustrations_go_with_their_captions() -> None:
    paragraphs = PLAIN.split("\n\n")
    marks = [
        "[Illustration]",
        "[Illustration: The house\nat the end [sic] of the road.\n\nFrom a drawing.]",
        "[Abbildung: Das Haus.]",
    ]
    text = "\n\n".join([paragraphs[0], marks[0], paragraphs[1], marks[1], marks[2], paragraphs[2], paragraphs[3]])
    edits, doubts = find_illustrations(Text(text))
    assert (applied(text, edits), doubts) == (PLAIN, [])
    assert "".join(text[edit.begin : edit.end] for edit in edits).split() == " ".join(marks).split()


def test_an_illustration_amid_a_sentence_parts_it_no_more() -> None:
    lines = "The house stood at the end of the road, where the\nfields began, and nobody had lived in it for years."
    text = lines.replace("\n", "\n\n[Illustration: The house]\n\n")
    assert applied(text, find_illustrations(Text(text))[0]) == lines


def test_doubtful_illustrations_stay() -> None:
    text = (
        "The sign [Illustration] means gold, [Illustration] silver.\n\n[Illustration: never closed\n\n" + "word " * 1000
    )
    edits, doubts = find_illustrations(Text(text))
    assert edits == []
    assert [doubt.reason for doubt in doubts] == [AMID, UNCLOSED]
    notes = "[Footnote 3: See above.]\n\n[Sidenote: The house]\n\n[Picture to yourself a house.]\n\n[Illustrationen]\n"
    assert find_illustrations(Text(notes)) == ([], [])


def test_control_characters_go() -> None:
    text = "\ufeffThe end.\n\ufeffAgain\x08.\n\x1a"
    assert applied(text, find_control_characters(Text(text))) == "The end.\nAgain.\n"
    assert find_control_characters(Text("a\tb\fc\n")) == []
