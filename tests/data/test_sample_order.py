from __future__ import annotations

import math
import pickle
import random
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gpt.errors import UserError
from tests.work_counts import work_of
from utils.data.sample_order import Location, SampleOrder, _key, _mix, _permute, integer_weights

BIG = 10**12
NATURAL_ROWS = [(1,), (7,), (1000,), (3, 10), (100, 200), (1, 1, 1), (5000, 1, 17), (999, 3001)]

seeds = st.integers(0, 2**64 - 1)


@st.composite
def orders(draw: st.DrawFn, max_rows: int = 5000) -> SampleOrder:
    rows = draw(st.lists(st.integers(1, max_rows), min_size=1, max_size=6))
    weights = draw(st.lists(st.integers(1, 1000), min_size=len(rows), max_size=len(rows)))
    return SampleOrder(draw(seeds), tuple(rows), tuple(weights))


def brute_force_block(order: SampleOrder, i: int) -> tuple[int, int]:
    """The borders of the block of `i`, found by walking through the cycle's blocks one by one."""
    weights, rows = order.weights, order.rows
    natural = len({Fraction(w, r) for w, r in zip(weights, rows, strict=True)}) == 1
    weights = rows if natural else weights
    block = max(1024, math.ceil(sum(weights) / min(weights)))
    cycle = sum(weights) if natural else sum(weights) * math.ceil(block / sum(weights))
    borders = [j * block for j in range(max(1, cycle // block))] + [cycle]
    before = i // cycle * cycle
    for start, end in pairwise(borders):
        if start <= i - before < end:
            return before + start, before + end
    raise AssertionError


def chi_square_p(observed: list[int]) -> float:
    """Wilson and Hilferty's approximation (1931) of the p-value that `observed` comes from a uniform distribution."""
    expected, degrees = sum(observed) / len(observed), len(observed) - 1
    chi_square = sum((count - expected) ** 2 / expected for count in observed)
    z = ((chi_square / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / math.sqrt(2 / (9 * degrees))
    return 0.5 * math.erfc(z / math.sqrt(2))


# Permutations


def test_the_mixer_is_splitmix64():
    # The first outputs of the reference implementation (https://prng.di.unimi.it/splitmix64.c) seeded with 1234567.
    golden = 0x9E3779B97F4A7C15
    outputs = [_mix(1234567 + golden * n) for n in (1, 2, 3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("sizes", [range(1, 300), range(1020, 1030), [2047, 2500, 4095, 4096, 4097]])
def test_permute_is_a_bijection(sizes):
    for size in sizes:
        assert sorted(_permute(i, size, _key(size, 5)) for i in range(size)) == list(range(size)), size


@given(st.integers(1, 10**30), st.integers(0), seeds)
def test_permute_stays_in_range_at_any_size(size, position, key):
    assert 0 <= _permute(position % size, size, key) < size


@given(st.integers(10**6, 10**15), seeds)
def test_permute_of_large_sizes_is_injective_on_a_sample(size, key):
    positions = random.Random(key).sample(range(size), 200)
    assert len({_permute(position, size, key) for position in positions}) == 200


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_permutation_of_a_small_size_is_equally_likely(size):
    keys = 2000 * size
    seen = Counter(tuple(_permute(i, size, _key(11, k)) for i in range(size)) for k in range(keys))
    observed = list(seen.values()) + [0] * (math.factorial(size) - len(seen))
    assert chi_square_p(observed) > 1e-5


@pytest.mark.parametrize("size", [3, 8, 10, 65, 100])
def test_positions_and_adjacent_pairs_are_uniform(size):
    keys = 6000
    p_values = []
    for first in (0, size // 2, size - 2):
        pairs = [(_permute(first, size, k), _permute(first + 1, size, k)) for k in (_key(3, n) for n in range(keys))]
        position, distance = Counter(a for a, _ in pairs), Counter((b - a) % size for a, b in pairs)
        p_values.append(chi_square_p([position[value] for value in range(size)]))
        p_values.append(chi_square_p([distance[value] for value in range(1, size)]))
        if size <= 10:
            both = Counter(pairs)
            p_values.append(chi_square_p([both[a, b] for a in range(size) for b in range(size) if a != b]))
    assert min(p_values) > 1e-5


def test_within_one_permutation_neighbours_are_unrelated():
    size = 10_000
    permuted = [_permute(i, size, _key(1)) for i in range(size)]
    distances = Counter((b - a) % size * 100 // size for a, b in pairwise(permuted))
    assert chi_square_p([distances[bucket] for bucket in range(100)]) > 1e-5
    fixed_points = sum(i == p for i, p in enumerate(permuted))
    assert fixed_points <= 6  # Poisson with mean 1: 6 or fewer in 9999 of 10000


# Shares


@given(orders(), st.integers(0, 2 * BIG))
def test_blocks_tile_the_stream(order, i):
    start, end = order.block(i)
    assert start <= i < end
    assert order.block(start) == order.block(end - 1) == (start, end)
    assert order.block(end)[0] == end
    assert order.block_size <= end - start < 2 * order.block_size
    assert order.block_size >= 1024 or end - start == order.cycle == sum(order.rows)


@given(orders(), st.integers(0, 10_000))
def test_blocks_are_those_of_the_definition(order, i):
    assert order.block(i) == brute_force_block(order, i)


@given(orders(), st.integers(0, BIG))
def test_shares_are_exact_to_one_sample_at_every_block_start(order, i):
    start, end = order.block(i)
    for border in (start, end):
        counts = order.counts(border)
        assert sum(counts) == border
        total = sum(order.weights)
        for count, weight in zip(counts, order.weights, strict=True):
            assert abs(count * total - border * weight) < total  # |count - border·w/W| < 1, in integers
    assert all(after >= before for before, after in zip(order.counts(start), order.counts(end), strict=True))


@settings(max_examples=30, deadline=None)
@given(orders(), st.integers(0, 4000))
def test_counts_agree_with_counting(order, n):
    counted = Counter(order.locate(i).dataset for i in range(n))
    assert order.counts(n) == tuple(counted[d] for d in range(len(order.rows)))


@pytest.mark.parametrize(
    ("rows", "weights"), [((50, 70), (1, 1)), ((3, 400, 9), (5, 2, 7)), ((2000, 5), (997, 1)), ((4, 4, 4), (1, 2, 3))]
)
def test_several_cycles_against_a_brute_force_twin(rows, weights):
    order = SampleOrder(5, rows, weights)
    counts, n = [0] * len(rows), 0
    locations: list[list[Location]] = [[] for _ in rows]
    for _ in range(5 * (order.cycle // order.block_size)):
        start, end = order.block(n)
        assert order.counts(start) == tuple(counts)
        for i in range(start, end):
            location = order.locate(i)
            counts[location.dataset] += 1
            locations[location.dataset].append(location)
        n = end
    assert n == 5 * order.cycle
    assert [count * sum(weights) for count in counts] == [n * weight for weight in weights]
    for dataset, size in enumerate(rows):
        seen = Counter((location.epoch, location.row) for location in locations[dataset])
        passes, rest = divmod(counts[dataset], size)
        assert set(seen.values()) == {1}
        assert {key for key in seen if key[0] < passes} == {(e, row) for e in range(passes) for row in range(size)}
        assert sum(epoch == passes for epoch, _ in seen) == rest


def test_a_tiny_share_makes_long_blocks_in_which_it_still_comes():
    order = SampleOrder(0, (100, 100), (999_999, 1))
    assert order.block_size == 1_000_000
    assert order.counts(7_000_000) == (6_999_993, 7)
    assert order.locate(BIG).dataset in (0, 1)


# Passes


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=4), seeds, st.data())
def test_each_row_comes_once_per_pass(rows, seed, data):
    weights = data.draw(st.lists(st.integers(1, 20), min_size=len(rows), max_size=len(rows)))
    order = SampleOrder(seed, tuple(rows), tuple(weights))
    end = order.block(3000)[1]
    seen = Counter(order.locate(i) for i in range(end))
    assert set(seen.values()) == {1}
    for dataset, count in enumerate(order.counts(end)):
        for epoch in range(count // rows[dataset]):
            assert all(seen[Location(dataset, row, epoch)] for row in range(rows[dataset]))


def test_the_order_differs_between_passes_datasets_and_seeds():
    def rows_in_order(seed: int, dataset: int, epoch: int) -> list[int]:
        order = SampleOrder(seed, (200, 200), (1, 1))
        found = [order.locate(i) for i in range(3000)]
        return [location.row for location in found if (location.dataset, location.epoch) == (dataset, epoch)]

    settings_seen = [(seed, dataset, epoch) for seed in (0, 1, 2**63) for dataset in (0, 1) for epoch in (0, 1, 2)]
    sequences = {tuple(rows_in_order(*values)) for values in settings_seen}
    assert len(sequences) == len(settings_seen)
    agreements = sum(a == b for a, b in zip(rows_in_order(0, 0, 0), rows_in_order(0, 0, 1), strict=True))
    assert agreements <= 8  # Poisson with mean 1


@pytest.mark.parametrize("rows", NATURAL_ROWS)
@pytest.mark.parametrize("factor", [1, 3])
def test_natural_weights_give_epochs_that_are_permutations_of_all_rows(rows, factor):
    order = SampleOrder(9, rows, tuple(factor * size for size in rows))
    total = sum(rows)
    assert order.cycle == total
    for epoch in (0, 1, 10**9):
        found = [order.locate(i) for i in range(epoch * total, (epoch + 1) * total)]
        assert sorted(found) == [Location(d, row, epoch) for d, size in enumerate(rows) for row in range(size)]


def test_reduced_natural_weights_give_the_same_stream():
    assert integer_weights((1000, 2500)) == (2, 5)
    whole, reduced = SampleOrder(4, (1000, 2500), (1000, 2500)), SampleOrder(4, (1000, 2500), (2, 5))
    assert all(whole.locate(i) == reduced.locate(i) for i in range(0, 20_000, 7))


def test_a_block_mixes_its_datasets():
    order = SampleOrder(2, (10**6, 10**6), (1, 1))
    datasets = [order.locate(i).dataset for i in range(order.block_size * 8)]
    changes = sum(a != b for a, b in pairwise(datasets))
    assert abs(changes - len(datasets) / 2) < 5 * math.sqrt(len(datasets)) / 2


# The stream as runs use it


@given(orders(), st.lists(st.integers(0, 2 * BIG), min_size=1, max_size=20))
def test_locate_is_a_pure_function(order, samples):
    first = [order.locate(i) for i in samples]
    again = SampleOrder(order.seed, order.rows, order.weights)
    assert [again.locate(i) for i in reversed(samples)] == first[::-1]
    assert order == again and hash(order) == hash(again) and pickle.loads(pickle.dumps(order)) == order


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7])
def test_any_number_of_processes_sees_the_same_steps(processes):
    order, per_step = SampleOrder(6, (37, 500, 11), (5, 3, 2)), 84
    for step in (0, 1, 30, 10**10):
        samples = range(step * per_step, (step + 1) * per_step)
        split = [order.locate(i) for rank in range(processes) for i in samples[rank::processes]]
        assert Counter(split) == Counter(map(order.locate, samples))


def test_known_values_so_that_no_release_changes_a_running_experiment():
    order = SampleOrder(1337, (5000, 120, 33), (6, 3, 1))
    found = [order.locate(i) for i in (0, 1, 2, 1023, 1024, 10**6, 10**12, 10**24)]
    assert [tuple(location) for location in found] == [
        (0, 2677, 0),
        (0, 1755, 0),
        (0, 3076, 0),
        (2, 3, 1),
        (2, 19, 2),
        (1, 9, 2499),
        (0, 4987, 119_999_999),
        (1, 69, 2_499_999_999_999_999_999_999),
    ]


def test_seeds_differ():
    streams = {tuple(SampleOrder(seed, (50, 50), (1, 2)).locate(i) for i in range(50)) for seed in range(50)}
    assert len(streams) == 50


@pytest.mark.parametrize("i", [BIG, 10**18, 10**30])
def test_the_work_of_a_lookup_does_not_depend_on_the_sample_number(i):
    order = SampleOrder(0, tuple(range(1000, 1500)), tuple(range(1, 501)))
    first, later = (work_of(lambda i=i: [order.locate(k) for k in range(i, i + 50)]) for i in (0, i))
    # which of the two goes round the permutations' network more often is chance: by 3 % here
    assert later.lines < 1.1 * first.lines
    assert later.peak < 2 * first.peak + 10_000


# Weights


@pytest.mark.parametrize(
    ("shares", "weights"),
    [
        ([1], (1,)),
        ([0.5, 0.5], (1, 1)),
        ([0.1, 0.2, 0.7], (1, 2, 7)),
        (["1/3", "2/3"], (1, 2)),
        ([1e-9, 1], (1, 10**9)),
        (["0.25", 1, 3.5], (1, 4, 14)),
        ([100, 250], (2, 5)),
        ([0.1, 0.1, 0.1], (1, 1, 1)),
    ],
)
def test_integer_weights(shares, weights):
    assert integer_weights(shares) == weights


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=8), st.integers(1, 1000))
def test_integer_weights_keep_the_ratio_and_have_no_common_divisor(shares, factor):
    weights = integer_weights([share * factor for share in shares])
    assert math.gcd(*weights) == 1
    assert all(a * weights[0] == weights[k] * shares[0] for k, a in enumerate(shares))


@pytest.mark.parametrize("share", [-1, 0, 0.0, float("nan"), float("inf"), "-0.5", "many", "1/0", ""])
def test_a_share_that_is_no_number_above_zero_is_the_users_mistake(share):
    with pytest.raises(UserError, match="share"):
        integer_weights([1, share])


def test_no_shares_at_all_is_the_users_mistake():
    with pytest.raises(UserError, match="no dataset"):
        integer_weights([])


def test_all_wrong_shares_are_named_at_once():
    with pytest.raises(UserError) as error:
        integer_weights([-2, 1, "x"])
    assert "-2" in str(error.value) and "'x'" in str(error.value)
