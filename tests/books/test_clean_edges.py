"""What stands around a work goes, and no sentence of the work: in all forms of header and footer, and at random."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.books.gutenberg_forms import (
    ADVERTISEMENTS,
    BACK_NOTES,
    CREDITS,
    FOOTERS,
    FRONT_NOTES,
    HEADERS,
)
from utils.books.cleaning import CleanedBook, clean

FIRST = "Agnes had never seen the valley without snow, nor the lamp without its flame."
LAST = "So the lamp was lit again, and nobody asked who had carried the oil."
WORDS = re.findall(
    r"\w+",
    "the lamp valley snow miller horse road winter letter window of and a river stone old brother night bell carried "
    "walked said nothing under house far before morning with to in café",
)


def sentence(source: random.Random) -> str:
    words = [source.choice(WORDS) for _ in range(source.randint(6, 18))]
    return " ".join(words).capitalize() + "."


def wrapped(text: str, width: int = 70) -> str:
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "\n".join([*lines, line])


def make_work(seed: int, chapters: int = 4) -> list[str]:
    """A work's paragraphs, its title first: the first sentence of its prose is FIRST, its last paragraph LAST."""
    source = random.Random(seed)
    parts = ["THE LAMP IN THE VALLEY", "BY", "AGNES THORNE"]
    for number in range(1, chapters + 1):
        parts += [f"CHAPTER {number}", f"The {source.choice(WORDS)} and the {source.choice(WORDS)}, part {number}"]
        for paragraph in range(4):
            text = " ".join(sentence(source) for _ in range(4))
            if number == 1 and paragraph == 0:
                text = f"{FIRST} {text}"
            parts.append(wrapped(text))
    return [*parts, LAST]


def make_file(*parts: str) -> str:
    return "\n\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def paragraphs(text: str) -> list[str]:
    return [part.strip("\n") for part in re.split(r"\n(?:[ \t]*\n)+", text) if part.strip()]


def check_sums(book: CleanedBook, text: str) -> None:
    """Characters in = kept + reported, counted from the reports alone; what is listed was in the file."""
    taken_out = sum(book.taken_out.values())
    assert len(text) == book.characters == len(book.text) + taken_out - sum(book.put_in.values())
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = plain.split("\n")
    for removed in book.removed:
        assert removed.text in plain
        assert removed.characters == len(removed.text)
        assert lines[removed.line - 1] == removed.text.split("\n")[0], removed
    listed = sum(removed.characters for removed in book.removed)
    assert listed <= taken_out


def kept(text: str, **options: bool) -> CleanedBook:
    book = clean(text.encode("utf-8"), "book.txt", unwrap=False)
    check_sums(book, text)
    return book


def reasons(book: CleanedBook) -> set[str]:
    return {review.reason for review in book.reviews}


@pytest.mark.parametrize("header", HEADERS)
def test_header(header: str) -> None:
    work = make_work(1)
    book = kept(make_file(HEADERS[header], "\n\n\n\n".join(work), FOOTERS["2008"]))
    assert paragraphs(book.text) == work
    assert reasons(book) <= {"no start marker"}
    assert book.fields.title or header in ("1996, small print", "1994, a copyrighted edition", "Runeberg")
    assert book.fields.number or header in ("Australia", "Runeberg")


@pytest.mark.parametrize("footer", FOOTERS)
def test_footer(footer: str) -> None:
    work = make_work(2)
    book = kept(make_file(HEADERS["2020s"], "\n\n".join(work), FOOTERS[footer]))
    assert paragraphs(book.text) == work
    assert not reasons(book)


@pytest.mark.parametrize("footer", FOOTERS)
def test_footer_right_below_the_last_line(footer: str) -> None:
    work = make_work(3)
    book = kept(make_file(HEADERS["1996, small print"], "\n\n".join(work)) + FOOTERS[footer])
    assert paragraphs(book.text) == work


@pytest.mark.parametrize("credit", CREDITS)
def test_credit(credit: str) -> None:
    work = make_work(4)
    book = kept(make_file(HEADERS["2008"], CREDITS[credit], "\n\n".join(work), FOOTERS["2008"]))
    assert paragraphs(book.text) == work
    assert not reasons(book)


@pytest.mark.parametrize("note", FRONT_NOTES)
def test_note_before_the_work(note: str) -> None:
    work = make_work(5)
    text = make_file(HEADERS["2008"], CREDITS["a name"], FRONT_NOTES[note], "\n\n".join(work), FOOTERS["2008"])
    for last in ("underscores.\n", "have been corrected.\n"):  # below a note with a heading are several blank lines
        text = text.replace(last, f"{last}\n\n")
    book = kept(text)
    assert paragraphs(book.text) == work
    assert not reasons(book)


@pytest.mark.parametrize("note", BACK_NOTES)
def test_note_behind_the_work(note: str) -> None:
    work = make_work(6)
    book = kept(make_file(HEADERS["2008"], "\n\n".join(work), BACK_NOTES[note], FOOTERS["2008"]))
    rule = ["       *       *       *       *       *"] if note == "frame" else []
    assert [part for part in paragraphs(book.text) if part not in rule] == work
    assert not reasons(book)


def test_a_note_that_is_fiction_stays() -> None:
    note = [
        "TRANSCRIBER'S NOTE",
        "I found these leaves in the mill, and have been asked what has been heard of Agnes since.",
        "I do not know. Those who moved to the valley in that period cover their lamps.",
    ]
    for place in (3, 20, 99):
        plain = make_work(17)
        work = [*plain[:place], *note, *plain[place:]]
        book = kept(make_file(HEADERS["2008"], "\n\n".join(work), FOOTERS["2008"]))
        assert paragraphs(book.text) == work
        assert reasons(book) == {"transcriber's note unsure"}


def headings(work: list[str]) -> list[tuple[str, str]]:
    return [(part, work[i + 1]) for i, part in enumerate(work) if part.startswith("CHAPTER")]


CONTENTS = {
    "numbers alone": lambda work: "CONTENTS\n\n" + "\n".join(number for number, _ in headings(work)),
    "titles": lambda work: "CONTENTS.\n\n\n" + "\n\n".join(title for _, title in headings(work)),
    "both on a line": lambda work: "Table of Contents\n\n" + "\n".join(f"{a}. {b}" for a, b in headings(work)),
    "both on two lines": lambda work: "CONTENTS\n\n" + "\n\n".join(f"{a}\n\n{b}" for a, b in headings(work)),
    "pages": lambda work: (
        "CONTENTS\n\n                           PAGE\n"
        + "\n".join(f"{a}. {b} {'.' * 12} {9 + 30 * i}" for i, (a, b) in enumerate(headings(work)))
    ),
    "wide gaps": lambda work: (
        "_Contents_\n\n" + "\n".join(f"  {b}        {9 + 30 * i}" for i, (a, b) in enumerate(headings(work)))
    ),
    "German": lambda work: "INHALT\n\n" + "\n".join(b for _, b in headings(work)),
    "French": lambda work: "TABLE DES MATIÈRES\n\n" + "\n".join(f"{a} {b}" for a, b in headings(work)),
    "Russian": lambda work: "ОГЛАВЛЕНИЕ\n\n" + "\n".join(b for _, b in headings(work)),
}


@pytest.mark.parametrize("form", CONTENTS)
@pytest.mark.parametrize("gap", ["\n\n", "\n\n\n\n"])
def test_contents(form: str, gap: str) -> None:
    work = make_work(7, chapters=6)
    text = gap.join([*work[:3], CONTENTS[form](work), *work[3:]])
    book = kept(make_file(HEADERS["2008"], text, FOOTERS["2008"]))
    assert paragraphs(book.text) == work
    assert not reasons(book)
    assert [removed.reason for removed in book.removed].count("contents") == 1


def test_contents_of_several_parts() -> None:
    """Chapters that have the same numbers in each part: the list has them twice, and so has the work."""
    work, listing = ["THE LAMP"], []
    for part in ("BOOK THE FIRST", "BOOK THE SECOND", "BOOK THE THIRD"):
        work.append(part)
        listing.append(part)
        for number in ("CHAPTER I", "CHAPTER II", "CHAPTER III"):
            work += [number, wrapped(" ".join(sentence(random.Random(len(work))) for _ in range(8)))]
            listing.append(number)
    text = "\n\n".join([work[0], "CONTENTS", *listing, *work[1:]])
    assert paragraphs(kept(make_file(HEADERS["2008"], text, FOOTERS["2008"])).text) == work


def test_a_list_of_which_nothing_is_found_again_is_left_for_review() -> None:
    work = [*make_work(8)[:3], "CONTENTS", "A rope", "Two candles", "The miller's will", *make_work(8)[3:]]
    book = kept(make_file(HEADERS["2008"], "\n\n".join(work), FOOTERS["2008"]))
    assert paragraphs(book.text) == work
    assert reasons(book) == {"contents unsure"}


def test_illustrations() -> None:
    work = make_work(9)
    captions = ["The lamp by night", "Agnes at the mill", "The road in snow", "A letter is found"]
    for i, caption in enumerate(captions):
        work.insert(6 + 4 * i, f"[Illustration: {caption}]")
    pages = "ILLUSTRATIONS\n\n" + "\n".join(f"{caption}     {7 + 31 * i}" for i, caption in enumerate(captions))
    book = kept(make_file(HEADERS["2008"], "\n\n".join([*work[:3], pages, *work[3:]]), FOOTERS["2008"]))
    gone = {removed.text for removed in book.removed if removed.reason == "list of illustrations"}
    assert len(gone) == 1
    assert all(caption in next(iter(gone)) for caption in captions)
    assert LAST in book.text
    assert FIRST.split(",")[0] in book.text.replace("\n", " ")


@pytest.mark.parametrize("end", ["THE END", "The End.", "FINIS.", "FIN", "ENDE"])
def test_advertisements_behind_the_end(end: str) -> None:
    work = [*make_work(10, chapters=6), end]
    book = kept(make_file(HEADERS["2008"], "\n\n".join(work), ADVERTISEMENTS, FOOTERS["2008"]))
    assert paragraphs(book.text) == work
    assert not reasons(book)


@pytest.mark.parametrize(
    "behind",
    [
        "INDEX\n\nBell, the miller's, 12\n\nLamp, price of, 6s., 14\n\nPublishers, cloth, 15",
        "FOOTNOTES:\n\n[1] Crown 8vo, cloth, 6s., published by Field & Co.",
        "NOTES\n\n1. The price was 6s. in cloth gilt, says the publisher.",
        "She paid 6s. to the publisher for a cloth binding, and went home.",
    ],
)
def test_what_belongs_to_the_work_behind_its_end_stays(behind: str) -> None:
    work = [*make_work(11), "THE END", *behind.split("\n\n")]
    book = kept(make_file(HEADERS["2008"], "\n\n".join(work), FOOTERS["2008"]))
    assert paragraphs(book.text) == work


def test_several_works_in_a_file() -> None:
    one, two = make_work(12), make_work(13)
    files = [
        make_file(HEADERS[form], "\n\n".join(work), FOOTERS[form]) for form, work in (("2008", one), ("2020s", two))
    ]
    book = kept("\n\n".join(files))
    assert paragraphs(book.text) == [*one, *two]


def test_a_licence_without_its_end_does_not_take_the_next_work() -> None:
    one, two = make_work(12), make_work(13)
    licence = FOOTERS["2008"].rpartition("This Web site")[0]
    files = [make_file(HEADERS["2008"], "\n\n".join(one), licence), make_file(HEADERS["2008"], "\n\n".join(two))]
    assert paragraphs(kept("\n\n".join(files)).text) == [*one, *two]


PECULIAR = {
    "stars": ["***", "* * * * *", "*** THE MILL ***", "She cried: *** no more ***"],
    "contents": [
        "CONTENTS",
        "The box had three things: a rope, a lamp and a letter.",
        "CONTENTS OF THE BOX",
        "Rope, 3",
        "Lamps, 7",
    ],
    "end of": [
        "END OF PART ONE",
        "End of the first day.",
        "THE END OF THE WORLD",
        "End of the journey by night by Agnes Thorne",
    ],
    "produced by": [
        "Produced by the frost, strange flowers covered the window.",
        "Prepared by a long winter, she said nothing.",
        "Edited by no one, the letters were sent at once.",
        "EDITED BY CHARLES WARREN",
    ],
    "transcriber": [
        "Transcribers of old songs came to the valley.",
        "The transcriber's notes were burnt, with all the spelling that he had corrected.",
        "“Transcriber's note,” said the monk, “is what I write here.”",
    ],
    "numbers": ["12", "[13]", "Page 14", "- 15 -", "1892.", "xii"],
    "verse": ["  The lamp is low,\n  The snow is deep,\n    And we shall go\n    Before we sleep.", "  I.\n  O lamp!"],
    "play": ["MILLER. Who is there?", "AGNES. The lamp. [Exit.]", "Author: I say nothing.", "Editor: Nor do I."],
    "letter": [
        "Dear brother,",
        "Title: none. Language: coarse.",
        "Your obedient servant,\n\n     AGNES".replace("\n\n", "\n"),
    ],
    "advertisement": ["BY THE SAME AUTHOR", "Price 6s., said the publisher; cloth gilt, Crown 8vo."],
    "markers": [
        "*** START OF THE PROJECT GUTENBERG EBOOK SOMETHING ELSE ***",
        "She read: End of Project Gutenberg's old books.",
        "*** END OF THE PROJECT GUTENBERG EBOOK SOMETHING ELSE ***",
        "End of the Project Gutenberg EBook of Something Else, by Nobody",
    ],
}


@pytest.mark.parametrize("kind", PECULIAR)
@pytest.mark.parametrize("place", ["first", "inside", "last"])
def test_what_only_looks_like_an_edge_stays(kind: str, place: str) -> None:
    """Peculiar passages of a work, also where its first and its last sentence are."""
    plain, own = make_work(14)[3:], PECULIAR[kind]
    if place != "inside" and kind == "markers":
        pytest.skip("a file that ends, or whose work begins, with a marker is one that has it twice")
    work = {"first": [*own, *plain], "inside": [*plain[:9], *own, *plain[9:]], "last": [*plain, *own]}[place]
    for header in ("2008", "1996, small print", "2005, no blanks"):
        book = kept(make_file(HEADERS[header], "\n\n".join(work), FOOTERS["2008"]))
        assert paragraphs(book.text) == work, header
    alone = "\n\n".join(work) + "\n"
    assert kept(alone).text == alone


def test_markers_inside_a_work_are_for_review() -> None:
    plain = make_work(14)[3:]
    work = [*plain[:9], *PECULIAR["markers"], *plain[9:]]
    book = kept(make_file(HEADERS["2008"], "\n\n".join(work), FOOTERS["2008"]))
    assert [review.reason for review in book.reviews if review.reason == "marker inside the text"]


def test_a_quoted_marker_does_not_end_a_header_that_has_none() -> None:
    plain = make_work(14, chapters=8)[3:]
    work = [*plain[:29], *PECULIAR["markers"], *plain[29:]]
    book = kept(make_file(HEADERS["without a marker"], "\n\n".join(work), FOOTERS["1996"]))
    assert paragraphs(book.text) == work
    assert "marker inside the text" in reasons(book)


def test_a_credit_that_names_project_gutenberg_opens_no_second_header() -> None:
    plain = make_work(14)[3:]
    work = [*plain[:9], *PECULIAR["markers"], *plain[9:]]
    credit = "This Project Gutenberg Etext was prepared by Ann Dee.\n"
    book = kept(make_file(HEADERS["2008"], credit, "\n\n".join(work), FOOTERS["2008"]))
    assert paragraphs(book.text) == work


def test_an_own_book_is_kept_whole() -> None:
    work = [
        "Title: My Book",
        "Author: Me",
        "CONTENTS",
        "One",
        "Two",
        *make_work(15),
        "THE END",
        ADVERTISEMENTS.strip().replace("_", ""),
    ]
    text = "\n\n\n".join(work) + "\n"
    book = kept(text)
    assert book.text == text
    assert not book.taken_out


def test_project_gutenberg_named_without_markers_is_for_review() -> None:
    text = "\n\n".join([*make_work(16), "I found this at Project Gutenberg, which I thank."]) + "\n"
    book = kept(text)
    assert book.text == text
    assert reasons(book) == {"Project Gutenberg named, but not marked"}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(HEADERS)),
    st.sampled_from(sorted(CREDITS)),
    st.sampled_from(sorted(FRONT_NOTES)),
    st.sampled_from(["", *sorted(CONTENTS)]),
    st.lists(
        st.sampled_from(sorted(set(PECULIAR) - {"markers", "advertisement", "contents", "produced by"})), max_size=3
    ),
    st.sampled_from(sorted(BACK_NOTES)),
    st.booleans(),
    st.sampled_from(sorted(FOOTERS)),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "windows-1252"]),
    st.integers(0, 1000),
)
def test_any_composition(
    header: str,
    credit: str,
    front: str,
    contents: str,
    peculiar: list[str],
    back: str,
    advertised: bool,
    footer: str,
    line_end: str,
    encoding: str,
    seed: int,
) -> None:
    work = make_work(seed, chapters=6)
    source = random.Random(seed)
    for kind in peculiar:
        place = source.choice([i for i in range(8, len(work)) if len(work[i - 1]) > 100])  # not below a heading
        work[place:place] = PECULIAR[kind]
    if encoding == "windows-1252":
        contents = "" if contents == "Russian" else contents
    body = "\n\n".join([*work[:3], CONTENTS[contents](work) if contents else "", *work[3:]])
    if advertised:
        work.append("THE END")
        body += "\n\n\nTHE END"
        back = "none"  # a note behind advertisements is a case of its own
    note = FRONT_NOTES[front] + "\n\n\n" * (front == "heading")
    text = "\n\n\n".join(
        part.strip("\n") if part is not note else note
        for part in (
            HEADERS[header],
            CREDITS[credit],
            note,
            body,
            ADVERTISEMENTS * advertised,
            BACK_NOTES[back],
            FOOTERS[footer],
        )
        if part
    )
    text = (text + "\n").replace("\n", line_end)
    book = clean(text.encode(encoding), "book.txt", unwrap=False)
    check_sums(book, text)
    rule = "       *       *       *       *       *"
    assert [part for part in paragraphs(book.text) if part != rule] == work
    assert "gutenberg" not in book.text.lower()


def make_parts(source: random.Random) -> tuple[list[str], list[str]]:
    """A work of parts whose chapters are numbered or named alike, as letters to the same person, and its headings."""
    named = source.choice(["CHAPTER {}", "{}.", "CHAPTER {}. The lamp", "To the Same", "Letter {}"])
    romans = ["I", "II", "III", "IV", "V"]
    listing, work = [], ["THE LAMP", "by Agnes Thorne"]
    if source.random() < 0.4:
        work += ["PREFACE", wrapped(" ".join(sentence(source) for _ in range(9)))]
        listing.append("PREFACE")
    split = len(work)
    if source.random() < 0.3:
        work.append("THE LAMP")
    for part in range(source.randint(1, 4)):
        if source.random() < 0.6:
            listing.append(f"BOOK {romans[part]}")
            work.append(listing[-1])
        for number in range(source.randint(1, 5)):
            heading = named.format(romans[number])
            listing.append(heading)
            work.append(source.choice([heading, heading.upper(), f"{heading}."]))
            if source.random() < 0.3:
                work.append(sentence(source).upper())
            if source.random() < 0.3:
                work.append("“Who is there?”")
                work.append("“The miller.”")
            for _ in range(source.randint(1, 4)):
                work.append(wrapped(" ".join(sentence(source) for _ in range(source.randint(1, 9)))))
    work.append(LAST)
    listing = [heading for heading in listing if source.random() < 0.9]
    if source.random() < 0.3:
        listing = listing[: source.randint(1, len(listing) or 1)]
    if source.random() < 0.3:
        listing = [f"{heading}{' ' * 20}{7 + 12 * i}" for i, heading in enumerate(listing)]
    gap = source.choice(["\n", "\n\n", "\n\n\n"])
    return work, [*work[:split], "\n\n".join(["CONTENTS", gap.join(listing)]), *work[split:]]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**9), st.sampled_from(["\n\n", "\n\n\n", "\n\n\n\n\n"]))
def test_no_list_of_contents_takes_a_heading_with_it(seed: int, gap: str) -> None:
    work, parts = make_parts(random.Random(seed))
    book = kept(make_file(HEADERS["2008"], gap.join(parts), FOOTERS["2008"]))
    left = iter(paragraphs(book.text))
    assert all(part in left for part in work)


def test_a_licence_between_acts_goes() -> None:
    work = make_work(17)
    licence = "<<THIS ELECTRONIC VERSION OF THE COMPLETE WORKS IS COPYRIGHT\nAND IS PROVIDED WITH PERMISSION.>>"
    book = kept(make_file(HEADERS["2008"], "\n\n".join([*work[:6], licence, *work[6:]]), FOOTERS["2008"]))
    assert paragraphs(book.text) == work


OFFERS = ADVERTISEMENTS.replace("_", "") * 3
BRACKETED = "[Transcriber's note: these spellings are retained:\n" + "\n".join(["the lamp, the valey"] * 140) + "]"


@pytest.mark.parametrize(
    ("behind", "footer", "reason", "left"),
    [
        (OFFERS, FOOTERS["2008"], "advertisements unsure", paragraphs(OFFERS)),
        ("Produced by the frost, strange flowers.", FOOTERS["2008"], "", ["Produced by the frost, strange flowers."]),
        ("", "*** END OF THE PROJECT GUTENBERG EBOOK ***\n\nNo more.", "text after the end marker", ["No more."]),
        (BRACKETED + "\n" + BRACKETED, FOOTERS["2008"], "much taken out", []),
    ],
)
def test_what_is_not_sure_behind_a_work_stays_and_much_that_goes_is_for_review(
    behind: str, footer: str, reason: str, left: list[str]
) -> None:
    work = make_work(18)
    book = kept(make_file(HEADERS["2008"], "\n\n".join([*work, behind]), footer))
    assert paragraphs(book.text) == [*work, *left]
    assert reasons(book) == {reason} - {""}


def test_what_begins_like_a_credit_is_for_review() -> None:
    work = ["Produced by the frost, strange flowers covered the window.", *make_work(19)]
    book = kept(make_file(HEADERS["2008"], "\n\n".join(work), FOOTERS["2008"]))
    assert paragraphs(book.text) == work
    assert reasons(book) == {"producers' note unsure"}
