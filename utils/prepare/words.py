"""Texts to hashes of their words and of runs of words, in arrays: case, punctuation and white space do not count.

A word is what stands between blanks after `fold`. Texts that differ in what `fold` takes away have the same words.
"""

import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

from lit_gpt.tokenizer.batches import batches

BATCH = 1 << 18  # characters of texts whose words are hashed at a time, so that the arrays stay in the cache
SEPARATOR, LETTER, ALONE, NOTHING = range(4)  # what a character is for words
NO_BLANKS = (  # scripts that put no blanks between words: Thai to Lao, Myanmar, Khmer, kana to bopomofo, Chinese
    *((0x0E00, 0x0F00), (0x1000, 0x10A0), (0x1780, 0x1800), (0x3040, 0x3130), (0x31A0, 0x3200)),
    *((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x32400)),
)
LAST = 0x32400  # no letter has a higher code point
MULTIPLIERS = (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93)  # odd 64-bit numbers that spread a word's and a run's bits


class Words(NamedTuple):
    """The words of n texts, one text after the other."""

    hashes: np.ndarray  # [words] uint64
    begins: np.ndarray  # [n + 1] int64: which word is a text's first one
    text: np.ndarray  # [bytes] uint8: the folded texts
    starts: np.ndarray  # [words] int64: where a word is in `text`
    ends: np.ndarray

    def written(self, first: int, count: int) -> str:
        """`count` words from number `first` on, as text."""
        last = first + count - 1
        return " ".join(self.text[self.starts[first] : self.ends[last]].tobytes().decode().split())


def fold(text: str) -> bytes:
    """UTF-8 of `text` as words between blanks.

    Letters become small (casefold) and compatible forms one (NFKC); stress marks, soft hyphens and what else is not
    seen vanish; whatever is no letter, digit or mark becomes a blank. In scripts that put no blanks between words, such
    as Chinese and Thai, every character is a word.
    """
    if text.isascii():
        return text.encode().translate(ascii_table())
    points = np.frombuffer(unicodedata.normalize("NFKC", text).casefold().encode("utf-32-le", "surrogatepass"), "<u4")
    kinds = _kinds()[np.minimum(points, LAST)]
    kept = kinds != NOTHING
    points, kinds = points[kept], kinds[kept]
    alone = kinds == ALONE
    places = np.cumsum(1 + 2 * alone)  # a blank before and one behind
    folded = np.full(places[-1] if len(places) else 0, 0x20, "<u4")
    folded[places - 1 - alone] = np.where(kinds == SEPARATOR, 0x20, points)
    return folded.tobytes().decode("utf-32-le").encode()


@cache
def ascii_table() -> bytes:
    """A table for bytes.translate: ASCII capitals become small, ASCII that is not a letter or digit a blank."""
    table = bytearray(bytes(range(256)).lower())
    for code in range(0x80):
        if not chr(code).isalnum():
            table[code] = 0x20
    return bytes(table)


@cache
def _kinds() -> np.ndarray:
    """What each character is, [code points] uint8."""
    kinds = np.full(LAST + 1, SEPARATOR, np.uint8)
    for code in range(LAST):
        category = unicodedata.category(chr(code))
        if category[0] in "LNM":
            kinds[code] = LETTER
        elif category == "Cf":
            kinds[code] = NOTHING
    for first, behind in NO_BLANKS:
        of_script = kinds[first:behind]
        of_script[of_script == LETTER] = ALONE
    kinds[0x0300:0x0370] = NOTHING  # accents that compose with no letter, such as the stress of за́мок
    kinds[0xFE00:0xFE10] = NOTHING  # which form of an emoji is shown
    kinds[0x200B] = SEPARATOR  # a blank without width
    return kinds


def words_of(texts: Iterable[str]) -> Words:
    folded = [fold(text) for text in texts]
    text = np.frombuffer(b" ".join([b"", *folded, b" " * 8]), np.uint8)
    inside = text != 0x20  # `text` begins and ends with a blank
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    begins = np.searchsorted(starts, np.cumsum([0, *(len(one) + 1 for one in folded)]))
    return Words(hash_words(text, starts, ends - starts), begins, text, starts, ends)


def in_batches(texts: Iterable[str]) -> Iterator[Words]:
    """The words of some texts at a time, in order."""
    return map(words_of, batches(texts, BATCH))


def hash_words(text: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Hashes [words] uint64, from eight bytes of every word at a time; `text` goes on for 8 bytes after the last."""
    eights = np.ndarray(len(text) - 7, dtype="<u8", buffer=text, strides=(1,))  # those that begin at every byte
    masks = np.array([(1 << 8 * size) - 1 for size in range(9)], dtype=np.uint64)
    hashes = eights[starts] & masks[np.minimum(sizes, 8)]
    spread(hashes)
    done, longer = 8, np.flatnonzero(sizes > 8)
    while len(longer):
        further = hashes[longer] + (eights[starts[longer] + done] & masks[np.minimum(sizes[longer] - done, 8)])
        spread(further)
        hashes[longer] = further
        done += 8
        longer = longer[sizes[longer] > done]
    return hashes


def spread(hashes: np.ndarray) -> None:
    hashes *= np.uint64(MULTIPLIERS[0])
    hashes ^= hashes >> np.uint64(32)


def runs_of(words: Words, lengths: Iterable[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each of `lengths`, ascending: the length, the hashes of all runs of so many words of one text, and the
    number of each run's first word.
    """
    last = np.repeat(words.begins[1:], np.diff(words.begins)) - np.arange(len(words.hashes))  # words up to the end
    hashes, reached = words.hashes.copy(), 1
    for length in lengths:
        for later in range(reached, length):
            hashes = hashes[: max(len(words.hashes) - later, 0)]
            hashes *= np.uint64(MULTIPLIERS[1])
            hashes += words.hashes[later:]
        reached = length
        firsts = np.flatnonzero(last[: len(hashes)] >= length)
        found = hashes[firsts]
        spread(found)
        yield length, found, firsts


def shingles_of(words: Words, size: int, without_words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes [m] uint64 of the runs of `size` words of n texts, and where each text's begin, [n + 1] int64.

    A text of fewer words is one run; one without a word is known by its number in `without_words`, [n] uint64.
    """
    sizes = np.diff(words.begins)
    hashes, of_text = [without_words[sizes == 0]], [np.flatnonzero(sizes == 0)]
    for run, found, firsts in runs_of(words, range(1, size + 1)):
        texts = np.searchsorted(words.begins, firsts, side="right") - 1
        chosen = np.ones(len(found), bool) if run == size else sizes[texts] == run
        hashes.append(found[chosen])
        of_text.append(texts[chosen])
    order = np.argsort(np.concatenate(of_text), kind="stable")
    begins = np.searchsorted(np.concatenate(of_text)[order], np.arange(len(sizes) + 1))
    return np.concatenate(hashes)[order], begins
