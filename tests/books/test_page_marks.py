"""Page numbers and running heads: put into a book as pages have them they go again; other numbers stay."""

from __future__ import annotations

import random
import textwrap

import pytest

from tests.books.test_unwrap import SONNET
from utils.books.edits import Text, applied
from utils.books.page_marks import DOUBTFUL, PAGE, UNSURE, find_page_marks

TEXT = (
    "the house stood at the end of a road where fields began and nobody had lived in it for years but people of "
    "the village went there once more to look for what their fathers had left behind under its old floor"
)


def prose(paragraphs: int, seed: int = 1) -> list[str]:
    """Lines of paragraphs of random sentences, wrapped, with blank lines between."""
    maker = random.Random(seed)
    words = TEXT.split()
    lines = []
    for _ in range(paragraphs):
        sentences = [" ".join(maker.choices(words, k=maker.randint(6, 25))).capitalize() for _ in range(6)]
        lines += [*textwrap.wrap(". ".join(sentences) + ".", 70), ""]
    return lines


BOOK = prose(200)


def paged(mark: str, lines: list[str] = BOOK, first: int = 1, page: int = 30) -> str:
    """The book with `mark`, in which `#` is the page's number, after each page of 30 lines."""
    parts = []
    for number, i in enumerate(range(0, len(lines), page), first):
        parts += [*lines[i : i + page], *mark.replace("#", str(number)).split("\n")]
    return "\n".join(parts)


def cleaned(text: str) -> str:
    return applied(text, find_page_marks(Text(text))[0])


@pytest.mark.parametrize(
    "mark",
    ["#", "\n#\n", "\n                - # -\n", "[Pg #]", "\n[Page #]\n", "[#]", "{#}", "\nPage #\n", "THE HOUSE   #",
     "\n# THE OLD HOUSE\n", "\n#\n\n\fTHE OLD HOUSE\n", "\n#\n\n\nTHE OLD HOUSE\n", "\nTHE OLD HOUSE\n"],
)  # fmt: skip
def test_marks_of_pages_go(mark: str) -> None:
    text = paged(mark)
    result = cleaned(text)
    # blank lines are ambiguous where a paragraph and a page end together
    assert [line for line in result.split("\n") if line] == [line for line in BOOK if line]
    assert all("\n\n\n" not in part for part in result.split("\n.\n"))
    amid_sentences = [edit for edit in find_page_marks(Text(text))[0] if edit.replacement == "\n"]
    assert amid_sentences
    assert cleaned(result) == result


@pytest.mark.parametrize("mark", ["[Pg #] ", "[Page #] ", "[#] ", "{#} "])
def test_marks_amid_lines_go(mark: str) -> None:
    text = "\n".join(BOOK)
    places = [i for i in range(0, len(text)) if text[i : i + 4] == " the"][100::50]
    parts = [
        text[a:b] + " " + mark.replace("#", str(n)).strip()
        for n, (a, b) in enumerate(zip([0, *places], places, strict=False))
    ]
    result = cleaned("".join(parts) + text[places[-1] :])
    assert result == text


def test_a_second_volume_counts_anew_and_pages_with_pictures_have_no_number() -> None:
    text = paged("\n#\n") + "\n\nVOLUME II\n\n" + paged("\n#\n", prose(200, seed=2)).replace("\n\n11\n\n", "\n\n")
    result = cleaned(text)
    assert not [line for line in result.split("\n") if line.strip().isdigit()]
    assert "VOLUME II" in result


def stays(text: str) -> list[str]:
    edits, doubts = find_page_marks(Text(text))
    assert edits == [], [text[edit.begin : edit.end] for edit in edits[:5]]
    return [doubt.reason for doubt in doubts]


def test_numbers_of_the_work_stay() -> None:
    paragraphs = "\n".join(BOOK).split("\n\n")
    # a diary, a year a page; numbered sections; sonnets; verses
    stays(
        "\n\n".join(
            f"{1800 + i}\n\n{a}\n\n{b}" for i, (a, b) in enumerate(zip(paragraphs[::2], paragraphs[1::2], strict=False))
        )
    )
    stays("\n\n".join(f"{i}\n\n{paragraph}" for i, paragraph in enumerate(paragraphs, 1)))
    stays("\n\n".join(f"[{i}] {paragraph}" for i, paragraph in enumerate(paragraphs, 1)))
    stays("\n\n".join(f"CHAPTER {i}\n\n{paragraph}" for i, paragraph in enumerate(paragraphs, 1)))
    stays("\n".join(f"{i}\n{line}" for i, line in enumerate(BOOK, 1) if line))
    stays("\n\n".join(f"{i}\n\n{SONNET}" for i in range(1, 155)))
    # years amid sentences, though they are even
    assert stays(paged("\n#\n", first=1812)) == [DOUBTFUL]


def test_references_to_notes_stay() -> None:
    text = paged("[#]").replace("\n[", " [")
    notes = "\n\n".join(f"[{i}] See the {i}th house." for i in range(1, 60))
    stays(f"{text}\n\nNOTES\n\n{notes}")
    stays(f"{text}\n\n" + "\n\n".join(f"[Footnote {i}: See the house.]" for i in range(1, 60)))


def test_references_to_pages_of_other_books_stay() -> None:
    maker = random.Random(2)
    paragraphs = "\n".join(BOOK).split("\n\n")
    cited = sorted(maker.sample(range(1, 400), 60))
    stays("\n\n".join(f"{a} [Page {n}]" for a, n in zip(paragraphs, cited, strict=False)))
    stays("\n\n".join(f"[p. {n}] As is said there, the house was old." for n in range(1, 60)))


def test_arithmetic_tables_and_code_stay() -> None:
    maker = random.Random(3)
    sums = [f"{a} + {b} = {a + b}\n{a}\n{b}\n---\n{a + b}" for a, b in ((maker.randint(1, 99), i) for i in range(300))]
    stays("\n\n".join(sums))
    stays("\n".join(f"{i}    {i * i}" for i in range(1, 500)))
    stays("\n".join(f"x[{i}] = y[{i + 1}]" for i in range(500)))


def test_refrains_speakers_and_chapters_stay() -> None:
    stanza = "The moon is over the water and the wind\ngoes out to the fields that nobody has mown;\n"
    stays("\n".join(f"{stanza * 8}And I went home alone,\n" for _ in range(40)))
    paragraphs = "\n".join(BOOK).split("\n\n")
    stays("\n\n".join(f"HAMLET\n{a}\n\nGHOST\n{b}" for a, b in zip(paragraphs[::2], paragraphs[1::2], strict=False)))
    stays("\n\n".join(f"The Narrator Speaks\n\n{paragraph}" for paragraph in paragraphs))


def test_a_book_without_marks_is_unchanged() -> None:
    assert find_page_marks(Text("\n".join(BOOK))) == ([], [])
    assert find_page_marks(Text("")) == ([], [])


def test_few_marks_that_say_what_they_are_go() -> None:
    edits, _ = find_page_marks(Text("It was [Pg 12] late.\n\n[Blank Page]\n\nHe saw [12] and [Page 3] of it.\n"))
    assert [edit.reason for edit in edits] == [PAGE, PAGE]


def test_heads_that_may_be_refrains_stay_and_are_listed() -> None:
    stanza = "the wind is over the harbour and the gulls\ncry to the old bell under the white water\n" * 6
    edits, doubts = find_page_marks(Text((stanza + "Blow ye winds\n" + stanza) * 12))
    assert not edits
    assert [doubt.reason for doubt in doubts] == [UNSURE]
