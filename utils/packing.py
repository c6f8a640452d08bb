"""Documents of any length into rows of one length, with next to no padding and as few cuts as that takes.

1. Documents no longer than the window make rows, largest first. What a row still lacks (its hole) is completed exactly
   where one document or a pair has just that length, else by the largest document that fits.
2. Longer documents must be cut anyway: they are the flexible ones, poured into the holes. If the holes take more than
   these hold, the emptiest rows are dissolved and their documents become flexible too, until all fits.
3. Each hole takes the piece that fills it best, among 64 flexible documents and all their turn boundaries. What then
   remains of the flexible documents makes new rows in the same way.
4. A hole that is left is filled with left context: the piece of a continued document in that row starts earlier, its
   repeated tokens being no targets. What no continued piece can fill is padding.

A turn is only cut if it is longer than a window. Every token but each document's first is a target exactly once.
Measured on French plays and Shakespeare, window 2049: whole documents best-fit leave 2.8 % padding, this leaves 0.06 %.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

WORKING_SET = 64  # flexible documents tried for each hole: with turns of 50 tokens one of them leaves under a token
SHORTEST_PIECE = 32  # tokens: a shorter piece has too little context to be worth a cut


class Piece(NamedTuple):
    """Tokens `start` to `end` of a document; the first `overlap` of them are no targets.

    `overlap` is 1 for a document's beginning (nothing predicts its first token), and for a continuation the number of
    tokens it repeats from the piece before, at least 1.
    """

    document: int
    start: int
    end: int
    overlap: int


Row = list[Piece]


def pack(lengths: np.ndarray, turns: np.ndarray, window: int) -> list[Row]:
    """Rows of at most `window` tokens that hold every document.

    Args:
        lengths: int [documents], tokens of each document, at least 1.
        turns: int [boundaries], ascending, the first token of each turn but a document's first, counted from the first
            token of the first document through all of them.
    """
    rows, flexible = _choose_flexible(_pack_whole(lengths, window), lengths, window)
    cutter = _Cutter(flexible, lengths, turns, window)
    for row in rows:
        _fill(row, window, cutter)
    while cutter.remains:
        rows.append([])
        _fill(rows[-1], window, cutter)
    for row in rows:
        _extend_left(row, window)
    return rows


def join(lengths: np.ndarray, window: int) -> list[Row]:
    """Rows that are the documents end to end, in order, cut wherever a row is full."""
    rows: list[Row] = []
    hole = 0
    for document, length in enumerate(lengths.tolist()):
        start = 0
        while True:
            if hole < min(2, length):  # a piece of one token predicts nothing
                rows.append([])
                hole = window
            end = min(length, start + hole)
            rows[-1].append(Piece(document, start, end, 1))
            hole -= end - start
            if end == length:
                break
            start = end - 1
    if rows:
        _extend_left(rows[-1], window)
    return rows


def hole_of(row: Row, window: int) -> int:
    """Tokens of `window` that the row's pieces leave free."""
    return window - sum(piece.end - piece.start for piece in row)


def _pack_whole(lengths: np.ndarray, window: int) -> list[Row]:
    """Rows of whole documents, of those no longer than `window`."""
    waiting: list[list[int]] = [[] for _ in range(window + 1)]  # by length, last document first, so that pop() is first
    for document in range(len(lengths) - 1, -1, -1):
        if lengths[document] <= window:
            waiting[lengths[document]].append(document)
    count = np.array([len(documents) for documents in waiting])
    rows: list[Row] = []
    largest = window
    while True:
        while largest and not count[largest]:
            largest -= 1
        if not largest:
            return rows
        rows.append([])
        hole, chosen = window, (largest,)
        while chosen:
            for length in chosen:
                rows[-1].append(Piece(waiting[length].pop(), 0, length, 1))
                count[length] -= 1
                hole -= length
            chosen = _complete(count, hole)


def _complete(count: np.ndarray, hole: int) -> tuple[int, ...]:
    """The lengths to put into a hole, where `count[n]` documents have length n: one, two, or () if none fits."""
    if hole and count[hole]:
        return (hole,)
    half = hole // 2
    pairs = (count[1 : half + 1] > 0) & (count[hole - 1 : hole - half - 1 : -1] > 0)
    if half and hole == 2 * half:
        pairs[-1] = count[half] > 1
    if pairs.any():
        small = int(pairs.argmax()) + 1
        return hole - small, small
    fitting = np.flatnonzero(count[: hole + 1])
    return (int(fitting[-1]),) if len(fitting) else ()


def _choose_flexible(rows: list[Row], lengths: np.ndarray, window: int) -> tuple[list[Row], np.ndarray]:
    """The rows to keep, and the documents to be cut: those longer than the window and those of dissolved rows.

    Dissolving a row brings the holes' sum `window` closer to the sum of what can be poured into them. Where there is
    nothing to cut yet and no row to be saved by cutting, every document stays whole.
    """
    long = np.flatnonzero(lengths > window)
    holes = np.array([hole_of(row, window) for row in rows], dtype=np.int64)
    missing = int(holes.sum() - lengths[long].sum())
    dissolved = -(-missing // window) if missing > 0 and (len(long) or missing >= window) else 0
    emptiest = set(np.argsort(-holes, kind="stable")[:dissolved].tolist())
    kept = [row for index, row in enumerate(rows) if index not in emptiest]
    freed = [piece.document for index in sorted(emptiest) for piece in rows[index]]
    return kept, np.array(sorted([*long.tolist(), *freed]), dtype=np.int64)


class _Cutter:
    """The flexible documents and how far each has been placed; positions count through all documents' tokens."""

    def __init__(self, documents: np.ndarray, lengths: np.ndarray, turns: np.ndarray, window: int) -> None:
        ends = np.cumsum(lengths)
        self._cuts = np.union1d(np.append(turns, 0), ends)
        self._window = window
        self._shortest = max(2, min(SHORTEST_PIECE, window // 8))  # one token predicts nothing
        self._documents = documents[::-1].tolist()  # those not yet in the working set, the next one last
        self._firsts, self._ends = ends - lengths, ends
        self._open = np.zeros(0, dtype=np.int64)  # the working set
        self._starts = np.zeros(0, dtype=np.int64)  # where the next piece of each of them begins, overlap included
        self._refill()

    @property
    def remains(self) -> bool:
        """Whether some document is not placed to its end."""
        return len(self._open) > 0

    def _refill(self) -> None:
        fresh = [self._documents.pop() for _ in range(min(WORKING_SET - len(self._open), len(self._documents)))]
        self._open = np.append(self._open, np.array(fresh, dtype=np.int64))
        self._starts = np.append(self._starts, self._firsts[fresh])

    def take(self, hole: int) -> Piece | None:
        """The longest piece that fits into `hole`, or None; it counts as placed."""
        starts, ends, shortest = self._starts, self._ends[self._open], self._shortest
        begun = starts > self._firsts[self._open]
        at = self._last_cut(starts + hole, ends)
        if hole > 2 * shortest and len(begun) > 1:
            # a first piece cannot be extended to the left: rather than a small hole, it leaves one for another piece
            inexact = ~begun & (self._cuts[at] < np.minimum(starts + hole, ends))
            smaller = self._last_cut(starts + hole - shortest, ends)
            at = np.where(inexact & (self._cuts[smaller] - starts >= shortest), smaller, at)
        cuts = self._cuts[at]
        sizes = cuts - starts
        sizes[(sizes < (shortest if hole < self._window else 2)) & (cuts < ends)] = 0
        best = int(sizes.argmax())
        if 2 * sizes[best] < hole and hole >= shortest:
            # no turn ends in the hole's second half: go on with a turn that is longer than the window, if there is one
            following = self._cuts[np.minimum(at + 1, len(self._cuts) - 1)]
            endless = (cuts < ends) & (following - np.maximum(starts, cuts - 1) > self._window)
            if endless.any():
                best = int(endless.argmax())
                sizes[best] = hole
        return self._place(best, int(sizes[best])) if sizes[best] > 0 else None

    def _last_cut(self, limits: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Index of the last permitted cut at or before each limit and end of a document."""
        return np.searchsorted(self._cuts, np.minimum(limits, ends), side="right") - 1

    def _place(self, slot: int, size: int) -> Piece:
        document = int(self._open[slot])
        first = int(self._firsts[document])
        start = int(self._starts[slot]) - first
        assert size > 1 or start + size == self._ends[document] - first, "a piece that gets nowhere"
        self._starts[slot] += size - 1
        if start + size == self._ends[document] - first:
            self._open, self._starts = np.delete(self._open, slot), np.delete(self._starts, slot)
            self._refill()
        return Piece(document, start, start + size, 1)


def _fill(row: Row, window: int, cutter: _Cutter) -> None:
    """Adds pieces of flexible documents to `row` until none fits."""
    hole = hole_of(row, window)
    while hole > 1 and cutter.remains and (piece := cutter.take(hole)):
        last = row[-1] if row else None
        if last and last.document == piece.document and last.end == piece.start + 1:
            row[-1] = last._replace(end=piece.end)
        else:
            row.append(piece)
        hole = hole_of(row, window)


def _extend_left(row: Row, window: int) -> None:
    """Gives what the row leaves free to its continued pieces, as left context."""
    for index, piece in enumerate(row):
        room = min(hole_of(row, window), piece.start)
        row[index] = piece._replace(start=piece.start - room, overlap=piece.overlap + room)
