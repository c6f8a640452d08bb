"""Works that look like licences, and texts on which finders could run for hours."""

from __future__ import annotations

import time

import pytest

from tests.books.gutenberg_forms import FOOTERS, HEADERS
from utils.books.cleaning import clean

HEADER = (
    "The Project Gutenberg eBook of A Poem\n\nThis ebook is for the use of anyone anywhere at no cost.\n\n"
    "Title: A Poem\n\n*** START OF THE PROJECT GUTENBERG EBOOK A POEM ***\n\n\n"
)
FOOTER = "\n\n\n*** END OF THE PROJECT GUTENBERG EBOOK A POEM ***\n\nUpdated editions will replace the previous one.\n"
POEM = "The apple fell,\n  and that was all.\n"


def cleaned(text: str) -> str:
    book = clean(text.encode(), "book.txt", unwrap=True)
    assert book.characters == len(book.text) + book.taken_out.total() - book.put_in.total()
    return book.text


@pytest.mark.parametrize("footer", FOOTERS.values(), ids=FOOTERS)
@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_short_poem_is_no_part_of_its_footer(header: str, footer: str) -> None:
    assert cleaned(f"{header}\n\n{POEM}\n\n{footer}") == POEM


@pytest.mark.parametrize(
    "first",
    [
        "In the small print of the deed, which nobody reads, stood his name.",
        '"Read the small print," said the lawyer.',
        "Edited by time alone, the story has lost its middle.",
        "Copyright laws are changing all over the world, said the lawyer in 1909.",
        "[End of the second letter by the miller.]",
        "Section 1. General terms of use are given in the deed.",
    ],
)
def test_a_sentence_that_speaks_of_such_things_stays(first: str) -> None:
    assert cleaned(f"{HEADER}{first}\n\n{POEM}{FOOTER}") == f"{first}\n\n{POEM}"
    assert cleaned(f"{HEADER}{POEM}\n{first}{FOOTER}") == f"{POEM}\n{first}\n"


@pytest.mark.parametrize(
    "last",
    [
        "The End of the Project Gutenberg Etext of A Poem\n\n\x1a",
        "End of Project Gutenberg's A Poem, by A. Poet\x1a\x1a\x1a\n",
        "***The Project Gutenberg Etext of A Poem by Poet***\n\n",
        "End of Etext\n",
        "End of the Etext of A Poem\n",
        "*** End of the E-text ***\n",
    ],
)
def test_a_last_line(last: str) -> None:
    assert cleaned(f"{HEADER}{POEM}\n\n{last}") == POEM


def test_entries_with_a_number_and_one_blank_before_the_page() -> None:
    titles = ["The Rainy Arrival", "The Bluest Apple", "The Departing Carriage"]
    entries = [
        f"{number} {title.upper()} {page}"
        for number, title, page in zip(["I.", "II.", "III."], titles, [1, 22, 48], strict=True)
    ]
    chapters = [
        f"CHAPTER {number}\n\n{title.upper()}\n\nIt rained in {title}." for number, title in enumerate(titles, 1)
    ]
    work = "\n\n\n".join(chapters)
    assert (
        cleaned(f"{HEADER}CONTENTS\n\nCHAPTER PAGE\n\n" + "\n".join(entries) + f"\n\n\n{work}{FOOTER}") == work + "\n"
    )


SLOW = {
    "stars": "*" * 20_000,
    "marks without an end": "[Illustration: a\n" * 6000,
    "notes": "Transcriber's Note:\n\n" * 3000,
    "notes in a paragraph": "a Transcriber\n" * 8000,
    "start markers": "*** START OF THIS PROJECT GUTENBERG EBOOK ***\n\n" * 600,
    "underscores": "_" + "a" * 6000 + "b_ " * 30_000,
}


@pytest.mark.parametrize("text", SLOW.values(), ids=SLOW)
@pytest.mark.parametrize("header", ["", HEADER], ids=["own", "gutenberg"])
def test_time_grows_with_the_length_alone(text: str, header: str) -> None:
    begin = time.process_time()
    cleaned(f"{header}{POEM}\n\n{text}\n\n{POEM}{FOOTER if header else ''}")
    assert time.process_time() - begin < 5  # all took 10 to 100 times as long when it grew with the square


def test_a_guess_from_few_characters_is_for_review() -> None:
    book = clean("The end é ü Müller.\n".encode() + b"\xc3\n", "book.txt", unwrap=True)
    assert "encoding" in {review.reason for review in book.reviews}


def test_an_end_marker_behind_the_last_sentence() -> None:
    assert cleaned(f"{HEADER}{POEM}He died. {FOOTER.lstrip()}") == f"{POEM}He died.\n"
    quoted = f"{POEM}\nHe read *** END OF THE PROJECT GUTENBERG EBOOK *** aloud.\n\n{'He wept. ' * 500}\n"
    assert cleaned(f"{HEADER}{quoted}{FOOTER}").split() == quoted.split()


def test_a_marker_with_the_work_behind_it_is_no_end() -> None:
    history = f"{POEM}\nEnd of Project Gutenberg's first decade: ten books.\n\nSuch was the age of type.\n\nHe slept.\n"
    licence = (
        "\n*** START: FULL LICENSE ***\n\nTHE FULL PROJECT GUTENBERG LICENSE\n\nsubscribe to our email newsletter\n"
    )
    assert cleaned(f"{HEADER}{history}{FOOTER}{licence}").split() == history.split()
