"""Checkpoints that were damaged, cut off or made to do harm."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import threading
from enum import Enum
from pathlib import Path

import pytest
import torch

from lit_gpt.errors import DataError, UserError
from lit_gpt.model.building import build_model
from tests.model.gradient_worker import CONFIG
from utils.files.folder_lock import LOCK, FolderLock
from utils.run import checkpoint_writer as checkpoints
from utils.run.checkpoint_folders import list_checkpoints, verify_checkpoint
from utils.run.checkpoint_reader import (
    load_checkpoint,
    newest_valid_checkpoint,
    read_model_tensors,
    trained_tensors,
)
from utils.run.checkpoint_writer import CheckpointWriter
from utils.run.progress import TrainingProgress
from utils.train.optimizer import make_optimizer


def model_and_optimizer(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = build_model(CONFIG, None, None, seed, torch.float32)
    return model, make_optimizer(model, 0.1, (0.9, 0.95))


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        torch.manual_seed(step)
        ids = torch.randint(0, 97, (2, 20))
        model(ids, targets=ids).sum.backward()
        optimizer.step()
        optimizer.zero_grad()


def save_checkpoint(
    run_dir: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: TrainingProgress,
    companions: list[Path],
    lock: FolderLock | None = None,
) -> Path:
    writer = CheckpointWriter(run_dir, companions, lock)
    writer.save(model, optimizer, progress)
    return writer.wait().path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, optimizer = model_and_optimizer(1)
    train(model, optimizer, 2)
    companion = tmp_path / "run.yaml"
    companion.write_text("x: 1\n")
    for step in (2, 4):
        save_checkpoint(tmp_path, model, optimizer, TrainingProgress(step=step, tokens=7, best_loss=1.5), [companion])
    return tmp_path


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer(1)
    train(model, optimizer, 3)
    path = save_checkpoint(tmp_path, model, optimizer, TrainingProgress(step=3, samples=9), [])
    resumed, its_optimizer = model_and_optimizer(2)
    assert load_checkpoint(path, resumed, its_optimizer) == TrainingProgress(step=3, samples=9)
    train(model, optimizer, 3)
    train(resumed, its_optimizer, 3)
    whole, parts = model.state_dict(), resumed.state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_what_is_read_is_what_was_trained(saved: Path) -> None:
    model, optimizer = model_and_optimizer(1)
    train(model, optimizer, 2)
    read = read_model_tensors(list_checkpoints(saved)[0])
    assert read.keys() == trained_tensors(model).keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in trained_tensors(model).items())


def test_any_flipped_bit_is_found_and_the_one_before_is_taken(saved: Path) -> None:
    first, second = list_checkpoints(saved)
    rng = random.Random(0)
    for path in sorted(second.iterdir()):
        content = bytearray(path.read_bytes())
        flipped = bytearray(content)
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        newest, problems = newest_valid_checkpoint(saved)
        assert newest == first and len(problems) == 1, path.name
        path.write_bytes(content)
    assert newest_valid_checkpoint(saved) == (second, [])


def test_missing_and_truncated_files_are_found(saved: Path) -> None:
    second = list_checkpoints(saved)[1]
    (second / "state.json").write_text((second / "state.json").read_text()[:-5])
    assert "state.json" in verify_checkpoint(second)
    (second / "run.yaml").unlink()
    assert "run.yaml is missing" in verify_checkpoint(second)


def test_a_partial_checkpoint_is_never_taken(saved: Path) -> None:
    first, second = list_checkpoints(saved)
    second.rename(second.with_name(f".{second.name}.partial"))
    assert newest_valid_checkpoint(saved)[0] == first
    model, optimizer = model_and_optimizer(1)
    assert save_checkpoint(saved, model, optimizer, TrainingProgress(step=4), []) == second
    assert not list((saved / "checkpoints").glob(".*"))


def test_a_full_disk_leaves_nothing_under_the_final_name(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(path: Path) -> str:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoints, "file_sha256", no_space)
    model, optimizer = model_and_optimizer(1)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(saved, model, optimizer, TrainingProgress(step=6), [])
    assert [path.name for path in list_checkpoints(saved)] == ["step-00000002", "step-00000004"]


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write = threading.Event()
    save = checkpoints.dcp.save
    monkeypatch.setattr(checkpoints.dcp, "save", lambda *a, **o: (may_write.wait(60), save(*a, **o)))
    model, optimizer = model_and_optimizer(1)
    train(model, optimizer, 2)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    writer = CheckpointWriter(tmp_path, [], None)
    writer.save(model, optimizer, TrainingProgress(step=2))
    train(model, optimizer, 2)
    assert writer.poll() is None and not list_checkpoints(tmp_path)
    may_write.set()
    path = writer.wait().path
    read = read_model_tensors(path)
    assert all(torch.equal(read[name], expected[name]) for name in read), "later steps got into the checkpoint"
    train(model, optimizer, 1)
    resumed, its_optimizer = model_and_optimizer(2)
    load_checkpoint(path, resumed, its_optimizer)
    train(resumed, its_optimizer, 2)
    train(resumed, its_optimizer, 1)
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_writer_that_lost_the_folder_publishes_nothing(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.files.folder_lock.Owner.is_known_dead", lambda owner: True)
    model, optimizer = model_and_optimizer(1)
    old = FolderLock.acquire(saved)
    save = checkpoints.dcp.save
    taken: list[FolderLock] = []

    def save_and_lose(*arguments: object, **options: object) -> None:
        save(*arguments, **options)
        taken.append(FolderLock.acquire(saved))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.dcp, "save", save_and_lose)
        with pytest.raises(UserError, match="taken over by process"):
            save_checkpoint(saved, model, optimizer, TrainingProgress(step=6), [], old)
    assert [path.name for path in list_checkpoints(saved)] == ["step-00000002", "step-00000004"]
    with pytest.raises(UserError, match="taken over"):
        save_checkpoint(saved, model, optimizer, TrainingProgress(step=8), [], old)
    assert save_checkpoint(saved, model, optimizer, TrainingProgress(step=6), [], taken[0]).name == "step-00000006"
    assert not list((saved / "checkpoints").glob(".*")) and len(list((saved / LOCK).iterdir())) == 1


def test_a_checkpoint_can_take_the_place_of_another_of_its_step(saved: Path) -> None:
    model, optimizer = model_and_optimizer(1)
    assert TrainingProgress.load(list_checkpoints(saved)[-1]).best_loss == 1.5
    path = save_checkpoint(saved, model, optimizer, TrainingProgress(step=4, best_loss=1.0), [])
    assert newest_valid_checkpoint(saved) == (path, []) and TrainingProgress.load(path).best_loss == 1.0
    assert not list((saved / "checkpoints").glob(".*"))


def test_a_write_error_inside_torch_is_an_os_error(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*arguments: object, **options: object) -> None:
        raise RuntimeError("[Errno 28] No space left on device")  # as torch's writer reports it

    monkeypatch.setattr("torch.distributed.checkpoint.filesystem._write_item", no_space)
    model, optimizer = model_and_optimizer(1)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(saved, model, optimizer, TrainingProgress(step=6), [])


def test_another_models_checkpoint_is_refused(saved: Path) -> None:
    import dataclasses

    other = build_model(dataclasses.replace(CONFIG, n_layer=3), None, None, 1, torch.float32)
    with pytest.raises(DataError, match="another model"):
        load_checkpoint(list_checkpoints(saved)[0], other, make_optimizer(other, 0.1, (0.9, 0.95)))


class Harm:
    def __reduce__(self) -> tuple:
        return os.system, ("touch harmed",)


def test_pickled_code_in_a_checkpoint_is_not_run(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = list_checkpoints(saved)[0]
    damaged = [
        b"",
        b"\x80\x04}.",
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x0f",
        b"\x80\x04\x8d" + b"\xff" * 8,
        os.urandom(100),
    ]
    for content in (pickle.dumps(Harm()), *damaged):
        (path / ".metadata").write_bytes(content)
        with pytest.raises(DataError, match="metadata"):
            read_model_tensors(path)
    assert not (tmp_path / "harmed").exists()


class OlderPython(pickle.Pickler):
    """Pickles a member of an Enum as Python 3.11.0 to 3.11.3 do, Debian 12's among them."""

    def reducer_override(self, value: object) -> object:
        return (getattr, (type(value), value.name)) if isinstance(value, Enum) else NotImplemented


class OtherAttribute:
    def __reduce__(self) -> tuple:
        return getattr, (torch.Size, "numel")


def test_a_checkpoint_of_an_older_python_is_read(saved: Path) -> None:
    path = list_checkpoints(saved)[0]
    expected = {name: tensor.clone() for name, tensor in read_model_tensors(path).items()}
    content = io.BytesIO()
    OlderPython(content).dump(pickle.loads((path / ".metadata").read_bytes()))
    assert b"getattr" in content.getvalue()
    (path / ".metadata").write_bytes(content.getvalue())
    found = read_model_tensors(path)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    (path / ".metadata").write_bytes(pickle.dumps(OtherAttribute()))
    with pytest.raises(DataError, match=r"asks for .numel. of .*, which is no part of the format"):
        read_model_tensors(path)


def test_counters_of_another_version_are_refused(saved: Path) -> None:
    path = list_checkpoints(saved)[0]
    (path / "state.json").write_text(json.dumps({"steps": 1}))
    with pytest.raises(DataError, match=r"state\.json"):
        TrainingProgress.load(path)
    shutil.rmtree(path)
    assert len(list_checkpoints(saved)) == 1
