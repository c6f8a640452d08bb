"""Where the sentences of a text end, by the rules of its language; no model is downloaded for it."""

from collections.abc import Iterator
from typing import Any

from lit_gpt.errors import UserError

MOST = 10_000
"""Characters looked at together: the time of a text of nothing but quotation marks grows with its square."""
LONG = 400
"""Characters of a sentence that may be several between two marks."""
_MARKS = str.maketrans(dict.fromkeys("\"'“”„‟‘’‚‛«»‹›()[]{}「」『』（）", " "))
_LINE_ENDS = str.maketrans("\r\n", "  ")


def import_sentencex() -> Any:
    try:
        import sentencex  # an optional package
    except ImportError:
        raise UserError("cutting books between sentences needs sentencex: pip install sentencex") from None
    return sentencex


def sentence_ends(text: str, language: str) -> list[int]:
    """Places behind each sentence and the white space after it, but for the text's end. Of one paragraph.

    `language` is a two-letter code; one that sentencex has no rules for is split as English is.
    """
    # line ends are white space like any other here: two of them would be taken for the end of a paragraph
    flat = text.translate(_LINE_ENDS)
    ends = []
    for begin, end in _pieces(flat):
        place = begin
        for sentence in _segments(flat[begin:end], language):
            # nothing between two quotation marks or brackets is split, not even a speech of pages
            if len(sentence) > LONG:
                ends += [place + inner for inner in _ends_within(sentence, language)]
            place += len(sentence)
            if place < end:
                ends.append(place)
    return ends


def _segments(text: str, language: str) -> list[str]:
    found = import_sentencex().segment(language, text)
    assert sum(map(len, found)) == len(text), (language, text)  # joined they are what it was given
    return found


def _ends_within(sentence: str, language: str) -> list[int]:
    """The ends of sentences between quotation marks and brackets, each before the mark that opens the next."""
    ends = []
    place = 0
    for part in _segments(sentence.translate(_MARKS), language)[:-1]:
        place += len(part)
        end = place
        while end and ord(sentence[end - 1]) in _MARKS:
            end -= 1
        # white space before the mark says that it opens
        ends.append(end if end and sentence[end - 1].isspace() else place)
    return ends


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """The text in parts of at most MOST characters, which end at spaces where there are any."""
    begin = 0
    while len(text) - begin > MOST:
        end = text.rfind(" ", begin, begin + MOST) + 1 or begin + MOST
        yield begin, end
        begin = end
    yield begin, len(text)
