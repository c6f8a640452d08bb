"""Sample order: sample number i of a run → (dataset, row), with nothing to remember between two samples.

1. Datasets have integer weights w_d, cumulated W_d, in all W. Of the first n samples, C_d(n) = floor(n·W_d / W) belong
   to the datasets up to d: each dataset's count is within one of n·w_d / W, at any n.
2. That alone would give the datasets in a fixed rhythm. So the stream is cut into cycles of L samples, a multiple of W
   (C_d is exact at their borders), and these into blocks of B = max(1024, ceil(W / w_min)) samples, the last one up to
   twice as long. Counts hold at block borders; inside a block a keyed permutation maps each sample to a slot, and the
   slots are laid out dataset after dataset.
3. A sample's slot gives its dataset and its ordinal in it: of the dataset's `rows`, ordinal // rows whole passes come
   before it, and a permutation keyed by that pass maps ordinal % rows to the row. So each row comes once per pass, in
   a new order each pass.
4. Where the weights are proportional to the rows (always so with one dataset), L is the number of all rows: no block
   crosses the end of an epoch, and each epoch is a permutation of all rows.

The permutations are Feistel networks over a mixed radix (Black and Rogaway, "Ciphers with Arbitrary Finite Domains",
2002), their round function and their keys SplitMix64's finaliser (Steele, Lea and Flood, 2014). All arithmetic is on
Python's integers: exact at any i, and the same with every version of every library.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate, pairwise
from math import gcd, isqrt, lcm
from typing import NamedTuple

from lit_gpt.errors import UserError, raise_problems

MIN_BLOCK = 1024
_ROUNDS, _SMALL_ROUNDS, _SMALL = 8, 24, 64
# Chi-square over 400,000 keys, of single positions and of five pairs of positions each: 8 rounds show no structure for
# sizes from 25 (least p 0.001 of 12), but do at 12 (p 1e-6) and below; 16 do at 6 (p 7e-6); 24 show none at any size.
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: SplitMix64's increment
_BLOCKS, _ROWS = 1, 2  # what a key is for


class Location(NamedTuple):
    dataset: int
    row: int
    epoch: int  # whole passes of the dataset before


@dataclass(frozen=True)
class SampleOrder:
    """The infinite stream of samples that `seed`, `rows` and `weights` (both per dataset, all ≥ 1) define."""

    seed: int
    rows: tuple[int, ...]
    weights: tuple[int, ...]
    block_size: int = field(init=False, repr=False, compare=False)  # the last block of a cycle has up to twice as many
    cycle: int = field(init=False, repr=False, compare=False)  # samples; one epoch where weights are natural
    _cumulative: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        assert self.rows and len(self.rows) == len(self.weights), "one weight per dataset"
        assert min(self.rows) >= 1 and min(self.weights) >= 1, "a dataset without rows or weight does not belong here"
        total_rows, total = sum(self.rows), sum(self.weights)
        natural = all(w * total_rows == r * total for r, w in zip(self.rows, self.weights, strict=True))
        weights = self.rows if natural else self.weights
        total = sum(weights)
        block = max(MIN_BLOCK, -(-total // min(weights)))
        cycle = total if natural else total * -(-block // total)
        object.__setattr__(self, "block_size", min(block, cycle))
        object.__setattr__(self, "cycle", cycle)
        object.__setattr__(self, "_cumulative", (0, *accumulate(weights)))

    def block(self, i: int) -> tuple[int, int]:
        """First sample of the block that sample `i` is in, and first sample after it."""
        cycle_start = i - i % self.cycle
        blocks = self.cycle // self.block_size
        index = min((i - cycle_start) // self.block_size, blocks - 1)
        end = self.cycle if index == blocks - 1 else (index + 1) * self.block_size
        return cycle_start + index * self.block_size, cycle_start + end

    def locate(self, i: int) -> Location:
        """Dataset, row and pass of sample `i` ≥ 0. Time and memory do not depend on `i`."""
        assert i >= 0
        start, end = self.block(i)
        slot = _permute(i - start, end - start, _key(self.seed, _BLOCKS, start))
        cumulative, total = self._cumulative, self._cumulative[-1]

        def slots_before(d: int) -> int:
            # Never falls as d grows: with N_d(n) = C_d(n) - C_{d-1}(n) > n·w_d/W - 1 at the block's end and
            # < n·w_d/W + 1 at its start, a block's count exceeds B·w_d/W - 2 ≥ -1, and is an integer.
            return end * cumulative[d] // total - start * cumulative[d] // total

        dataset = bisect_right(range(len(self.rows)), slot, key=slots_before) - 1
        before = start * cumulative[dataset + 1] // total - start * cumulative[dataset] // total
        epoch, position = divmod(before + slot - slots_before(dataset), self.rows[dataset])
        row = _permute(position, self.rows[dataset], _key(self.seed, _ROWS, dataset, epoch))
        return Location(dataset, row, epoch)

    def counts(self, n: int) -> tuple[int, ...]:
        """How many of the first `n` samples each dataset has: in closed form up to an end of its block."""
        start, end = self.block(n)
        nearer, others, sign = (start, range(start, n), 1) if n - start <= end - n else (end, range(n, end), -1)
        total = self._cumulative[-1]
        upto = [nearer * weight // total for weight in self._cumulative]
        counts = [upper - lower for lower, upper in pairwise(upto)]
        for i in others:
            counts[self.locate(i).dataset] += sign
        return tuple(counts)


def integer_weights(shares: Sequence[float | int | str | Fraction]) -> tuple[int, ...]:
    """The smallest integers in exactly the ratio of `shares`; 0.1 is 1/10. A UserError names those not above zero."""
    fractions, problems = [], []
    for share in shares:
        try:
            fractions.append(Fraction(str(share)))
            valid = fractions[-1] > 0
        except (ValueError, ZeroDivisionError):
            valid = False
        if not valid:
            problems.append(f"a dataset's share must be a number above 0, not {share!r}")
    raise_problems(problems)
    if not fractions:
        raise UserError("no dataset has a share above 0")
    denominator = lcm(*(fraction.denominator for fraction in fractions))
    weights = [int(fraction * denominator) for fraction in fractions]
    divisor = gcd(*weights)
    return tuple(weight // divisor for weight in weights)


def _mix(value: int) -> int:
    """SplitMix64's finaliser: a bijection of 64 bits in which each input bit changes each output bit half the time."""
    value &= _MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31


def _key(*values: int) -> int:
    """One 64-bit key from several integers, taken modulo 2^64."""
    key = 0
    for value in values:
        key = _mix(key + _GOLDEN + _mix(value))
    return key


def _permute(position: int, size: int, key: int) -> int:
    """Where the permutation of range(`size`) that `key` names takes `position`.

    The network permutes a·b ≥ `size` values, a = ceil(sqrt(size)), b = ceil(size / a); a result beyond `size` is fed
    back until one is within. Fewer than a values are beyond, so that takes 1 + 1/sqrt(size) turns on average.
    """
    a = isqrt(size - 1) + 1
    b = -(-size // a)
    while True:
        left, right = divmod(position, b)
        round_key = key
        for _ in range((_SMALL_ROUNDS if size <= _SMALL else _ROUNDS) // 2):
            left = (left + _mix(round_key + right)) % a
            right = (right + _mix(round_key + _GOLDEN + left)) % b
            round_key += 2 * _GOLDEN
        position = left * b + right
        if position < size:
            return position
