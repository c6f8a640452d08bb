"""From sample numbers to batches.

1. `Mixture` (utils/data/mixture.py) settles which datasets a run reads, and with which integer weights.
2. `SampleOrder` (utils/data/sample_order.py) says which (dataset, row) sample number i is.
3. `TrainingData.step` reads one process's rows of an optimiser step. Each process counts the step's targets on all by
   itself: nobody waits for that number.
4. `collate` turns rows into the tensors of a micro-batch.

Nothing here has a position to save: step s of a run is samples [s·G, (s+1)·G) for any number of processes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_gpt.model.loss import IGNORE
from utils.cluster.collectives import rank, together, world_size
from utils.data.ends import places_of_ends
from utils.data.manifest import DatasetSplit
from utils.data.mixture import Mixture
from utils.data.sample_order import SampleOrder
from utils.data.shards import Row, RowReader, verify_shards


class Batch(NamedTuple):
    input_ids: Tensor  # [B, T] int64
    targets: Tensor  # [B, T] int64; `IGNORE` where there is nothing to predict
    segments: Tensor | None  # int32 [segments + 1]: where documents begin, through all rows, and B·T; None if not apart
    ends: Tensor | None = None  # [B, T] uint8: where answers end, see ends.py; None if nobody asks

    @property
    def target_count(self) -> int:
        return int((self.targets != IGNORE).sum())

    def to(self, device: torch.device) -> Batch:
        return Batch(*(tensor if tensor is None else moved(tensor, device) for tensor in self))


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on `device`, where it may arrive later: what uses it there waits, the host does not."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class StepData(NamedTuple):
    batches: list[Batch]
    datasets: list[Tensor]  # for each micro-batch int64 [B]: the number of each row's dataset in the mixture
    targets: int  # target tokens of the step on all processes together
    dataset_targets: np.ndarray  # int64 [datasets]: the same by dataset
    tokens: int  # targets, and the other tokens that the model needs to predict them


def collate(
    rows: Sequence[Row | None], window: int, mask_documents: bool = True, end_ids: Collection[int] = ()
) -> Batch:
    """Rows of `window` tokens → a batch of T = window - 1 positions; None stands for a row without any target.

    With `end_ids`, the tokens that end an answer, the batch says where answers end.
    """
    positions = window - 1
    tokens = np.zeros((len(rows), window), np.int64)
    is_target = np.zeros((len(rows), window), bool)
    ends = np.zeros((len(rows), window), np.uint8)
    bounds = []
    for index, row in enumerate(rows):
        lengths = np.zeros(0, np.int32) if row is None else row.segment_lengths
        edges = np.append(0, np.cumsum(lengths))
        # padding is a segment of its own
        bounds.append(edges[edges < positions] + index * positions)
        if row is None:
            continue
        tokens[index] = row.tokens
        is_target[index, : int(edges[-1])] = row.is_target()
        if end_ids:
            ends[index, : int(edges[-1])] = places_of_ends(row, end_ids)
    targets = np.where(is_target, tokens, IGNORE)
    segments = np.concatenate([*bounds, [len(rows) * positions]]).astype(np.int32)
    return Batch(
        input_ids=torch.from_numpy(np.ascontiguousarray(tokens[:, :-1])),
        targets=torch.from_numpy(np.ascontiguousarray(targets[:, 1:])),
        segments=torch.from_numpy(segments) if mask_documents else None,
        ends=torch.from_numpy(np.ascontiguousarray(ends[:, 1:])) if end_ids else None,
    )


def verify_data(data_dir: Path, entries: Sequence[DatasetSplit]) -> None:
    """Compares the shards with the manifest, each process its part; raises a DataError on all if one differs."""
    together(lambda: verify_shards(data_dir, entries, rank(), world_size()))


class TrainingData:
    def __init__(
        self, data_dir: Path, mixture: Mixture, seed: int, samples_per_step: int, window: int, mask_documents: bool
    ) -> None:
        self.order = SampleOrder(seed, tuple(entry.rows for entry in mixture.entries), mixture.weights)
        self._readers = [RowReader(data_dir, entry) for entry in mixture.entries]
        self._samples_per_step = samples_per_step  # over all processes
        self._window = window
        self._mask_documents = mask_documents

    def samples(self, step: int, rank: int, world_size: int) -> range:
        share, rest = divmod(self._samples_per_step, world_size)
        assert rest == 0
        first = step * self._samples_per_step + rank * share
        return range(first, first + share)

    def step(self, step: int, rank: int, world_size: int, micro_batch_size: int) -> StepData:
        own = self.samples(step, rank, world_size)
        rows, datasets = [], []
        tokens = 0
        dataset_targets = np.zeros(len(self._readers), np.int64)
        for sample in self.samples(step, 0, 1):
            location = self.order.locate(sample)
            reader = self._readers[location.dataset]
            targets, needed = reader.count(location.row)
            dataset_targets[location.dataset] += targets
            tokens += needed
            if sample in own:
                rows.append(reader.read(location.row))
                datasets.append(location.dataset)
        micro_batches = [slice(i, i + micro_batch_size) for i in range(0, len(rows), micro_batch_size)]
        return StepData(
            [collate(rows[part], self._window, self._mask_documents) for part in micro_batches],
            [torch.tensor(datasets[part]) for part in micro_batches],
            int(dataset_targets.sum()),
            dataset_targets,
            tokens,
        )

    def steps(self, first: int, rank: int, world_size: int, micro_batch_size: int) -> Iterator[StepData]:
        """`step(first)`, `step(first + 1)`, …; the next one is read while the caller works."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as pool:
            step = first
            ahead = pool.submit(self.step, step, rank, world_size, micro_batch_size)
            while True:
                data = ahead.result()
                step += 1
                ahead = pool.submit(self.step, step, rank, world_size, micro_batch_size)
                yield data


def validation_batches(
    data_dir: Path,
    entry: DatasetSplit,
    window: int,
    rank: int,
    world_size: int,
    micro_batch_size: int,
    max_rows: int | None,
    mask_documents: bool,
    end_ids: Collection[int] = (),
) -> Iterator[Batch]:
    """Process `rank`'s part of a dataset's rows in order, as equally many micro-batches on every process."""
    rows = min(entry.rows, max_rows or entry.rows)
    reader = RowReader(data_dir, entry)
    for first in range(0, rows, micro_batch_size * world_size):
        start = first + rank * micro_batch_size
        mine = range(start, start + micro_batch_size)
        # FSDP's collectives want the same number of forward passes everywhere: rows beyond the last are empty
        yield collate([reader.read(row) if row < rows else None for row in mine], window, mask_documents, end_ids)
