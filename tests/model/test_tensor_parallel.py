"""Processes that share each matrix.

The gradient against a float64 twin is in tests/train/test_step.py, with all other ways.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from litgpt.config import Config

from lit_gpt.model.tensor_parallel import HeadExchange, sharing_problems
from tests.conftest import TINY_MODEL, assert_error, run
from tests.train.test_training import rows_of

CONFIG = Config(**yaml.safe_load(TINY_MODEL), vocab_size=98, padded_vocab_size=98)
SHARED = ("--tensor_parallel", 2, "--batch_size", 4, "--micro_batch_size", 2)
ALONE = ("--batch_size", 8, "--micro_batch_size", 2)


class Rank:
    """What `HeadExchange` asks of a mesh."""

    def __init__(self, number: int, processes: int) -> None:
        self._number, self._processes = number, processes

    def get_group(self) -> None: ...

    def size(self) -> int:
        return self._processes

    def get_local_rank(self) -> int:
        return self._number


def test_what_is_not_shared_out_is_named() -> None:
    assert sharing_problems(CONFIG, 2, 64) == []
    assert "norms of queries" in sharing_problems(dataclasses.replace(CONFIG, norm_qk=True), 2, 64)[0]
    assert "learned positions" in sharing_problems(dataclasses.replace(CONFIG, rotary_percentage=0.0), 2, 64)[0]


@pytest.mark.parametrize(("heads", "groups", "processes"), [(4, 4, 2), (8, 2, 2), (8, 4, 4), (12, 6, 3), (6, 6, 6)])
def test_each_process_gets_the_rows_of_its_heads(
    heads: int, groups: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, positions = 2, 5
    config = dataclasses.replace(CONFIG, n_head=heads, n_query_groups=groups, head_size=size)
    matrix = torch.randn(positions, (heads + 2 * groups) * size)
    posted: list[tuple[torch.Tensor, list[int], list[int]]] = []

    def post(rows: torch.Tensor, received: list[int], sent: list[int], _group: None) -> torch.Tensor:
        posted.append((rows, received, sent))
        return rows

    monkeypatch.setattr("lit_gpt.model.tensor_parallel.all_to_all_single_autograd", post)
    for rank, rows in enumerate(matrix.chunk(processes, dim=1)):
        HeadExchange(config, Rank(rank, processes))(rows.unsqueeze(0))
    queries, keys, values = matrix.split([heads * size, groups * size, groups * size], dim=1)
    for rank in range(processes):
        letters = [rows.split(sent)[rank] for rows, _, sent in posted]
        assert [len(letter) for letter in letters] == posted[rank][1]
        expected = [part.chunk(processes, dim=1)[rank] for part in (queries, keys, values)]
        assert torch.equal(torch.cat(letters).T, torch.cat(expected, dim=1))


def test_a_run_is_that_of_one_process_and_goes_on_with_any_number(
    pretrain_arguments: list[object], trained_run: Path, tmp_path: Path
) -> None:
    run("pretrain.py", *pretrain_arguments, *SHARED, "--out_dir", tmp_path, "--max_checkpoints", 2, processes=4)
    assert [int(row["step"]) for row in rows_of(tmp_path, "train")] == [1, 2, 3, 4, 5, 6]
    run("pretrain.py", *pretrain_arguments, *ALONE, "--out_dir", tmp_path, "--max_checkpoints", 3)
    run("pretrain.py", *pretrain_arguments, *SHARED, "--out_dir", tmp_path, "--debug", "true", processes=4)
    for split in ("train", "valid"):
        expected = rows_of(trained_run, split)
        steps = {row["step"] for row in expected}  # each start ends with a validation of its own
        found = [row for row in rows_of(tmp_path, split) if row["step"] in steps]
        assert len(found) == len(expected) > 0
        for ours, theirs in zip(found, expected, strict=True):
            assert [ours[name] for name in ("step", "dataset", "samples", "tokens", "targets")] == [
                theirs[name] for name in ("step", "dataset", "samples", "tokens", "targets")
            ]
            assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), rel=1e-4)


def test_what_cannot_be_shared_is_said_before_anything_is_started(
    pretrain_arguments: list[object], lora_arguments: list[object], tmp_path: Path
) -> None:
    ways = [
        (pretrain_arguments, ("--devices", 3), "does not divide the 3 process"),
        (pretrain_arguments, ("--devices", 4, "--tensor_parallel", 4), "2 key and value heads"),
        (lora_arguments, ("--devices", 2), "not --use_lora"),
    ]
    for arguments, more, words in ways:
        command = (*arguments, "--batch_size", 4, "--tensor_parallel", 2, *more, "--out_dir", tmp_path / "run")
        assert_error(run("pretrain.py", *command, check=False), 2, words)
        assert not (tmp_path / "run").exists()


def test_obstacles_are_named() -> None:
    assert sharing_problems(CONFIG, 2, 64) == []
    assert sharing_problems(CONFIG, 2, 33) == ["33 positions of a micro-batch"]
    assert "4 attention heads" in sharing_problems(
        CONFIG, 3, 66
    ) and "98 entries of the vocabulary" in sharing_problems(CONFIG, 3, 66)
