"""A book's body: with pages, pictures, italics and wrapped lines put in, it comes out as it was."""

from __future__ import annotations

import random
import textwrap

import pytest

from tests.books.test_page_marks import prose
from tests.books.test_unwrap import HEXAMETERS, SONNET
from utils.books.edits import Text, applied
from utils.books.illustrations import find_illustrations
from utils.books.page_marks import find_page_marks
from utils.books.typography_marks import find_typography_marks
from utils.books.unwrap import find_line_ends


def cleaned(text: str) -> str:
    """The text after all steps; asserts that its letters, and those of the edits, are the text's."""
    for find in (find_page_marks, find_illustrations, find_typography_marks):
        edits, doubts = find(Text(text))
        assert not doubts, doubts
        text = applied(text, edits)
    return applied(text, find_line_ends(Text(text))[0])


def paragraphs_of(seed: int) -> list[str]:
    """Paragraphs of prose with verse, a letter's head and headings between them."""
    lines = [" ".join(paragraph.split()) for paragraph in "\n".join(prose(150, seed)).split("\n\n")]
    head = "                                        London, May 3rd.\nMy dear Sister,"
    inserted = ["CHAPTER II", SONNET, HEXAMETERS, head, "* * * * *", "[Footnote 1: See the house.]", "1812"]
    for i, passage in enumerate(inserted):
        lines.insert(20 * i + 7, passage)
    return [line for line in lines if line]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mark", ["\n#\n", "[Pg #]", "\n#\n\n\nTHE OLD HOUSE\n", "THE OLD HOUSE    #"])
def test_a_book_comes_out_as_it_was(mark: str, seed: int) -> None:
    maker = random.Random(seed)
    paragraphs = paragraphs_of(seed)
    marked = []
    for paragraph in paragraphs:
        words = paragraph.split(" ")
        if len(words) > 60 and "\n" not in paragraph:
            i = maker.randrange(10, len(words) - 10)
            words[i] = f"_{words[i]}" if "." in words[i] else f"_{words[i]}_"
            words[i + 1] = f"{words[i + 1]}_" if "." in words[i] else words[i + 1]
            paragraph = textwrap.fill(" ".join(words), 70)
        marked.append(paragraph)
        if maker.random() < 0.1:
            marked.append("[Illustration: The house at the end of\nthe road.]")
    lines = "\n\n".join(marked).split("\n")
    parts = []
    number = 0
    for i, line in enumerate(lines):
        parts.append(line)
        following = lines[i + 1] if i + 1 < len(lines) else ""
        # pages end amid sentences here, where what their marks leave behind is not ambiguous
        if i >= 35 * (number + 1) and line and following[:1].islower() and line[-1].isalpha():
            number += 1
            parts += mark.replace("#", str(number)).split("\n")
    assert number > 20
    assert cleaned("\n".join(parts)) == "\n\n".join(paragraphs)
    assert cleaned("\n\n".join(paragraphs)) == "\n\n".join(paragraphs)
