"""Groups of nearly equal prompts, and which groups are held out: none lies on both sides of a split.

Two prompts are nearly equal if the Jaccard index of their sets of word pairs is at least `SAME`. Groups are the
connected components: with A like B and B like C, all three are one group. Pairs, because of prompts that differ in one
word of ten, two in three words are alike, and most are another question ("the sum of 12 and 30"); sets of single words
would also make "is A above B" and "is B above A" one prompt, and runs of five miss what has a word put in.

MinHash brings pairs to be compared, in bands of `ROWS` slots; a pair whose index is `SAME` is missed with a probability
of 5e-5 by all of them, and of 1e-4 by `LEAST_EQUAL`, so of less than 1e-3 together. Then the sets themselves decide, or
for prompts of more than `MOST_SHINGLES` pairs the sketches: these may join what is a little less alike, as may a bucket
with too many pairs to compare. Coarser groups are safe, finer ones are not.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from utils.prepare.signatures import PERMUTATIONS, digests_of, find_equal, sketch_shingles
from utils.prepare.words import in_batches, shingles_of

PAIR = 2  # words
SAME = 0.8  # least Jaccard index of prompts that are nearly equal
ROWS = 5  # slots of a band: with 25 bands a pair at `SAME` is missed with (1 - 0.8**5)**25 = 5e-5
LEAST_EQUAL = 85  # of 128 slots, for sets that are compared: at `SAME`, 103 are equal on average, 4.5 more or less
MOST_SHINGLES = 256  # pairs of words that are kept of a prompt, to be compared one by one: 1 KB
SMALL = 16  # prompts in a bucket whose pairs are all compared at once with those of other buckets
MOST_CELLS = 1 << 25  # of a bucket's matrix, prompts times pairs of words: 128 MB
MOST_PRODUCTS = 1 << 37  # of its product with itself, 5 s: those of 10,000 prompts with 1,400 pairs in common
AT_ONCE = 1 << 16  # pairs


class Prompts(NamedTuple):
    """What is known of n prompts: 16 + 128 + 8 bytes each, and 4 per pair of words."""

    exact: np.ndarray  # [n, 2] uint64: digests
    sketches: np.ndarray  # [n, `PERMUTATIONS`] uint8: a byte of every slot of MinHash
    counts: np.ndarray  # [n] int64: pairs of words, or 0 for more than are kept
    shingles: np.ndarray  # [sum of counts] uint32: their hashes, of each prompt sorted and distinct


def sign_prompts(prompts: list[str]) -> Prompts:
    exact = digests_of(prompts)
    sketches, counts, shingles = [np.zeros((0, PERMUTATIONS), np.uint8)], [], [np.zeros(0, np.uint32)]
    for words in in_batches(prompts):
        begin = sum(map(len, counts))
        without_words = exact[begin : begin + len(words.begins) - 1, 0]
        hashes, begins = shingles_of(words, PAIR, without_words)
        sketches.append(sketch_shingles(hashes, begins).astype(np.uint8))
        of_batch, of_prompt = _distinct(hashes, begins)
        sizes = np.bincount(of_prompt, minlength=len(begins) - 1)
        is_kept = sizes <= MOST_SHINGLES
        shingles.append(of_batch[is_kept[of_prompt]])
        counts.append(np.where(is_kept, sizes, 0))
    all_counts = np.concatenate([np.zeros(0, np.int64), *counts])
    return Prompts(exact, np.concatenate(sketches), all_counts, np.concatenate(shingles))


def _distinct(hashes: np.ndarray, begins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct hashes of each prompt, sorted, as uint32, and which prompt each is of."""
    of_prompt = np.repeat(np.arange(len(begins) - 1, dtype=np.uint64), np.diff(begins))
    both = np.unique(of_prompt << np.uint64(32) | hashes >> np.uint64(32))
    return both.astype(np.uint32), (both >> np.uint64(32)).astype(np.int64)


class Groups(NamedTuple):
    first: np.ndarray  # [n] int64: the first prompt of each one's group
    coarse: int  # prompts that are in one group because a bucket had too many pairs to compare


def find_groups(prompts: Prompts) -> Groups:
    """Time is linear but for sorting, unless many thousands of prompts are a little less alike than `SAME`."""
    equal = find_equal(prompts.exact)
    joiner = _Joiner(prompts, np.flatnonzero(equal < 0))
    for band in range(PERMUTATIONS // ROWS):
        joiner.join_band(band)
    first = np.arange(len(equal))
    first[joiner.places] = joiner.places[joiner.roots()]
    return Groups(np.where(equal < 0, first, first[equal]), joiner.coarse)


def held_out(exact: np.ndarray, first: np.ndarray, share: float, is_test: np.ndarray) -> np.ndarray:
    """Which prompts are held out, [n] bool: those of a group with one that `is_test` [n], and else by the group's hash.

    That is a half of the smallest digest in the group, which does not depend on the order of the prompts. The other
    half decides which digest is the smallest, so that this one is as large in large groups as in small ones.
    """
    order = np.lexsort((exact[:, 1], exact[:, 0], first))
    groups, begins = np.unique(first[order], return_index=True)
    decides = exact[order[begins], 1]
    chosen = decides < np.uint64(int(share * 2**64))
    chosen |= np.isin(groups, first[is_test])
    return chosen[np.searchsorted(groups, first)]


class _Joiner:
    """Joins prompts at `places` among all; a prompt is here a position in `places`."""

    def __init__(self, prompts: Prompts, places: np.ndarray) -> None:
        self.places = places
        self.coarse = 0
        self._prompts = prompts
        self._begins = np.cumsum(prompts.counts) - prompts.counts
        self._parents = np.arange(len(places))

    def roots(self) -> np.ndarray:
        """The smallest prompt that each is joined with, directly or over others."""
        parents = self._parents
        while (parents[parents] != parents).any():
            parents = parents[parents]
        self._parents = parents
        return parents

    def join_band(self, band: int) -> None:
        keys = self._keys(band)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        begins = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(keys) else np.zeros(0, np.int64)
        sizes = np.diff(np.append(begins, len(keys)))
        in_small = np.repeat((sizes > 1) & (sizes <= SMALL), sizes)
        members, of_bucket = order[in_small], ordered[in_small]
        for apart in range(1, SMALL):
            together = np.flatnonzero(of_bucket[apart:] == of_bucket[:-apart])
            self._join_pairs(members[together], members[together + apart])
        for begin, size in zip(begins[sizes > SMALL].tolist(), sizes[sizes > SMALL].tolist(), strict=True):
            self._join_bucket(order[begin : begin + size])

    def _keys(self, band: int) -> np.ndarray:
        slots = slice(band * ROWS, (band + 1) * ROWS)
        keys = np.empty(len(self.places), np.uint64)
        for start in range(0, len(keys), AT_ONCE):
            part = self._prompts.sketches[self.places[start : start + AT_ONCE], slots].astype(np.uint64)
            keys[start : start + AT_ONCE] = part @ (np.uint64(256) ** np.arange(ROWS, dtype=np.uint64))
        return keys

    def _join_pairs(self, one: np.ndarray, other: np.ndarray) -> None:
        roots = self.roots()
        apart = roots[one] != roots[other]
        one, other = one[apart], other[apart]
        for start in range(0, len(one), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            alike = self._are_alike(one[part], other[part])
            for pair in zip(one[part][alike].tolist(), other[part][alike].tolist(), strict=True):
                self._join(*pair)

    def _join_bucket(self, members: np.ndarray) -> None:
        roots = np.array([self._root(member) for member in members.tolist()])
        if (roots == roots[0]).all():
            return
        places = self.places[members]
        counts, sketches = self._prompts.counts[places], self._prompts.sketches[places]
        matrix = self._common_matrix(places)
        if matrix is None:
            self.coarse += len(members)
            for member in members[1:].tolist():
                self._join(int(members[0]), member)
            return
        is_long = counts == 0
        for start in range(0, len(members), 256):
            common = matrix[start : start + 256] @ matrix.T
            for row, of_row in enumerate(common, start=start):
                alike = of_row >= SAME * (counts[row] + counts - of_row) - 1e-6
                unknown = is_long | is_long[row]
                alike[unknown] = (sketches[unknown] == sketches[row]).sum(axis=1) >= LEAST_EQUAL
                for root in np.unique(roots[alike & (roots != roots[row])]).tolist():
                    self._join(int(roots[row]), root)
                    roots[roots == root] = roots[row]

    def _common_matrix(self, places: np.ndarray) -> np.ndarray | None:
        """Which prompt has which of the word pairs that are in two or more, [prompts, pairs]; its product with itself
        is how many two prompts have in common. None where that is too much.
        """
        sets = self._sets(places)
        _, which, sizes = np.unique(sets.astype(np.uint32), return_inverse=True, return_counts=True)
        is_common = sizes > 1
        columns = int(is_common.sum())
        if len(places) * columns > MOST_CELLS or len(places) ** 2 * columns > MOST_PRODUCTS:
            return None
        chosen = is_common[which]
        matrix = np.zeros((len(places), columns), np.float32)
        matrix[(sets[chosen] >> np.uint64(32)).astype(np.int64), (np.cumsum(is_common) - 1)[which[chosen]]] = 1
        return matrix

    def _join(self, one: int, other: int) -> None:
        one, other = self._root(one), self._root(other)
        self._parents[max(one, other)] = min(one, other)

    def _root(self, prompt: int) -> int:
        parents = self._parents
        while parents[prompt] != prompt:
            parents[prompt] = parents[parents[prompt]]
            prompt = int(parents[prompt])
        return prompt

    def _are_alike(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        one, other = self.places[one], self.places[other]
        sketches, counts = self._prompts.sketches, self._prompts.counts
        alike = np.zeros(len(one), bool)
        for start in range(0, len(one), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            alike[part] = (sketches[one[part]] == sketches[other[part]]).sum(axis=1) >= LEAST_EQUAL
        to_do = np.flatnonzero(alike & (counts[one] > 0) & (counts[other] > 0))
        alike[to_do] = self._share(one[to_do], other[to_do])
        return alike

    def _share(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Whether the Jaccard index of each pair's sets is at least `SAME`."""
        counts = self._prompts.counts
        total = counts[one] + counts[other]
        common = np.zeros(len(one), np.int64)
        for chosen in _parts(total):
            sets = np.concatenate([self._sets(one[chosen]), self._sets(other[chosen])])
            sets.sort()
            twice = sets[1:][sets[1:] == sets[:-1]] >> np.uint64(32)
            common[chosen] = np.bincount(twice.astype(np.int64), minlength=chosen.stop - chosen.start)
        return common >= SAME * (total - common) - 1e-9

    def _sets(self, prompts: np.ndarray) -> np.ndarray:
        """The pairs of words of some prompts, each with the number of its prompt among these above it."""
        counts = self._prompts.counts[prompts]
        ends = np.cumsum(counts)
        places = np.repeat(self._begins[prompts] - (ends - counts), counts) + np.arange(counts.sum())
        number = np.repeat(np.arange(len(prompts), dtype=np.uint64), counts)
        return number << np.uint64(32) | self._prompts.shingles[places].astype(np.uint64)


def _parts(sizes: np.ndarray) -> Iterator[slice]:
    """Slices of pairs whose sets have about a million members together."""
    begin = 0
    ends = np.cumsum(sizes)
    while begin < len(sizes):
        reached = ends[begin] - sizes[begin] + (1 << 20)
        end = max(begin + 1, int(np.searchsorted(ends, reached)))
        yield slice(begin, end)
        begin = end
