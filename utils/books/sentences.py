"""Where the sentences of a text end, by the rules of its language; no model is downloaded for it."""

from collections.abc import Iterator
from typing import Any

from lit_gpt.errors import UserError

MOST = 10_000
"""Characters looked at together: the time of a text of nothing but quotation marks grows with its square."""
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
    sentencex = import_sentencex()
    # line ends are white space like any other here: two of them would be taken for the end of a paragraph
    flat = text.translate(_LINE_ENDS)
    ends = []
    for begin, end in _pieces(flat):
        place = begin
        for sentence in sentencex.segment(language, flat[begin:end]):
            place += len(sentence)
            if place < end:
                ends.append(place)
        assert place == end, (language, flat[begin:end])  # its segments joined are what it was given
    return ends


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """The text in parts of at most MOST characters, which end at spaces where there are any."""
    begin = 0
    while len(text) - begin > MOST:
        end = text.rfind(" ", begin, begin + MOST) + 1 or begin + MOST
        yield begin, end
        begin = end
    yield begin, len(text)
