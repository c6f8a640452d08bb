"""Packing against its contract on random corpora, on extreme ones and on real lengths."""

from __future__ import annotations

import functools
import itertools
import re
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import SHARED
from utils.prepare.packing import SHORTEST_PIECE, fill, join, pack

NONE = np.zeros(0, dtype=np.int64)


class Piece(NamedTuple):
    """One piece of the arrays in `Packing`."""

    document: int
    start: int
    end: int
    overlap: int


@st.composite
def corpora(draw):
    """Lengths of documents, their turn boundaries, a window."""
    window = draw(st.integers(2, 80))
    longest = draw(st.sampled_from([1, 4, 40])) * window
    lengths = np.array(draw(st.lists(st.integers(1, longest), max_size=40)), dtype=np.int64)
    every = draw(st.sampled_from([0, 1, 2, 5, 20, 100]))
    seed = draw(st.integers(0, 2**32 - 1))
    return lengths, random_turns(lengths, every, seed), window


def random_turns(lengths, every, seed):
    """About one turn per `every` tokens, none for 0."""
    total = int(lengths.sum())
    starts = np.cumsum(lengths) - lengths
    if not every or not total:
        return NONE
    chosen = np.flatnonzero(np.random.default_rng(seed).random(total) < 1 / every)
    return np.setdiff1d(chosen, starts)


def listed(rows):
    """The pieces of each row."""
    assert all(array.dtype == np.int64 and array.ndim == 1 for array in rows)
    pieces = [Piece(*values) for values in zip(*(array.tolist() for array in rows[:4]), strict=True)]
    bounds = rows.row_pieces.tolist()
    assert bounds[0] == 0 and bounds[-1] == len(pieces)
    return [pieces[first:last] for first, last in itertools.pairwise(bounds)]


def hole_of(row, window):
    return window - sum(piece.end - piece.start for piece in row)


def padding_of(rows, window):
    return sum(hole_of(row, window) for row in listed(rows))


def pieces_of(rows, count):
    """The pieces of each document in the order of what they predict."""
    pieces = [[] for _ in range(count)]
    for piece in itertools.chain(*listed(rows)):
        pieces[piece.document].append(piece)
    return [sorted(found, key=lambda piece: piece.start + piece.overlap) for found in pieces]


def assert_conserved(rows, lengths, window):
    """The brute-force twin: counts for every token of every document how often it is a target."""
    targets = [np.zeros(length, dtype=int) for length in lengths]
    for row in listed(rows):
        assert row and 0 <= hole_of(row, window) < window
        for piece in row:
            assert 0 <= piece.start < piece.end <= lengths[piece.document]
            assert 1 <= piece.overlap <= piece.end - piece.start
            assert (piece.start == 0) or piece.overlap < piece.end - piece.start, "a continuation without a target"
            targets[piece.document][piece.start + piece.overlap : piece.end] += 1
    for counted in targets:
        assert counted.tolist() == [0] + [1] * (len(counted) - 1)
    # what is not a target is the repeated end of the piece before
    for found, length in zip(pieces_of(rows, len(lengths)), lengths, strict=True):
        assert (found[0].start, found[0].overlap, found[-1].end) == (0, 1, length)
        for before, piece in itertools.pairwise(found):
            assert piece.start + piece.overlap == before.end


def assert_cut_where_allowed(rows, lengths, turns, window):
    """No document that fits is cut, and no turn but those that no window can hold."""
    firsts = np.cumsum(lengths) - lengths
    for found, first, length in zip(pieces_of(rows, len(lengths)), firsts, lengths, strict=True):
        if length <= window:
            assert len(found) == 1, "a document that fits a window is cut"
            continue
        cuts = np.array([0, *(turns[(turns > first) & (turns < first + length)] - first), length])
        for end in (piece.end for piece in found):
            after = int(np.searchsorted(cuts, end))
            assert cuts[after] == end or cuts[after] - max(cuts[after - 1] - 1, 0) > window


@settings(max_examples=500, deadline=None)
@given(corpora())
@example((np.array([1]), NONE, 2))
@example((np.array([1, 1, 1, 3, 7]), np.array([5]), 2))
@example((np.array([4, 9]), np.array([1, 2, 3, 5, 12]), 4))
def test_every_token_is_a_target_once_and_only_what_must_be_is_cut(corpus):
    lengths, turns, window = corpus
    rows = pack(lengths, turns, window)
    assert_conserved(rows, lengths, window)
    assert_cut_where_allowed(rows, lengths, turns, window)
    for row in listed(rows):
        # a hole is left only where there is no left context to fill it
        assert hole_of(row, window) == 0 or all(piece.start == 0 for piece in row)
        for before, piece in itertools.pairwise(row):
            assert (before.document, before.end) != (piece.document, piece.start + 1), "two pieces that could be one"


@settings(max_examples=200, deadline=None)
@given(corpora())
def test_whole_documents_leave_no_room_for_one_that_came_later(corpus):
    lengths, _, window = corpus
    lengths = np.minimum(lengths, window)
    rows = listed(pack(lengths, NONE, window))
    assert rows == listed(pack(lengths, random_turns(lengths, 3, 0), window))  # turns of what is not cut do not matter
    smallest = [min(piece.end for piece in row) for row in rows]
    for index, row in enumerate(rows):
        assert hole_of(row, window) < min(smallest[index + 1 :], default=window + 1)


@settings(max_examples=200, deadline=None)
@given(corpora())
def test_joined_documents_are_one_stream(corpus):
    lengths, _, window = corpus
    rows = join(lengths, window)
    assert_conserved(rows, lengths, window)
    order = [(piece.document, piece.end) for row in listed(rows) for piece in row]
    assert order == sorted(order)
    for row in listed(rows)[:-1]:  # a hole of one token, where the next document would predict nothing
        assert hole_of(row, window) <= 1


def test_a_document_is_not_cut_after_its_first_token():
    # the hole of one token is filled with left context where there is some
    assert listed(join(np.array([9, 3, 12]), 10)) == [
        [Piece(0, 0, 9, 1)],
        [Piece(1, 0, 3, 1), Piece(2, 0, 7, 1)],
        [Piece(2, 2, 12, 5)],
    ]
    assert listed(join(np.array([9, 1, 3]), 10)) == [[Piece(0, 0, 9, 1), Piece(1, 0, 1, 1)], [Piece(2, 0, 3, 1)]]


@settings(max_examples=200, deadline=None)
@given(corpora(), st.booleans())
def test_filled_rows_are_their_pieces_side_by_side(corpus, joined):
    lengths, turns, window = corpus
    rows = join(lengths, window) if joined else pack(lengths, turns, window)
    firsts = np.cumsum(lengths) - lengths
    tokens = np.random.default_rng(0).integers(1, 60_000, int(lengths.sum())).astype(np.uint16)
    filled, segment_lengths = fill(rows, tokens, firsts, window)
    assert filled.dtype == np.uint16 and segment_lengths.dtype == np.int32
    expected = []
    for row in listed(rows):
        parts = [tokens[firsts[piece.document] :][piece.start : piece.end].tolist() for piece in row]
        expected.append([*itertools.chain(*parts), *[0] * hole_of(row, window)])
    assert filled.shape == (len(expected), window) and filled.tolist() == expected
    assert segment_lengths.tolist() == [piece.end - piece.start for row in listed(rows) for piece in row]


def test_more_rows_than_are_filled_at_once():
    lengths = np.random.default_rng(0).integers(1, 300, 20_000)
    rows = pack(lengths, NONE, 200)
    tokens = np.arange(1, lengths.sum() + 1, dtype=np.uint32)
    filled, _ = fill(rows, tokens, np.cumsum(lengths) - lengths, 200)
    assert filled.size > 2**21
    counted = np.bincount(filled.ravel(), minlength=len(tokens) + 1)
    assert counted[0] == padding_of(rows, 200) and counted[1:].min() == 1
    assert counted[1:].sum() - len(tokens) == (rows.overlap[rows.start > 0]).sum()
    inside = filled[:, 1:].astype(int) - filled[:, :-1] != 1  # but for the pieces' begins, each token follows its own
    assert inside.sum() <= len(rows.document)


@settings(max_examples=100, deadline=None)
@given(corpora())
def test_packing_is_a_pure_function(corpus):
    lengths, turns, window = corpus
    before = lengths.copy(), turns.copy()
    assert listed(pack(lengths, turns, window)) == listed(pack(lengths, turns, window))
    assert (lengths == before[0]).all() and (turns == before[1]).all()
    smallest = pack(lengths.astype(np.int32), turns.astype(np.int32), window)
    assert listed(smallest) == listed(pack(lengths, turns, window))


def test_a_hole_is_completed_exactly_by_one_document_or_by_two():
    one = [[Piece(0, 0, 60, 1), Piece(2, 0, 40, 1)], [Piece(1, 0, 35, 1)]]
    assert listed(pack(np.array([60, 35, 40]), NONE, 100)) == one
    two = [[Piece(0, 0, 60, 1), Piece(2, 0, 30, 1), Piece(3, 0, 10, 1)], [Piece(1, 0, 39, 1)]]
    assert listed(pack(np.array([60, 39, 30, 10]), NONE, 100)) == two
    halves = listed(pack(np.array([60, 20, 20, 39]), NONE, 100))
    assert [len(row) for row in halves] == [3, 1]
    half = listed(pack(np.array([60, 20, 39]), NONE, 100))  # there is one document of 20, not two
    assert [[piece.end for piece in row] for row in half] == [[60, 39], [20]]


def test_many_short_documents_leave_next_to_nothing():
    lengths = np.clip(np.random.default_rng(0).lognormal(5.8, 0.6, 40_000), 20, 512).astype(np.int64)
    rows = pack(lengths, NONE, 2049)
    assert len(rows.row_pieces) - 1 <= -(-lengths.sum() // 2049) + 1


def test_a_hole_is_filled_by_a_long_document_cut_at_a_turn():
    lengths = np.array([70, 150])
    turns = 70 + np.array([10, 20, 30, 45, 60, 75, 90, 105, 120, 135])
    rows = pack(lengths, turns, 100)
    assert_conserved(rows, lengths, 100)
    assert_cut_where_allowed(rows, lengths, turns, 100)
    assert listed(rows)[0] == [Piece(0, 0, 70, 1), Piece(1, 0, 30, 1)]
    assert padding_of(rows, 100) == 0


def test_what_documents_that_fit_leave_free_is_filled_by_long_ones_not_by_cutting():
    lengths = np.full(40, 600)
    assert len(listed(pack(lengths, random_turns(lengths, 10, 0), 1000))) == 40  # 40 % of each row
    lengths = np.array([600] * 40 + [5000, 20_000])
    turns = random_turns(lengths, 10, 0)
    rows = pack(lengths, turns, 1000)
    assert_conserved(rows, lengths, 1000)
    assert_cut_where_allowed(rows, lengths, turns, 1000)
    assert len(listed(rows)) == 50  # 49,000 tokens, 1,000 a row, and the tokens that cuts repeat
    assert padding_of(rows, 1000) < 100


def test_the_one_long_document_fills_the_last_row_with_left_context():
    rng = np.random.default_rng(3)
    lengths = np.append(rng.integers(20, 900, 300), 9000)
    turns = random_turns(lengths, 30, 3)
    rows = pack(lengths, turns, 8193)
    assert_conserved(rows, lengths, 8193)
    assert_cut_where_allowed(rows, lengths, turns, 8193)
    assert len(listed(rows)) == -(-lengths.sum() // 8193)
    assert padding_of(rows, 8193) < 1e-3 * lengths.sum() < -lengths.sum() % 8193


def test_a_turn_longer_than_the_window_is_cut_where_the_row_ends():
    rows = pack(np.array([1000]), NONE, 100)
    assert_conserved(rows, [1000], 100)
    assert len(listed(rows)) == 11 and padding_of(rows, 100) == 0
    assert [piece.end for row in listed(rows)[:3] for piece in row] == [100, 199, 298]


def test_the_last_row_is_filled_with_left_context():
    rows = pack(np.array([250]), np.arange(10, 250, 10), 100)
    assert_conserved(rows, [250], 100)
    assert listed(rows)[-1] == [Piece(0, 150, 250, 40)]  # its first target follows the 190 tokens before
    assert padding_of(rows, 100) == 0


def test_nothing_gives_no_rows():
    for rows in (pack(NONE, NONE, 10), join(NONE, 10)):
        assert listed(rows) == []
        filled, segment_lengths = fill(rows, np.zeros(0, np.uint16), NONE, 10)
        assert filled.shape == (0, 10) and segment_lengths.shape == (0,)


@pytest.mark.parametrize("window", [513, 2049])
def test_pieces_are_no_shorter_than_32_tokens(window):
    rng = np.random.default_rng(5)
    lengths = np.clip(rng.lognormal(6, 1.5, 2000), 2, 40_000).astype(np.int64)
    rows = pack(lengths, random_turns(lengths, 12, 1), window)
    short = [piece for row in listed(rows) for piece in row if piece.end - piece.start < SHORTEST_PIECE]
    assert all(piece.end == lengths[piece.document] and piece.start == 0 for piece in short)
    assert padding_of(rows, window) < 1e-4 * lengths.sum()


def test_documents_of_long_turns_are_not_left_to_the_end():
    """Last, they would find only holes that are too small for them."""
    lengths = np.clip(np.random.default_rng(5).lognormal(7.3, 0.8, 2000), 2, 40_000).astype(np.int64)
    rows = pack(lengths, random_turns(lengths, 300, 3), 2049)
    assert len(rows.row_pieces) - 1 <= 1.003 * lengths.sum() / 2049
    assert padding_of(rows, 2049) < 2e-4 * lengths.sum()


def test_a_document_ends_with_a_short_piece_only_where_a_longer_one_would_not_fit():
    turns = np.array([50, 100, 150, 200, 295])  # 100 tokens from 199, where a row would begin, to 299
    pieces = [piece for row in listed(pack(np.array([299]), turns, 100)) for piece in row]
    assert {piece.end for piece in pieces} <= {50, 100, 150, 200, 299}
    pieces = [piece for row in listed(pack(np.array([300]), turns, 100)) for piece in row]
    assert 295 in {piece.end for piece in pieces}
    assert_cut_where_allowed(pack(np.array([300]), turns, 100), np.array([300]), turns, 100)


@pytest.mark.parametrize("seed", range(5))
def test_every_split_with_a_cut_document_has_its_leftover_in_a_continued_piece(seed):
    """The last row's hole alone would be up to 10 % here."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(100, 1800, 60)
    rows = pack(lengths, random_turns(lengths, 8, seed), 1025)
    assert_conserved(rows, lengths, 1025)
    assert padding_of(rows, 1025) < 3e-3 * lengths.sum()


@pytest.mark.parametrize(
    ("lengths", "every", "window"),
    [
        (np.ones(300_000, dtype=np.int64), 0, 2049),
        (np.array([2_000_000]), 0, 513),
        (np.array([2_000_000]), 40, 513),
        (np.random.default_rng(0).integers(50, 151, 20_000), 0, 8193),
        (np.random.default_rng(0).integers(500, 3000, 1000), 1, 513),
    ],
    ids=["single tokens", "one gigantic turn", "one gigantic document", "short documents", "a turn per token"],
)
def test_extreme_corpora_need_next_to_no_rows_too_many(lengths, every, window):
    turns = random_turns(lengths, every, 0)
    rows = pack(lengths, turns, window)
    targets = rows.end - rows.start - rows.overlap
    assert targets.sum() == lengths.sum() - len(lengths)
    assert np.bincount(rows.document)[lengths <= window].max(initial=1) == 1
    fewest = -(-lengths.sum() // window)
    assert fewest <= len(rows.row_pieces) - 1 <= 1.01 * fewest
    assert padding_of(rows, window) < max(window, 1e-4 * lengths.sum())


@functools.lru_cache
def claire(name):
    """Lengths and turns of all conversations with a tokenizer of ../shared."""
    tokenizer = Tokenizer(SHARED / "tokenizers" / name)
    documents = []
    for path in sorted((SHARED / "data" / "claire").rglob("*.txt")):
        documents += [text.strip() for text in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")) if text.strip()]
    encoded = [[*ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(documents)]
    lengths = np.array([len(ids) for ids in encoded])
    tokens = np.concatenate(encoded)
    return lengths, np.setdiff1d(np.flatnonzero(tokenizer.line_ends[tokens[:-1]]) + 1, np.cumsum(lengths))


@pytest.mark.shared
@pytest.mark.parametrize("window", [513, 2049, 8193])
@pytest.mark.parametrize("name", ["mistral-7b-v0.1", "gpt2", "falcon"])
def test_padding_on_real_conversations(name, window):
    """At most 0.1 % of all tokens, or, with nothing long enough to be cut, what the fewest possible rows leave."""
    lengths, turns = claire(name)
    rows = pack(lengths, turns, window)
    assert len(lengths) == 1750
    assert_conserved(rows, lengths, window)
    assert_cut_where_allowed(rows, lengths, turns, window)
    size = (len(rows.row_pieces) - 1) * window
    padding = padding_of(rows, window)
    fewest = -(-lengths.sum() // window)
    assert padding <= 1e-3 * size or (lengths.max() <= window and size == fewest * window)
    assert (size - padding - lengths.sum()) / size < 6e-3  # repeated tokens
