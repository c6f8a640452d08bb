"""Texts to signatures (`sign_texts`, in many processes), and which texts repeat an earlier one by these
(`find_repeats`).

Near-duplicates are found by MinHash and banding (Broder, "On the resemblance and containment of documents", 1997;
Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3). The similarity of two texts is the Jaccard
index of their sets of shingles, a shingle being `SHINGLE` consecutive words; see `sign_texts` for what is a word.
"""

import hashlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lit_gpt.errors import UserError
from utils.prepare.words import MULTIPLIERS, ascii_table, hash_words, spread

PERMUTATIONS = 128  # slots of a sketch: the estimated index has a standard deviation of 0.035 at 0.8, 0.044 at 0.5
SEED = 42
SHINGLE = 5  # words per shingle, the customary choice for finding copies among natural texts
LONGEST_WORD = 64  # bytes; whatever is longer (base64, DNA, a table without blanks) counts character by character
PIECE = 1 << 18  # bytes hashed at a time, so that the arrays stay in the cache: longer texts are cut, shorter joined
MIN_FOUND = 0.9  # least share of the pairs whose similarity is exactly the threshold that banding brings to be compared
MAX_COMPARED = 32  # of a bucket: texts of one template may all meet in one, and comparing all takes quadratic time
ROWS_AT_ONCE = 1 << 14


class Signatures(NamedTuple):
    """What `find_repeats` needs to know of n texts: 16 bytes each, and 512 more for near-duplicates."""

    exact: np.ndarray  # [n, 2] uint64: a 128-bit digest, equal for texts that differ only in white space at the ends
    sketches: np.ndarray | None  # [n, `PERMUTATIONS`] uint32: the share of equal slots estimates the Jaccard index


def sign_texts(texts: list[str], near: bool) -> Signatures:
    """Digests (BLAKE2b of the stripped UTF-8) and, if `near`, MinHash sketches of `texts`, the same on any machine.

    White space and punctuation separate words; ASCII capitals count as small letters. In scripts from U+0800 on, many
    of which put no blanks between words (Chinese, Japanese, Thai), and in words of more than `LONGEST_WORD` bytes,
    every character is a word. A text of fewer than `SHINGLE` words is one shingle; texts without a word are equal.
    Texts are cut every `PIECE` bytes, which changes some 10 in 40,000 shingles. A UserError if `near` needs rensa.
    """
    return Signatures(digests_of(texts), _sketch(list(map(_encoded, texts))) if near else None)


def _encoded(text: str) -> bytes:
    return text.strip().encode("utf-8", "surrogatepass")


def digests_of(texts: list[str]) -> np.ndarray:
    """128-bit BLAKE2b of each text without the white space at its ends, [n, 2] uint64."""
    digests = [hashlib.blake2b(_encoded(text), digest_size=16).digest() for text in texts]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64).reshape(-1, 2)


def sketch_shingles(hashes: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """Rensa's full-set R-MinHash of n sets, of which each has a member: [n, `PERMUTATIONS`] uint32."""
    try:
        from rensa import RMinHash  # an optional package
    except ImportError:
        raise UserError("looking for nearly equal texts needs rensa: pip install rensa") from None
    if len(begins) == 1:
        return np.zeros((0, PERMUTATIONS), np.uint32)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, begins, PERMUTATIONS, SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32)


def _sketch(texts: list[bytes]) -> np.ndarray:
    """Sketches of each text's shingles: [n, `PERMUTATIONS`] uint32."""
    sketches = np.full((len(texts), PERMUTATIONS), np.iinfo(np.uint32).max, dtype=np.uint32)
    for owners, pieces in _batches(texts):
        hashes, offsets = _shingle_hashes(pieces)
        # the sketch of a union is the minimum of the sketches: the pieces of a long text need not be in memory together
        sketches[owners] = np.minimum(sketches[owners], sketch_shingles(hashes, offsets))
    return sketches


def _batches(texts: list[bytes]) -> Iterator[tuple[list[int], list[bytes]]]:
    """Pieces of texts and which texts these are, up to `PIECE` bytes at a time, no text twice in one batch."""
    owners, pieces, size = [], [], 0
    for owner, text in enumerate(texts):
        for start in range(0, max(len(text), 1), PIECE):
            piece = text[start : start + PIECE]
            if owners and size + len(piece) > PIECE:
                yield owners, pieces
                owners, pieces, size = [], [], 0
            owners.append(owner)
            pieces.append(piece)
            size += len(piece) + PERMUTATIONS * 4  # each takes room for a sketch, however short it is
    if owners:
        yield owners, pieces


def _shingle_hashes(pieces: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes [m] uint64 of all pieces' shingles, some repeated, and offsets [pieces + 1]: where each piece's begin."""
    blob = bytearray(b" ".join([b"", *pieces, b" " * 8]).translate(ascii_table()))
    text = np.frombuffer(blob, dtype=np.uint8)
    if not blob.isascii():
        _blank_punctuation(text)
    starts, ends = _word_bounds(text)
    words = hash_words(text, starts, ends - starts)
    piece_ends = np.searchsorted(starts, np.cumsum([len(piece) + 1 for piece in pieces]))
    counts = np.diff(piece_ends, prepend=0)
    # missing words are zeros; the last shingles of a piece, which reach into the next one, repeat its first
    words = np.insert(words, np.repeat(piece_ends, np.maximum(SHINGLE - counts, 0)), 0)
    offsets = np.append(0, np.cumsum(np.maximum(counts, SHINGLE)))
    hashes = words.copy()
    words = np.append(words, np.zeros(SHINGLE - 1, dtype=np.uint64))
    for later in range(1, SHINGLE):
        hashes *= np.uint64(MULTIPLIERS[1])
        hashes += words[later : later + len(hashes)]
    spread(hashes)
    for last in range(1, SHINGLE):
        hashes[offsets[1:] - last] = hashes[offsets[:-1]]
    return hashes, offsets


def _blank_punctuation(text: np.ndarray) -> None:
    """Overwrites with blanks U+0080-00BF (« » and the no-break space), U+2000-207F (’ “ — …), U+3000-303F (、。「)."""
    at = np.flatnonzero(text == 0xC2)
    text[at] = text[at + 1] = 0x20
    for first, second_from, second_to in ((0xE2, 0x80, 0x81), (0xE3, 0x80, 0x80)):  # bytes of such characters
        at = np.flatnonzero(text == first)
        at = at[(text[at + 1] >= second_from) & (text[at + 1] <= second_to)]
        text[at] = text[at + 1] = text[at + 2] = 0x20


def _word_bounds(text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inside = text != 0x20  # `text` begins and ends with a blank
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    begins = text >= 0xE0  # the first byte of a character from U+0800 on
    for run in np.flatnonzero(ends - starts > LONGEST_WORD):
        characters = text[starts[run] : ends[run]] & 0xC0 != 0x80
        begins[starts[run] : ends[run]] |= characters
    if not begins.any():
        return starts, ends
    begins[starts] = True
    starts = np.flatnonzero(begins)
    following = np.append(starts[1:], len(text))
    return starts, np.minimum(following, ends[np.searchsorted(ends, starts, side="right")])


def find_repeats(exact: np.ndarray, sketches: np.ndarray | None, threshold: float) -> np.ndarray:
    """For each of n documents the index of the earlier one that it duplicates, -1 if it is to stay: [n] int64.

    `exact` and `sketches` (may be a memory map) are `sign_texts` of all documents, in order. Equal digests are
    duplicates. Another document is a near-duplicate of the first earlier one *that stays* whose estimated Jaccard index
    with it is at least `threshold` (over 0, at most 1). So where A is like B and B like C but A not like C, C stays.

    At a threshold of 0.8 a pair counts as duplicates with a probability of 6e-7 if its true index is 0.6, of 0.005 at
    0.7, 0.5 at 0.8 and 0.9996 at 0.9. Banding compares at least 90 % of the pairs at the threshold, over 99 % of those
    0.1 above. Time is linear but for sorting. Memory per document is 55 bytes; for near-duplicates 190 at a threshold
    of 0.8 (16 bands) and 450 at 0.5 (42 bands).
    """
    assert 0 < threshold <= 1, threshold
    result = find_equal(exact)
    if sketches is None:
        return result
    copies, originals = np.flatnonzero(result >= 0), np.flatnonzero(result < 0)
    result[originals] = _find_near(sketches, originals, threshold)
    behind = result[result[copies]]
    result[copies] = np.where(behind >= 0, behind, result[copies])
    return result


def find_equal(exact: np.ndarray) -> np.ndarray:
    """For each document the first one with the same digest, -1 if it is that: [n] int64."""
    order = np.lexsort((exact[:, 1], exact[:, 0]))  # stable: equal digests stay in the order of the documents
    ordered = exact[order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = order[is_first][np.cumsum(is_first) - 1]
    result = np.full(len(order), -1, dtype=np.int64)
    result[order[~is_first]] = first[~is_first]
    return result


def _find_near(sketches: np.ndarray, documents: np.ndarray, threshold: float) -> np.ndarray:
    """For each of `documents` [m], ascending, the one of them that it is a near-duplicate of, -1 if it stays."""
    # not rensa's index: it takes 2.3 to 3 kB per document (here 0.2 kB), cannot be filled from arrays, and compares
    # with every document of a bucket (40,000 texts of one template take 25 s, twice as many four times that)
    bands, rows = _banding(sketches.shape[1], threshold)
    buckets, capacities = _fill_buckets(sketches, documents, bands, rows)
    begins = np.cumsum(capacities, dtype=np.int64) - capacities
    stayed = np.zeros(capacities.sum(dtype=np.int64), dtype=buckets.dtype)  # the first to stay, bucket after bucket
    filled = np.zeros_like(capacities)
    slots = np.arange(MAX_COMPARED)
    needed = math.ceil(threshold * sketches.shape[1] - 1e-9)
    result = np.full(len(documents), -1, dtype=np.int64)
    for position in np.flatnonzero((buckets >= 0).any(axis=1)):
        own, document = buckets[position], documents[position]
        own = own[own >= 0]
        counts = filled[own]
        if counts.any():
            candidates = stayed[(begins[own, None] + slots)[slots < counts[:, None]]]
            similar = candidates[(sketches[candidates] == sketches[document]).sum(axis=1) >= needed]
            if len(similar):
                result[position] = similar.min()
                continue
        own = own[counts < capacities[own]]
        stayed[begins[own] + filled[own]] = document
        filled[own] += 1
    return result


def _banding(permutations: int, threshold: float) -> tuple[int, int]:
    """Bands, and slots per band: as long as possible with `MIN_FOUND` of the pairs at the threshold alike in a band."""
    for rows in range(permutations, 1, -1):
        bands = permutations // rows
        if 1 - (1 - threshold**rows) ** bands >= MIN_FOUND:
            return bands, rows
    return permutations, 1


def _fill_buckets(sketches: np.ndarray, documents: np.ndarray, bands: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Each document's bucket in each band of `rows` slots, [m, bands], -1 where it is alone; and how many documents
    each bucket may have to remember for later ones, uint8 [buckets], at most `MAX_COMPARED`.
    """
    multipliers = np.random.default_rng(SEED).integers(0, 1 << 63, rows, dtype=np.uint64) * 2 + 1
    dtype = np.int32 if len(sketches) * bands < 1 << 31 else np.int64
    buckets = np.full((len(documents), bands), -1, dtype)
    keys = np.empty(len(documents), dtype=np.uint64)
    capacities, known = [], 0
    for band in range(bands):
        for start in range(0, len(documents), ROWS_AT_ONCE):
            part = sketches[documents[start : start + ROWS_AT_ONCE], band * rows : (band + 1) * rows]
            keys[start : start + ROWS_AT_ONCE] = part.astype(np.uint64) @ multipliers
        _, bucket, sizes = np.unique(keys, return_inverse=True, return_counts=True)
        shared = sizes > 1
        numbers = np.where(shared, known + np.cumsum(shared) - 1, -1)
        buckets[:, band] = numbers[bucket]
        capacities.append(np.minimum(sizes[shared] - 1, MAX_COMPARED).astype(np.uint8))
        known += int(shared.sum())
    return buckets, np.concatenate(capacities)
