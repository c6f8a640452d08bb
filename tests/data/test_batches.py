"""Batches against a token-by-token twin, and the split of a step over processes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_gpt.model.loss import IGNORE
from tests.conftest import random_rows
from utils.data.batches import Batch, TrainingData, collate, validation_batches
from utils.data.manifest import TEST, TRAIN, Manifest
from utils.data.mixture import Mixture
from utils.data.parts import TARGET

WINDOW = 33


@pytest.mark.parametrize("with_parts", [False, True])
def test_collate_equals_a_token_by_token_twin(with_parts: bool) -> None:
    rows = random_rows(20, WINDOW, 100)
    if with_parts:
        rng = np.random.default_rng(0)
        rows = [replace(row, parts=rng.integers(0, 3, row.segment_lengths.sum()).astype(np.uint8)) for row in rows]
        rows[3] = replace(rows[3], parts=None)
        rows[4].parts[:] = 1  # no target in a whole row
    batch = collate(rows, WINDOW)
    owners = owner_of_each_position(batch)
    for index, row in enumerate(rows):
        place, expected = 0, [IGNORE] * WINDOW
        owner = [-1] * WINDOW
        for number, (length, overlap) in enumerate(zip(row.segment_lengths, row.segment_overlaps, strict=True)):
            for offset in range(length):
                owner[place + offset] = number
                masked = row.parts is not None and row.parts[place + offset] != TARGET
                if offset >= overlap and not masked:
                    expected[place + offset] = int(row.tokens[place + offset])
            place += length
        assert batch.input_ids[index].tolist() == row.tokens[:-1].tolist()
        assert batch.targets[index].tolist() == expected[1:]
        changes = [position for position in range(1, WINDOW - 1) if owner[position] != owner[position - 1]]
        own = owners[index].tolist()
        assert [position for position in range(1, WINDOW - 1) if own[position] != own[position - 1]] == changes
    assert (owners[1:, 0] != owners[:-1, -1]).all()
    assert batch.segments.dtype == torch.int32
    assert (batch.segments[1:] > batch.segments[:-1]).all()
    assert batch.segments[-1] == batch.input_ids.numel()


def owner_of_each_position(batch: Batch) -> torch.Tensor:
    """[B, T]: the number of the segment that each position lies in, position by position."""
    bounds = batch.segments.tolist()
    owners = [number for number, (a, b) in enumerate(pairwise(bounds)) for _ in range(a, b)]
    return torch.tensor(owners).view(batch.input_ids.shape)


def test_a_target_is_always_the_next_token_of_the_same_document() -> None:
    batch = collate(random_rows(20, WINDOW, 100, seed=1), WINDOW)
    has_target = batch.targets[:, :-1] != IGNORE
    assert torch.equal(batch.targets[:, :-1][has_target], batch.input_ids[:, 1:][has_target])
    owners = owner_of_each_position(batch)
    assert (owners[:, 1:] == owners[:, :-1])[has_target].all()


def test_without_document_masks_targets_stay_and_segments_go() -> None:
    rows = random_rows(5, WINDOW, 100)
    masked, unmasked = collate(rows, WINDOW), collate(rows, WINDOW, mask_documents=False)
    assert torch.equal(masked.targets, unmasked.targets)
    assert unmasked.segments is None


def test_an_empty_row_has_no_targets() -> None:
    batch = collate([None], WINDOW)
    assert batch.target_count == 0
    assert batch.segments.tolist() == [0, WINDOW - 1]


def test_any_number_of_processes_sees_the_same_samples(data_dir: Path) -> None:
    manifest = Manifest.load(data_dir)
    mixture = Mixture.of(manifest.select(TRAIN), None)
    data = TrainingData(data_dir, mixture, seed=3, samples_per_step=12, window=manifest.window, mask_documents=True)
    for step in (0, 5, 10**9):
        alone = torch.cat([batch.input_ids for batch in data.step(step, 0, 1, 12).batches])
        for world_size in (2, 3, 4):
            parts = [b.input_ids for rank in range(world_size) for b in data.step(step, rank, world_size, 3).batches]
            assert torch.equal(torch.cat(parts), alone)
    ahead = data.steps(5, 0, 1, 12)
    assert torch.equal(next(ahead).batches[0].input_ids, data.step(5, 0, 1, 12).batches[0].input_ids)
    assert torch.equal(next(ahead).batches[0].input_ids, data.step(6, 0, 1, 12).batches[0].input_ids)


def test_an_epoch_holds_every_target_of_the_corpus_once(data_dir: Path) -> None:
    manifest = Manifest.load(data_dir)
    entries = manifest.select(TRAIN)
    mixture = Mixture.of(entries, None)
    data = TrainingData(data_dir, mixture, 3, mixture.rows, manifest.window, mask_documents=True)
    assert sum(b.target_count for b in data.step(0, 0, 1, 16).batches) == sum(entry.targets for entry in entries)


def test_validation_rows_come_once_whatever_the_processes(data_dir: Path) -> None:
    manifest = Manifest.load(data_dir)
    for chosen in manifest.select(TEST):
        for world_size, micro in ((1, 4), (2, 3), (3, 5)):
            parts = [
                list(validation_batches(data_dir, chosen, manifest.window, rank, world_size, micro, None, True))
                for rank in range(world_size)
            ]
            assert len({len(batches) for batches in parts}) == 1, "FSDP wants as many passes everywhere"
            assert sum(b.target_count for batches in parts for b in batches) == chosen.targets
