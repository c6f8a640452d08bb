"""Where the answers of a row end, as its shard says: to measure whether a model would stop there, and only there."""

from collections.abc import Collection

import numpy as np

from utils.data.shards import Row

AT_END, INSIDE = 1, 2


def places_of_ends(row: Row, end_ids: Collection[int]) -> np.ndarray:
    """uint8 [tokens but for the padding]: `AT_END` where an answer ends, `INSIDE` where it goes on, else 0.

    An answer is a run of targets. It ends with the last of `end_ids` in it, or right behind it where a shard's makers
    did not make that a target: what a model does there is then measured all the same. What follows in the run, such as
    a line's end, is neither. A document that is all targets is a text, not an answer.
    """
    used = int(row.segment_lengths.sum())
    places = np.zeros(used, np.uint8)
    if row.parts is None:
        return places
    is_target = row.is_target()
    is_end = np.isin(row.tokens[:used], list(end_ids))
    bounds = np.append(0, np.cumsum(row.segment_lengths))
    edges = np.flatnonzero(np.diff(is_target, prepend=False, append=False))
    # a document's first token is no target: no run goes from one into the next
    for begin, stop in zip(edges[::2], edges[1::2], strict=True):
        segment = np.searchsorted(bounds, begin, side="right") - 1
        first, last = bounds[segment] + row.segment_overlaps[segment], bounds[segment + 1]
        if (begin, stop) == (first, last):
            continue
        ends = begin + np.flatnonzero(is_end[begin:stop])
        if not len(ends) and stop < last and is_end[stop]:
            ends = np.array([stop])
        end = ends[-1] if len(ends) else stop
        places[begin:end] = np.where(is_end[begin:end], 0, INSIDE)
        if len(ends):
            places[end] = AT_END
    return places
