"""What each token of a conversation is: a target, or the reason why it is none.

A shard stores these as runs, and nothing for a row whose tokens are all targets, as in plain text.
"""

from typing import NamedTuple

import numpy as np

PARTS = (
    "target",
    "template",  # what the chat template writes: headers, definitions of tools, what stands between messages
    "system",
    "user",
    "tool",
    "weight_0",  # an answer whose message has the weight 0
    "earlier_answer",  # an answer before the one that this sample is for
)
"""Their numbers, from 0 on, are those in the shards: new ones are appended."""

TARGET = PARTS.index("target")


class Runs(NamedTuple):
    """Equal parts in a row, of rows whose tokens are not all targets; such rows have none."""

    lengths: np.ndarray  # [runs] int32, above 0: of a row that has any, together its tokens but for the padding
    parts: np.ndarray  # [runs] uint8
    counts: np.ndarray  # [rows] int32: how many runs each row has


def to_runs(parts: np.ndarray, used: np.ndarray) -> Runs:
    """The runs of `parts` uint8 [rows, window], of which `used` [rows] at the begin of each row are tokens."""
    is_token = np.arange(parts.shape[1]) < used[:, None]
    mixed = np.flatnonzero(((parts != TARGET) & is_token).any(axis=1))
    parts, is_token = parts[mixed], is_token[mixed]
    begins = is_token.copy()
    begins[:, 1:] &= parts[:, 1:] != parts[:, :-1]
    begins[:, 0] = is_token[:, 0]
    row, first = np.nonzero(begins)
    counts = np.zeros(len(used), np.int32)
    counts[mixed] = np.bincount(row, minlength=len(mixed))
    ends = np.append(first[1:], 0)
    ends[np.cumsum(counts[mixed]) - 1] = used[mixed]
    return Runs((ends - first).astype(np.int32), parts[row, first], counts)


def find_problem(row_runs: np.ndarray, lengths: np.ndarray, parts: np.ndarray, used: np.ndarray) -> str:
    """What is wrong with the runs of rows of `used` int64 [rows] tokens, as a shard has them; empty if nothing is."""
    counts = np.diff(row_runs)
    fits = len(counts) == len(used) and row_runs[0] == 0 and row_runs[-1] == len(lengths) == len(parts)
    if not fits or counts.min(initial=0) < 0:
        return "its runs are not divided among its rows"
    if (unknown := parts.max(initial=0)) >= len(PARTS):
        return f"part {unknown} of its tokens is unknown"
    tokens = sums_between(row_runs, lengths)
    wrong = np.flatnonzero((counts > 0) & (tokens != used))
    if len(wrong):
        return f"the runs of its row {wrong[0]} are {tokens[wrong[0]]} tokens, the row has {used[wrong[0]]}"
    return "a run without tokens" if lengths.min(initial=1) < 1 else ""


def sums_between(bounds: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The sum of the values from each of `bounds` up to the next one: int64 [bounds - 1]."""
    return np.diff(np.append(0, np.cumsum(values, dtype=np.int64))[bounds])


def predicted(lengths: np.ndarray, overlaps: np.ndarray) -> np.ndarray:
    """Which tokens of segments, [segments] each, come after their segment's overlap: bool [tokens]."""
    begins = np.cumsum(lengths) - lengths
    offsets = np.arange(int(lengths.sum())) - np.repeat(begins, lengths)
    return offsets >= np.repeat(overlaps, lengths)
