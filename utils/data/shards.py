"""Shards and their manifest: the format between prepare_data.py and everything that reads training data.

A data folder holds, for each dataset and split, `<dataset>-<split>-00000-of-00008.safetensors` files and one
`manifest.json`, written last, so that its presence means the folder is complete. A shard holds

- `tokens` [rows, window], in the smallest unsigned type that fits the vocabulary; zeros where a row is padded;
- `segment_lengths` int32 [segments], the tokens of each piece of a document, row after row;
- `segment_overlaps` int32 [segments], how many of a piece's first tokens are not targets: 1 (the document's first, or
  the one that a continuation shares with the piece before it) or more (left context in place of padding);
- `row_segments` int64 [rows + 1], where each row's segments begin in the two arrays above.

In a row, pieces follow each other from position 0; what they leave free at the end is padding.

Where not all that is left are targets, as in chats, a shard says what each token is (utils/data/parts.py), in runs:

- `run_lengths` int32 [runs] and `run_parts` uint8 [runs], the tokens of each run and what they are, row after row;
- `row_runs` int64 [rows + 1], where each row's runs begin. A row that has none is all targets; the others' runs add up
  to the row's tokens but for the padding. A piece's first tokens (`segment_overlaps`) are never targets.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

import numpy as np
from safetensors import safe_open

from lit_gpt.checksums import ListedFile, file_sha256, find_difference
from lit_gpt.errors import DataError, naming
from utils.data.manifest import DatasetSplit, Shard, split_name
from utils.data.parts import TARGET, Runs, find_problem, predicted, sums_between, to_runs
from utils.files.arrays import write_array
from utils.files.atomic import staged_path


@dataclass(frozen=True)
class Row:
    tokens: np.ndarray  # [window]
    segment_lengths: np.ndarray  # [segments] int32
    segment_overlaps: np.ndarray  # [segments] int32: the first tokens of each that are not targets
    parts: np.ndarray | None = None  # [tokens but for the padding] uint8: what each is; None if all are targets

    def is_target(self) -> np.ndarray:
        """bool [tokens but for the padding]."""
        beyond = predicted(self.segment_lengths, self.segment_overlaps)
        return beyond if self.parts is None else beyond & (self.parts == TARGET)


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned type that holds every id below `vocab_size`."""
    return np.min_scalar_type(vocab_size - 1)


def shard_name(dataset: str, split: str, index: int, count: int) -> str:
    """`FR/Theatre`, `train`, 0 of 8 → `FR--Theatre-train-00000-of-00008.safetensors`."""
    return f"{split_name(dataset, split)}-{index:05d}-of-{count:05d}.safetensors"


class ShardWriter:
    """Writes one split's shards while their rows come: row i goes into shard i mod their number.

    Each file is written once, under another name; all are named together. The context's end removes what is not.
    """

    def __init__(self, data_dir: Path, names: list[str], window: int, dtype: np.dtype) -> None:
        self._paths = [data_dir / name for name in names]
        self._window, self._dtype = window, dtype
        self._rows = 0
        self._resources = ExitStack()
        self._files: list[tuple[IO[bytes], IO[bytes]]] = []  # a shard's file, and a file of what will follow its rows

    def __enter__(self) -> ShardWriter:
        with ExitStack() as opened:  # which closes and removes those before the one that could not be opened
            for path in self._paths:
                opened.callback(staged_path(path).unlink, missing_ok=True)
                with naming(path):
                    file = opened.enter_context(staged_path(path).open("wb", buffering=0))
                    segments = opened.enter_context(TemporaryFile(dir=path.parent, buffering=0))
                    write_array(file, np.zeros(_HEADER_BYTES, np.uint8))
                self._files.append((file, segments))
            self._resources = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def add(
        self,
        tokens: np.ndarray,
        lengths: np.ndarray,
        overlaps: np.ndarray,
        row_segments: np.ndarray,
        parts: np.ndarray | None = None,
    ) -> None:
        """Writes rows: `tokens` [rows, window], `parts` uint8 [rows, window], or None where all are targets, the other
        arrays as in a shard. An OSError names the shard.
        """
        if not len(tokens):
            return
        counts = np.diff(row_segments)
        if parts is not None:
            used = sums_between(row_segments, lengths)
        shard_of_row = (self._rows + np.arange(len(tokens))) % len(self._files)
        shard_of_segment = np.repeat(shard_of_row, counts)
        for shard, (file, segments) in enumerate(self._files):
            first = (shard - self._rows) % len(self._files)
            own = shard_of_segment == shard
            with naming(self._paths[shard]):
                write_array(file, tokens[first :: len(self._files)])
                arrays = [counts[first :: len(self._files)], lengths[own], overlaps[own]]
                if parts is not None:
                    runs = to_runs(parts[first :: len(self._files)], used[first :: len(self._files)])
                    arrays += [runs.counts, runs.lengths, runs.parts]
                for number, values in enumerate(arrays):
                    write_array(segments, np.append([number, len(values)], values).astype(np.int32))
        self._rows += len(tokens)

    def publish(self) -> list[Shard]:
        """Completes the files and gives them their names; a split without rows has no files."""
        if not self._rows:
            return []
        # each holds the segments and runs of its rows twice: some 200 bytes a conversation if all shards did at once
        with ThreadPoolExecutor(max_workers=2) as pool:
            shards = list(pool.map(self._complete, range(len(self._files))))
        for path in self._paths:
            with naming(path):
                staged_path(path).replace(path)
        return shards

    def _complete(self, shard: int) -> Shard:
        """Writes what follows a shard's rows, and its header; syncs and checksums it. An OSError names the shard."""
        path = self._paths[shard]
        file, segments = self._files[shard]
        rows = self._rows // len(self._files) + (shard < self._rows % len(self._files))
        with naming(path):
            segments.seek(0)
            counts, lengths, overlaps, runs = _read_segments(np.frombuffer(segments.read(), np.int32))
            arrays = {
                "row_segments": np.cumsum([0, *counts], dtype=np.int64),
                "segment_lengths": lengths,
                "segment_overlaps": overlaps,
            }
            if len(runs.lengths):
                arrays["row_runs"] = np.cumsum([0, *runs.counts], dtype=np.int64)
                arrays["run_lengths"] = runs.lengths
                arrays["run_parts"] = runs.parts
            begin = rows * self._window * self._dtype.itemsize
            header = {"tokens": _tensor(self._dtype, (rows, self._window), 0)}
            for name, values in arrays.items():
                header[name] = _tensor(values.dtype, values.shape, begin)
                begin += values.nbytes
                write_array(file, values)
            text = (_HEADER_BYTES - 8).to_bytes(8, "little") + json.dumps(header).encode()
            file.seek(0)
            write_array(file, np.frombuffer(text.ljust(_HEADER_BYTES), np.uint8))
            os.fsync(file.fileno())
            size = staged_path(path).stat().st_size
            return Shard(path.name, rows, size, file_sha256(staged_path(path)))


# The header comes first in a safetensors file and is known last; it may end with spaces:
_HEADER_BYTES = 1024  # https://huggingface.co/docs/safetensors/index#format


def _tensor(dtype: np.dtype, shape: tuple[int, ...], begin: int) -> dict[str, Any]:
    kind = {"u": "U", "i": "I"}[dtype.kind] + str(8 * dtype.itemsize)
    size = int(np.prod(shape)) * dtype.itemsize
    return {"dtype": kind, "shape": list(shape), "data_offsets": [begin, begin + size]}


def _read_segments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, Runs]:
    """Segments per row [rows], their lengths and overlaps [segments], int32, and the runs, as `add` wrote them."""
    found: list[list[np.ndarray]] = [[np.zeros(0, np.int32)] for _ in range(6)]
    position = 0
    while position < len(values):
        number, size = values[position : position + 2].tolist()
        array = values[position + 2 : position + 2 + size]
        position += 2 + size
        if number == _RUN_COUNTS:
            found[number][-1] = array
            continue
        found[number].append(array)
        if number == _SEGMENT_COUNTS:
            found[_RUN_COUNTS].append(np.zeros_like(array))  # rows that are all targets have no run
    counts, lengths, overlaps, run_counts, run_lengths, run_parts = map(np.concatenate, found)
    return counts, lengths, overlaps, Runs(run_lengths, run_parts.astype(np.uint8), run_counts)


_SEGMENT_COUNTS, _RUN_COUNTS = 0, 3  # the first of `_read_segments`' arrays, and of those that rows of targets lack


def verify_shards(data_dir: Path, entries: Iterable[DatasetSplit], part: int = 0, parts: int = 1) -> None:
    """Compares the shards, of several processes each every `parts`-th; a DataError names the first that differs."""
    files = [ListedFile(shard.file, shard.sha256, shard.bytes) for entry in entries for shard in entry.shards]
    problem = find_difference(data_dir, files, "the manifest", part, parts)
    if problem:
        raise DataError(f"{problem}; remove that file and run prepare_data.py again, which redoes what is missing")


class RowReader:
    """Reads single rows of one dataset's split from its memory-mapped shards."""

    def __init__(self, data_dir: Path, entry: DatasetSplit) -> None:
        self._paths = [data_dir / shard.file for shard in entry.shards]
        self._starts = np.cumsum([0] + [shard.rows for shard in entry.shards])
        self._open: dict[int, Any] = {}

    def read(self, row: int) -> Row:
        tokens, index, local = self._find(row)
        return _row(tokens[local], index, local)

    def count(self, row: int) -> tuple[int, int]:
        """The row's targets, and its tokens that are no left context."""
        _, index, local = self._find(row)
        segments = slice(*index["row_segments"][local : local + 2])
        tokens = int(index["segment_lengths"][segments].sum() - index["segment_overlaps"][segments].sum())
        if "row_runs" not in index:
            return tokens, tokens
        return int(np.count_nonzero(_row(_NOTHING, index, local).is_target())), tokens

    def segments(self) -> Iterator[Segments]:
        """All segments of the split, some thousand rows' at once."""
        for shard in range(len(self._paths)):
            first, rows = int(self._starts[shard]), int(self._starts[shard + 1] - self._starts[shard])
            if not rows:
                continue
            _, index, _ = self._find(first)
            for begin in range(0, rows, _ROWS_AT_ONCE):
                yield _segments_of(index, first, slice(begin, begin + _ROWS_AT_ONCE))

    def _find(self, row: int) -> tuple[Any, dict[str, np.ndarray], int]:
        """The tokens of the row's shard, the shard's other arrays, and the row's number there."""
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        if shard not in self._open:
            file = safe_open(self._paths[shard], framework="np")
            names = set(file.keys()) - {"tokens"}
            index = {name: file.get_tensor(name) for name in names}
            _require_whole_runs(index, self._paths[shard])
            self._open[shard] = (file, file.get_slice("tokens"), index)
        _, tokens, index = self._open[shard]
        return tokens, index, row - int(self._starts[shard])


_NOTHING = np.zeros(0, np.uint8)
_ROWS_AT_ONCE = 1024


class Segments(NamedTuple):
    rows: np.ndarray  # [segments] int64: the row of each in the split
    numbers: np.ndarray  # [segments] int64: its number in that row
    lengths: np.ndarray  # [segments]: tokens
    targets: np.ndarray  # [segments] int64


def _segments_of(index: dict[str, np.ndarray], first: int, rows: slice) -> Segments:
    """The segments of some of a shard's rows, of which the first is row `first` of the split."""
    bounds = index["row_segments"][rows.start : rows.stop + 1]
    own = slice(bounds[0], bounds[-1])
    lengths, overlaps = index["segment_lengths"][own], index["segment_overlaps"][own]
    counts = np.diff(bounds)
    targets = (lengths - overlaps).astype(np.int64)
    if "row_runs" in index:
        found = [_row(_NOTHING, index, rows.start + number).is_target() for number in range(len(counts))]
        targets = np.add.reduceat(np.concatenate(found), np.cumsum(lengths) - lengths, dtype=np.int64)
    row = np.repeat(np.arange(len(counts)), counts)
    return Segments(first + rows.start + row, np.arange(len(row)) - (bounds[:-1] - bounds[0])[row], lengths, targets)


def _row(tokens: np.ndarray, index: dict[str, np.ndarray], local: int) -> Row:
    """Row number `local` of a shard whose arrays but for the tokens are `index`."""
    segments = slice(*index["row_segments"][local : local + 2])
    parts = None
    if "row_runs" in index:
        runs = slice(*index["row_runs"][local : local + 2])
        if runs.start < runs.stop:
            parts = np.repeat(index["run_parts"][runs], index["run_lengths"][runs])
    return Row(tokens, index["segment_lengths"][segments], index["segment_overlaps"][segments], parts)


def _require_whole_runs(index: dict[str, np.ndarray], path: Path) -> None:
    """Raises a DataError if a row's runs do not add up to its tokens: then something else would be the target."""
    names = [name for name in ("row_runs", "run_lengths", "run_parts") if name in index]
    if not names:
        return
    if len(names) < 3:
        problem = f"it has {' and '.join(names)} alone"
    else:
        used = sums_between(index["row_segments"], index["segment_lengths"])
        problem = find_problem(*(index[name] for name in names), used)
    if problem:
        raise DataError(f"{path} is damaged: {problem}; remove that file and run prepare_data.py again")
