"""Training checkpoints: written so that a killed process never leaves a partial one under a final name.

`checkpoints/step-00001000/` holds the tensors (torch.distributed.checkpoint, one file per process), `state.json` (the
counters), and copies of run.yaml, the model config and the tokenizer, so that it can be used alone. It is staged in
`.step-00001000.7.partial` beside its target (7 is the number of this start's lock on the run folder, so two writers
never share a staging folder), synced, `SHA256SUMS` is written last (`sha256sum -c` reads it), and renamed. A flipped
bit loads without an error in most files: only the checksums find it.

`CheckpointWriter` copies the tensors to the host, which is all that the training waits for, and does the rest in a
thread, with a process group of its own.
"""

from __future__ import annotations

import os
import pickle
import shutil
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import Optimizer

from lit_gpt.errors import DataError, as_os_error
from lit_gpt.model.lazy_tensors import LazyTensors
from utils.cluster.collectives import on_rank_zero, rank, together, world_size
from utils.files.atomic import write_atomically
from utils.files.checksums import file_sha256
from utils.files.folder_lock import FolderLock
from utils.run.progress import TrainingProgress

SUMS = "SHA256SUMS"
CHECKPOINTS = "checkpoints"
GROUP_TIMEOUT = timedelta(hours=2)
"""For the slowest process's part of a checkpoint; the training's own watchdog is what finds a hanging one."""


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def list_checkpoints(run_dir: Path) -> list[Path]:
    """A run's complete checkpoints, oldest first."""
    return sorted(path for path in (run_dir / CHECKPOINTS).glob("step-*") if (path / SUMS).is_file())


def verify_checkpoint(checkpoint: Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with a checkpoint (a missing file, a checksum that differs), None if nothing is.

    Processes that share the work take every `parts`-th file from number `part` on.
    """
    try:
        lines = (checkpoint / SUMS).read_text(encoding="utf-8").splitlines()
        sums = [line.split("  ", 1) for line in lines]
        if not sums or any(len(line) != 2 for line in sums):
            return f"{checkpoint / SUMS} is damaged"
    except (OSError, UnicodeDecodeError) as e:
        return f"{checkpoint / SUMS} cannot be read ({e})"

    def problem(expected: str, name: str) -> str | None:
        path = checkpoint / name
        try:
            return None if file_sha256(path) == expected else f"{path} does not have its SHA-256"
        except OSError as e:
            return f"{path} is missing" if isinstance(e, FileNotFoundError) else f"{path} cannot be read ({e})"

    with ThreadPoolExecutor(max_workers=8) as pool:
        return next((found for found in pool.map(lambda line: problem(*line), sums[part::parts]) if found), None)


def newest_valid_checkpoint(run_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and what was wrong with the newer ones; the processes share the reading."""
    problems = []
    for checkpoint in reversed(on_rank_zero(lambda: list_checkpoints(run_dir))):
        found = filter(None, together(lambda path=checkpoint: verify_checkpoint(path, rank(), world_size())))
        if (problem := next(found, None)) is None:
            return checkpoint, problems
        problems.append(problem)
    return None, problems


class Saved(NamedTuple):
    """A complete checkpoint and the seconds that writing it took."""

    path: Path
    seconds: float


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that training changes, by name: with LoRA only the adapter's. They share the model's memory."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name in trained}


class CheckpointWriter:
    """Writes a run's checkpoints, one at a time. Every process has one and calls its methods alike.

    Args:
        run_dir: the run folder.
        companions: files that each checkpoint gets a copy of.
        lock: the run folder's, on process 0; None on the others.
    """

    def __init__(self, run_dir: Path, companions: Iterable[Path], lock: FolderLock | None) -> None:
        self._run_dir = run_dir
        self._companions = list(companions)
        self._lock = lock
        # The thread's collectives must not meet the training's: a group of their own, over the host's network.
        self._group = dist.new_group(backend="gloo", timeout=GROUP_TIMEOUT) if dist.is_initialized() else None
        self._lock_number = on_rank_zero(lambda: lock.number if lock else 0)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[Saved] | None = None

    def save(self, model: nn.Module, optimizer: Optimizer, progress: TrainingProgress) -> None:
        """Copies the tensors to the host and begins to write `checkpoints/step-…`; `wait` before the next one."""
        assert self._pending is None
        tensors = {"model": trained_tensors(model), "optimizer": get_optimizer_state_dict(model, optimizer)["state"]}
        self._pending = self._thread.submit(self._write, BlockingAsyncStager().stage(tensors), progress)

    def failed(self) -> bool:
        """Whether this process knows that the checkpoint under way has failed, or that the folder is another's."""
        return self._save_failed() or (self._lock is not None and self._lock.lost)

    def raise_failure(self) -> None:
        """Raises on every process what made one of them say `failed`, see `wait`."""
        self.wait()
        on_rank_zero(self._check_lock)

    def poll(self) -> Saved | None:
        """The checkpoint under way, once, when it is complete."""
        is_done = self._pending is not None and self._pending.done()
        return self.wait() if is_done and not self._save_failed() else None

    def _save_failed(self) -> bool:
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def wait(self) -> Saved | None:
        """Waits for the checkpoint under way and returns it; None if there is none.

        Raises:
            OSError: on every process, if one of them could not write; nothing is left under the final name.
            UserError: on every process, if another program has taken the run folder.
        """
        pending, self._pending = self._pending, None
        return pending and pending.result()

    def _write(self, tensors: dict[str, Any], progress: TrainingProgress) -> Saved:
        began = time.monotonic()
        target = self._run_dir / CHECKPOINTS / checkpoint_name(progress.step)
        staged = target.with_name(f".{target.name}.{self._lock_number}.partial")
        on_rank_zero(lambda: self._begin(staged), self._group)
        # Without copying ahead: that would take this thread to GPU 0, on every process, for tensors on the host.
        writer = dcp.FileSystemWriter(staged, per_thread_copy_ahead=0)
        try:
            _quietly(
                dcp.save,
                tensors,
                storage_writer=writer,
                process_group=self._group,
                no_dist=self._group is None,
            )
        except dcp.CheckpointException as e:
            raise next((found for error, _ in e.failures.values() if (found := as_os_error(error, staged))), e) from e
        pattern = f"__{rank()}_*.distcp"
        everyones = together(lambda: {path.name: file_sha256(path) for path in staged.glob(pattern)}, self._group)
        sums = {name: digest for own in everyones for name, digest in own.items()}
        on_rank_zero(lambda: self._publish(staged, target, sums, progress), self._group)
        return Saved(target, time.monotonic() - began)

    def _begin(self, staged: Path) -> None:
        """Makes an empty staging folder, and removes what killed or failed saves left: each is as large as the rest."""
        self._check_lock()
        for abandoned in staged.parent.glob(".step-*.partial"):
            number = abandoned.name.split(".")[2]
            if not number.isdigit() or int(number) <= self._lock_number:  # a newer one is the rightful owner's
                shutil.rmtree(abandoned, ignore_errors=abandoned != staged)
        staged.mkdir(parents=True)

    def _publish(self, staged: Path, target: Path, sums: dict[str, str], progress: TrainingProgress) -> None:
        """Adds everything but the tensors, whose checksums are `sums`, and gives the folder its name."""
        for companion in self._companions:
            shutil.copyfile(companion, staged / companion.name)
        progress.save(staged)
        own = [path for path in staged.iterdir() if path.suffix != ".distcp"]
        sums = sums | {path.name: file_sha256(path) for path in own}
        _sync(own)
        write_atomically(staged / SUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))
        _sync([staged])
        self._check_lock()
        shutil.rmtree(target, ignore_errors=True)  # only one that did not verify can be in the way
        staged.rename(target)
        _sync([target.parent])

    def _check_lock(self) -> None:
        if self._lock is not None:
            self._lock.check()


def _sync(paths: Iterable[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _quietly(function: Callable[..., None], *arguments: Any, **options: Any) -> None:
    with warnings.catch_warnings():  # without a process group torch warns that it takes one process: it is meant
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        function(*arguments, **options)


def load_checkpoint(checkpoint: Path, model: nn.Module, optimizer: Optimizer) -> TrainingProgress:
    """Loads a checkpoint into a model and its optimiser, on any number of processes.

    Raises:
        DataError: if its tensors are not the model's.
    """
    optimizer_state = get_optimizer_state_dict(model, optimizer)
    tensors = {"model": trained_tensors(model), "optimizer": optimizer_state["state"]}
    reader = CheckpointReader(checkpoint)
    _check_shapes(reader.read_metadata(), tensors["model"], checkpoint)
    _quietly(dcp.load, tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    set_optimizer_state_dict(model, optimizer, optimizer_state)
    return TrainingProgress.load(checkpoint)


def _check_shapes(metadata: Metadata, tensors: dict[str, Tensor], checkpoint: Path) -> None:
    saved = {
        name.removeprefix("model."): list(entry.size)
        for name, entry in metadata.state_dict_metadata.items()
        if name.startswith("model.") and isinstance(entry, TensorStorageMetadata)
    }
    expected = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if saved != expected:
        differing = min(name for name in saved.keys() | expected.keys() if saved.get(name) != expected.get(name))
        raise DataError(
            f"{checkpoint} is a checkpoint of another model: {differing} has shape "
            f"{saved.get(differing, 'none')} there, {expected.get(differing, 'none')} here"
        )


def read_model_tensors(checkpoint: Path) -> LazyTensors:
    """The model's tensors of a checkpoint (with LoRA only the adapter's), each whole, on the CPU, when asked for."""
    reader = CheckpointReader(checkpoint)
    specs = {
        name.removeprefix("model."): torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if name.startswith("model.") and isinstance(entry, TensorStorageMetadata)
    }

    def read(name: str) -> Tensor:
        tensor = torch.empty_like(specs[name], device="cpu")
        _quietly(dcp.load, {"model": {name: tensor}}, storage_reader=reader, no_dist=True)
        return tensor

    return LazyTensors(specs, read)


# what random bytes make pickle raise; lengths that nothing can hold are a MemoryError
_DAMAGED = (OSError, pickle.UnpicklingError, EOFError, AttributeError, LookupError, MemoryError, TypeError, ValueError)


class _MetadataUnpickler(pickle.Unpickler):
    """Builds only the classes that a checkpoint's metadata is made of: unpickling anything could run foreign code."""

    _ALLOWED = frozenset(
        {
            ("torch.distributed.checkpoint.metadata", "Metadata"),
            ("torch.distributed.checkpoint.metadata", "MetadataIndex"),
            ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
            ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
            ("torch.distributed.checkpoint.metadata", "TensorProperties"),
            ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
            ("torch.distributed.checkpoint.metadata", "StorageMeta"),
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
            ("torch.serialization", "_get_layout"),
            ("torch", "Size"),
            ("pathlib", "PosixPath"),
            ("pathlib", "WindowsPath"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) not in self._ALLOWED:
            raise DataError(f"a checkpoint's .metadata asks for {module}.{name}, which is no part of the format")
        return super().find_class(module, name)


class CheckpointReader(dcp.FileSystemReader):
    """torch's reader, with the pickled metadata restricted to its format's classes and read once."""

    _metadata: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        self._metadata = self._metadata or self._unpickled_metadata()
        return self._metadata

    def _unpickled_metadata(self) -> Metadata:
        path = Path(self.path) / ".metadata"
        try:
            with path.open("rb") as file:
                metadata = _MetadataUnpickler(file).load()
        except _DAMAGED as e:
            raise DataError(f"{path} is no checkpoint's metadata ({e or type(e).__name__})") from None
        if not isinstance(metadata, Metadata):
            raise DataError(f"{path} is no checkpoint's metadata")
        return metadata
