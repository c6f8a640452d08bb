"""From sample numbers to batches.

1. `Mixture` settles which datasets a run reads, and with which integer weights.
2. `SampleOrder` (utils/sample_order.py) says which (dataset, row) sample number i is.
3. `TrainingData.step` reads the rows of one optimiser step that belong to one process; a thread reads ahead.
4. `collate` turns rows into the tensors of a micro-batch.

Nothing here has a position to save: step s of a run is samples [s·G, (s+1)·G) for any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor

from lit_gpt.command import UserError
from lit_gpt.model import IGNORE
from utils.processes import rank, together, world_size
from utils.sample_order import SampleOrder, integer_weights
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


@dataclass(frozen=True)
class Mixture:
    """The datasets a run trains on and their integer weights: shares of the samples, exact."""

    entries: tuple[DatasetSplit, ...]
    weights: tuple[int, ...]

    @classmethod
    def of(cls, entries: Sequence[DatasetSplit], shares: Path | None) -> Mixture:
        """Weights from the YAML file `shares`, or each dataset's rows, so that an epoch sees each row once.

        The file maps a dataset's or a group's name to its share of the samples; a group's share is divided among its
        datasets by their rows; what is not named is left out, and so is what has share 0.

        Raises:
            UserError: if the file is not such a mapping, or names what the data does not hold.
        """
        if shares is None:
            return cls(tuple(entries), integer_weights([entry.rows for entry in entries]))
        named = _read_shares(shares)
        of_entry: dict[str, list[str]] = {name: [] for name in named}
        for entry in entries:
            for name in {entry.dataset, entry.group} & named.keys():
                of_entry[name].append(entry.dataset)
        if missing := sorted(name for name, members in of_entry.items() if not members):
            known = sorted({entry.dataset for entry in entries} | {entry.group for entry in entries})
            raise UserError(f"{shares} names {', '.join(missing)}, the data holds {', '.join(known)}")
        rows = {entry.dataset: entry.rows for entry in entries}
        group_rows = {name: sum(rows[member] for member in members) for name, members in of_entry.items()}
        weighted: dict[str, Fraction] = {}
        for name, members in of_entry.items():
            for member in members:
                if member in weighted:
                    raise UserError(f"{shares} gives {member} a share twice, by its own name and by its group's")
                weighted[member] = named[name] * rows[member] / group_rows[name]
        chosen = [entry for entry in entries if weighted.get(entry.dataset)]
        if not chosen:
            raise UserError(f"{shares} leaves no dataset with a share above 0")
        return cls(tuple(chosen), integer_weights([weighted[entry.dataset] for entry in chosen]))

    @property
    def rows(self) -> int:
        """Rows of all datasets: the samples of one epoch."""
        return sum(entry.rows for entry in self.entries)


def _read_shares(path: Path) -> dict[str, Fraction]:
    if not path.is_file():
        raise UserError(f"--mixture {path} does not exist")
    try:
        named = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as e:
        raise UserError(f"{path} is not valid YAML: {e}") from None
    if not isinstance(named, dict) or not named:
        raise UserError(f"{path} must map dataset or group names to shares, such as `FR/Theatre: 0.7`")
    shares = {}
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise UserError(f"{path}: the share of {name} must be a number of at least 0, not {value!r}")
        shares[str(name)] = Fraction(str(value))
    return shares


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
