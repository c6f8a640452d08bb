"""Where a long text is cut between two words, so that the tokens of its parts come out as those of the whole."""

import re

SEEN = 2**16  # bytes in which a position to cut a text is looked for
_WORD_GAP = re.compile(r"(?<=\S)(?:\r\n|[ \r\n])(?=\S)")
_WITHIN_WORD = re.compile(r"\S(?=\S)")


def cut_between_words(buffer: bytes, start: int, target: int) -> tuple[int, int]:
    """The last position after `start`, up to `target`, where a word ends, and the bytes of the two words before it.

    Two, because a tokenizer treats a text's first word differently. The end of a line is better, after a letter: some
    tokenizers (Llama 3's) put a full stop and the line's end into one token. Without such a position in the last 64 KB
    the text is cut between two characters, not at white space if it can be, and there are no such words.
    """
    target -= next((back for back in range(4) if buffer[target - back] & 0xC0 != 0x80), 0)
    begin = max(0, target - SEEN)
    text = buffer[begin:target].decode("utf-8", "surrogateescape")
    floor = len(buffer[begin:start].decode("utf-8", "surrogateescape"))
    gaps = [gap.span() for gap in _WORD_GAP.finditer(text)]
    usable = [number for number in range(2, len(gaps)) if gaps[number][0] > floor]
    words = [number for number in usable if text[gaps[number][0]] == " " or text[gaps[number][0] - 1].isalnum()]
    lines = [number for number in words if text[gaps[number][0]] != " "]
    if usable:
        best = lines or words or usable
        number = best[-1]
        end, two_words = gaps[number][0], gaps[number - 2][1]
        return begin + _size(text[:end]), _size(text[two_words:end])
    ends = [pair.end() for pair in _WITHIN_WORD.finditer(text, floor)]
    if ends:
        target = begin + _size(text[: ends[-1]])
    return target, 0


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))
