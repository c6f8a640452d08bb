"""From sample numbers to batches.

1. `Mixture` (utils/mixture.py) settles which datasets a run reads, and with which integer weights.
2. `SampleOrder` (utils/sample_order.py) says which (dataset, row) sample number i is.
3. `TrainingData.step` reads the rows of one optimiser step that belong to one process; a thread reads ahead.
4. `collate` turns rows into the tensors of a micro-batch.

Nothing here has a position to save: step s of a run is samples [s·G, (s+1)·G) for any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_gpt.model import IGNORE
from utils.mixture import Mixture
from utils.processes import rank, together, world_size
from utils.sample_order import SampleOrder
from utils.shards import DatasetSplit, Row, RowReader, verify_shards


class Batch(NamedTuple):
    """A micro-batch: [B, T] int64 each. `targets` is `IGNORE` where there is nothing to predict.

    `segments` says which document a token belongs to; None where documents are not kept apart.
    """

    input_ids: Tensor
    targets: Tensor
    segments: Tensor | None

    @property
    def target_count(self) -> int:
        return int((self.targets != IGNORE).sum())

    def to(self, device: torch.device) -> Batch:
        if device.type == "cuda":
            moved = (t if t is None else t.pin_memory().to(device, non_blocking=True) for t in self)
            return Batch(*moved)
        return self


def collate(rows: Sequence[Row | None], window: int, mask_documents: bool = True) -> Batch:
    """Rows of `window` tokens → a batch of T = window - 1 positions; None stands for a row without any target.

    A segment's leading `segment_overlaps` tokens are no targets.
    """
    tokens = np.zeros((len(rows), window), np.int64)
    segments = np.full((len(rows), window), -1, np.int64)
    is_target = np.zeros((len(rows), window), bool)
    for index, row in enumerate(rows):
        if row is None:
            continue
        lengths = row.segment_lengths
        used = int(lengths.sum())
        tokens[index] = row.tokens
        segments[index, :used] = np.repeat(np.arange(len(lengths)), lengths)
        offsets = np.arange(used) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        is_target[index, :used] = offsets >= np.repeat(row.segment_overlaps, lengths)
    targets = np.where(is_target, tokens, IGNORE)
    parts = (tokens[:, :-1], targets[:, 1:], segments[:, :-1])
    input_ids, targets, segments = (torch.from_numpy(np.ascontiguousarray(part)) for part in parts)
    return Batch(input_ids, targets, segments if mask_documents else None)


def verify_data(data_dir: Path, entries: Sequence[DatasetSplit]) -> None:
    """Compares the shards with the manifest, each process its part; raises a DataError on all if one differs."""
    together(lambda: verify_shards(data_dir, entries, rank(), world_size()))


class TrainingData:
    """The rows of a run's training samples.

    Args:
        data_dir: the shards' folder.
        mixture: datasets and weights.
        seed: of the sample order.
        samples_per_step: G, over all processes.
        window: tokens of a row.
        mask_documents: see `collate`.
    """

    def __init__(
        self, data_dir: Path, mixture: Mixture, seed: int, samples_per_step: int, window: int, mask_documents: bool
    ) -> None:
        self.order = SampleOrder(seed, tuple(entry.rows for entry in mixture.entries), mixture.weights)
        self._readers = [RowReader(data_dir, entry) for entry in mixture.entries]
        self._samples_per_step = samples_per_step
        self._window = window
        self._mask_documents = mask_documents

    def samples(self, step: int, rank: int, world_size: int) -> range:
        """The sample numbers of `step` that process `rank` of `world_size` trains on."""
        share, rest = divmod(self._samples_per_step, world_size)
        assert rest == 0
        first = step * self._samples_per_step + rank * share
        return range(first, first + share)

    def step(self, step: int, rank: int, world_size: int, micro_batch_size: int) -> list[Batch]:
        """The micro-batches of process `rank` in `step`."""
        rows = []
        for sample in self.samples(step, rank, world_size):
            place = self.order.locate(sample)
            rows.append(self._readers[place.dataset].read(place.row))
        micro_batches = (rows[i : i + micro_batch_size] for i in range(0, len(rows), micro_batch_size))
        return [collate(rows, self._window, self._mask_documents) for rows in micro_batches]

    def steps(self, first: int, rank: int, world_size: int, micro_batch_size: int) -> Iterator[list[Batch]]:
        """`step(first)`, `step(first + 1)`, … without end; the next one is read while the caller works."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as pool:
            step = first
            ahead = pool.submit(self.step, step, rank, world_size, micro_batch_size)
            while True:
                batches = ahead.result()
                step += 1
                ahead = pool.submit(self.step, step, rank, world_size, micro_batch_size)
                yield batches


def validation_batches(
    data_dir: Path,
    entry: DatasetSplit,
    window: int,
    rank: int,
    world_size: int,
    micro_batch_size: int,
    max_rows: int | None,
    mask_documents: bool,
) -> Iterator[Batch]:
    """Process `rank`'s part of a dataset's rows in order, as equally many micro-batches on every process.

    FSDP's collectives want the same number of forward passes everywhere; rows beyond the last are empty.
    """
    rows = min(entry.rows, max_rows or entry.rows)
    reader = RowReader(data_dir, entry)
    for first in range(0, rows, micro_batch_size * world_size):
        start = first + rank * micro_batch_size
        mine = range(start, start + micro_batch_size)
        yield collate([reader.read(row) if row < rows else None for row in mine], window, mask_documents)
